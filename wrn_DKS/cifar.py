"""The official files of CIFAR-10 and CIFAR-100: found, checked, and downloaded."""

import io
import os
import shutil
import sys
import tempfile
from contextlib import redirect_stderr
from pathlib import Path

from torchvision import datasets
from torchvision.datasets.utils import calculate_md5, check_integrity

from common.command_line import UserError, root_cause
from common.downloads import download_once
from common.run_folder import remove_if_failed

CIFAR = {"CIFAR10": datasets.CIFAR10, "CIFAR100": datasets.CIFAR100}


def provide_cifar(name: str, root: Path) -> Path:
    """Download the files if they are missing; return the folder for torchvision's data sets.

    Args:
        name: a key of `CIFAR`.
        root: the folder that contains the folder of the official files, or the latter.

    Raises:
        UserError: the files are damaged, or can't be downloaded.
    """
    root = find_cifar(name, root)
    download_once(list(cifar_files(name, root)), lambda: download_cifar(name, root))
    return root


def find_cifar(name: str, root: Path) -> Path:
    """Return the folder that contains the folder of the official files, given either of them.

    Raises:
        UserError: a file is damaged, or the folder is one of images.
    """
    cifar = CIFAR[name]
    if root.resolve().name == cifar.base_folder and not (root / cifar.base_folder).exists():
        root = root.resolve().parent
    folder = root / cifar.base_folder
    images = [part for part in ("train", "test", "val") if (root / part).is_dir()]
    if images and not folder.exists():
        raise UserError(
            f"--dataroot {root}: has no {cifar.base_folder}/ but a folder {images[0]}/; for a "
            "folder of images use --dataset folder"
        )
    for path, md5 in cifar_files(name, root).items():
        if path.is_file() and not check_integrity(path, md5):
            raise UserError(
                f"{path} is damaged: expected the MD5 checksum {md5}, found {calculate_md5(path)}; "
                "use an undamaged copy, or remove the file to download it again"
            )
    return root


def cifar_files(name: str, root: Path) -> dict[Path, str]:
    """Return the paths of the official files, with their MD5 checksums."""
    cifar = CIFAR[name]
    meta = (cifar.meta["filename"], cifar.meta["md5"])
    listed = (*cifar.train_list, *cifar.test_list, meta)
    return {root / cifar.base_folder / file: md5 for file, md5 in listed}


def download_cifar(name: str, root: Path) -> None:
    """Download the official files, or unpack the archive in `root`. Each appears when complete."""
    cifar = CIFAR[name]
    # torchvision shows a progress bar even if the output is redirected to a file.
    stderr = sys.stderr if sys.stderr.isatty() else io.StringIO()
    try:
        with remove_if_failed(root, cifar.filename), redirect_stderr(stderr):
            root.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryDirectory(prefix=".cifar-", dir=root) as folder:
                unpack_cifar(name, root, Path(folder))
    except (OSError, RuntimeError, ValueError, KeyError, EOFError) as error:
        raise UserError(
            f"{name} is not in {root} and can't be downloaded ({root_cause(error)}); download "
            f"{cifar.url} and unpack it in {root}, or use --dataset digits, which needs no download"
        ) from error


def unpack_cifar(name: str, root: Path, temporary: Path) -> None:
    """Download and unpack the files in a temporary folder, then move them to `root`."""
    cifar = CIFAR[name]
    if (root / cifar.filename).is_file():  # a copy, because torchvision may overwrite it
        shutil.copy(root / cifar.filename, temporary)
    cifar(temporary, download=True)
    (root / cifar.base_folder).mkdir(exist_ok=True)
    for path in cifar_files(name, root):
        os.replace(temporary / cifar.base_folder / path.name, path)
