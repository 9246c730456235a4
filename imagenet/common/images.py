"""Image files: found in folders and decoded."""

import hashlib
import os
import unicodedata
from collections.abc import Iterable, Sequence
from io import BytesIO
from pathlib import Path
from typing import BinaryIO, NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torchvision.datasets.folder import IMG_EXTENSIONS
from tqdm.contrib.concurrent import thread_map

from .command_line import UserError, one_line, plural
from .distributed import print_once, rank, world_size

EXTENSIONS = (*IMG_EXTENSIONS, ".jfif")
DEBRIS = ("__MACOSX", "@eaDir", "Thumbs.db", "desktop.ini")  # of file managers, beside hidden files
TEST_FOLDERS = ("val", "valid", "test")  # in this order: ImageNet has a `test` without labels


class Paths(Sequence):
    """File names in one block of memory.

    A list of a million Python objects would be copied page by page into each worker, because
    reading them changes their reference counts.
    """

    def __init__(self, names: Sequence[str]):
        self._names = np.array([os.fsencode(name) for name in names])

    def __len__(self) -> int:
        return len(self._names)

    def __getitem__(self, index: int) -> Path:
        return Path(os.fsdecode(self._names[index]))


class Listing(NamedTuple):
    """The images of a folder with one subfolder per class."""

    classes: list[str]  # names of the subfolders, sorted
    paths: Paths  # in the order of torchvision's ImageFolder
    labels: np.ndarray  # (N,) int64: index into `classes`
    identity: str  # a hash of the names of classes and images, and of one image of each class


def list_images(folder: Path) -> Listing:
    """List `folder/<class>/**/<image>`: the files of torchvision's ImageFolder, in its order.

    Hidden files, and known ones of file managers, are left out. A missing, unreadable or empty
    folder is a `UserError`.
    """
    if not folder.is_dir():
        raise UserError(f"{folder}: no such folder; expected one with a subfolder per class")
    found = list(os.scandir(folder))
    entries = [entry for entry in found if not is_debris(entry.name)]
    classes = sorted(entry.name for entry in entries if not entry.is_file())  # or broken links
    loose = sorted(entry.name for entry in entries if entry.is_file() and is_image(entry.name))
    if loose:
        raise UserError(f"{folder}: {loose[0]} is in no class; give each class a folder of its own")
    if not classes:
        raise UserError(f"{folder}: no subfolders; expected one per class, with its images")
    names: list[str] = []
    labels, starts, skipped = [], [], len(found) - len(classes)
    for label, name in enumerate(classes):
        images, others = list_class(folder / name)
        if not images:
            problem = f"no image in this class, {plural(others, 'other item')}"
            raise UserError(f"{folder / name}: {problem}; add some or remove it")
        names += images
        labels += [label] * len(images)
        # Tells apart classes whose images have the same names.
        with open_at_once(images[0]) as file:
            starts.append(file.read(4096).hex())
        skipped += others
    note = f", skipped {plural(skipped, 'other item')}" if skipped else ""
    print_once(f"{folder}: {plural(len(names), 'image')} of {plural(len(classes), 'class')}{note}")
    start = len(os.fspath(folder))
    identity = hash_lines([*starts, *(name[start:] for name in names)])
    return Listing(classes, Paths(names), np.array(labels), identity)


def hash_lines(lines: Iterable[str]) -> str:
    """Return a hash that tells lists of names apart."""
    text = "\n".join(lines)
    return hashlib.sha256(text.encode("utf-8", "surrogateescape")).hexdigest()[:12]


def list_class(folder: Path) -> tuple[list[str], int]:
    """Return the paths of a class's images at any depth, and the number of items skipped."""

    def fail(error: OSError) -> None:
        raise UserError(
            f"{error.filename}: can't be read ({error.strerror}); is its disk mounted?"
        ) from error

    found, visited, skipped = [], set(), 0
    for root, folders, files in os.walk(folder, onerror=fail, followlinks=True):
        hidden = sum(map(is_debris, folders))
        folders[:] = sorted(name for name in folders if not is_debris(name))
        if (real := os.path.realpath(root)) in visited:  # a loop of links
            folders.clear()
            continue
        visited.add(real)
        skipped += hidden
        found.append((root, sorted(files)))
    paths = [(root, name) for root, files in sorted(found) for name in files]
    images = [os.path.join(*each) for each in paths if is_image(each[1])]
    return images, skipped + len(paths) - len(images)


def is_debris(name: str) -> bool:
    return name.startswith(".") or name in DEBRIS


def is_image(name: str) -> bool:
    return name.lower().endswith(EXTENSIONS) and not is_debris(name)


def find_test_folder(root: Path) -> Path:
    """Return the first of `root/val`, `root/valid` and `root/test` that exists."""
    for name in TEST_FOLDERS:
        if (root / name).is_dir():
            return root / name
    problem = f"none of {', '.join(TEST_FOLDERS)} in it" if root.is_dir() else "no such folder"
    inside = root.name in ("train", *TEST_FOLDERS)
    advice = f"its parent, {root.parent}" if inside else "a folder with train/ and val/"
    raise UserError(f"{root}: {problem}; give {advice}, as --dataroot")


def open_at_once(path: str | Path) -> BinaryIO:
    """Open a file for reading. A pipe has no content then, instead of waiting for it."""
    return open(path, "rb", opener=lambda name, flags: os.open(name, flags | os.O_NONBLOCK))


def read_rgb(path: Path) -> Image.Image:
    """Decode an image and convert it to RGB with PIL, without applying EXIF rotation.

    16-bit grayscale, which PIL would clip to white, is scaled to 8 bits instead. A file that can't
    be read or decoded is a `UserError`, whose message begins with the path.
    """
    try:
        with open_at_once(path) as file:
            return decode_rgb(file.read())
    except Exception as error:  # a decoder can raise almost any exception on a damaged file
        if isinstance(error, OSError) and error.strerror:  # the file may be undamaged
            raise UserError(f"{path}: can't be read ({error.strerror})") from error
        reason = one_line(error, 150).partition(" <_io")[0]
        raise UserError(f"{path}: not an image ({reason}); repair or remove it") from error


def find_readable(paths: Sequence[Path]) -> tuple[list[Path], list[str]]:
    """Return the images among files and in folders that can be decoded, and errors of the others.

    If none can be decoded, that is a `UserError`.
    """
    if world_size() > 1:
        raise UserError("--predict supports only one process; run it without torchrun")
    readable, errors = [], []
    for path in paths:
        found = (
            [each for each in path.iterdir() if is_image(each.name)] if path.is_dir() else [path]
        )
        for file in sorted(found):
            try:
                read_rgb(file)
                readable.append(file)
            except UserError as error:
                errors.append(str(error))
    if not readable:
        raise UserError(errors[0] if errors else f"{paths[0]}: no images in this folder itself")
    return readable, errors


def decode_rgb(data: bytes) -> Image.Image:
    """Decode the content of an image file; see `read_rgb`."""
    with Image.open(BytesIO(data)) as image:
        if image.width * image.height > Image.MAX_IMAGE_PIXELS:  # PIL only warns
            raise ValueError(f"Image size ({image.width * image.height} pixels)")
        is_png16 = image.mode == "I" and image.format == "PNG"  # in some versions of PIL
        if image.mode.startswith("I;16") or is_png16:
            gray = np.asarray(image).astype(np.float64) / 257  # 65535 / 255
            image = Image.fromarray(gray.clip(0, 255).round().astype(np.uint8))
        elif image.mode in ("I", "F"):
            raise ValueError(f"mode {image.mode}, of unknown range; convert it to 8 or 16 bits")
        if image.mode != "RGB":
            return image.convert("RGB")
        image.load()
        return image


def check_classes(classes: Sequence[str], tested: Sequence[str], root: Path) -> None:
    """Raise `UserError` unless there are two classes, and all that are tested are trained."""
    if len(classes) < 2:
        raise UserError(f"{root}: only one class, {classes[0]!r}; expected at least two")
    if unknown := sorted(set(tested) - set(classes)):
        plain = {unicodedata.normalize("NFC", name): name for name in classes}
        if same := plain.get(unicodedata.normalize("NFC", unknown[0])):
            raise UserError(
                f"{root}: {unknown[0]!a} and {same!a} look the same, but their accents are encoded "
                "differently; rename one of the folders"
            )
        raise UserError(
            f"{root}: the test images have a class {unknown[0]!r} that is not one of the "
            f"{len(classes)} training classes; remove its folder or add training images"
        )


def read_squares(paths: Sequence[Path], side: int, workers: int) -> Tensor:
    """Decode images with several threads and resize them to squares: (N, 3, side, side) uint8."""
    images = torch.empty(len(paths), 3, side, side, dtype=torch.uint8)

    def read(index: int) -> None:
        image = read_rgb(paths[index]).resize((side, side), Image.Resampling.BICUBIC)
        images[index] = torch.from_numpy(np.array(image)).permute(2, 0, 1)

    hidden = None if rank() == 0 else True  # None: hidden unless there is a terminal
    about = {"desc": "reading images", "leave": False, "disable": hidden}
    thread_map(read, range(len(paths)), max_workers=workers, **about)
    return images
