"""Download the weights that the authors of the paper released on Google Drive."""

import os
import sys
import tempfile
from pathlib import Path
from typing import NamedTuple

import torch

from common.command_line import UserError, root_cause
from common.downloads import download_once
from pretrained import load_model


class ReleasedFile(NamedTuple):
    """A file on Google Drive."""

    drive_id: str
    size_mib: int

    @property
    def web_page(self) -> str:
        """Page for a download in a browser."""
        return f"https://drive.google.com/file/d/{self.drive_id}/view"

    @property
    def url(self) -> str:
        return f"https://drive.google.com/uc?id={self.drive_id}"


RELEASED_FILES = {
    "resnet18": ReleasedFile("1P5QA_uLyaqaSDUCVb0Kkg-UlvVoBJphc", 45),
    "resnet50": ReleasedFile("1sqhBPdzHi-X0svyBeFWEjiqveWfAohdK", 98),
    "resnet152": ReleasedFile("1zoCNTuSI0dG2JUjTLFc5vjFodVPPi6C7", 231),
}


def download_released_weights(arch: str, url: str | None = None, timeout_s: float = 60) -> Path:
    """Return the path of the released weights in torch's hub cache; download them if missing.

    One process of each machine downloads. A download enters the cache only after all its keys and
    shapes have been checked.

    Args:
        arch: a key of `RELEASED_FILES`.
        url: download from here instead of Google Drive.
        timeout_s: seconds without an answer from the server after which the download fails.

    Raises:
        UserError: no weights were released for `arch`, the download failed, or the file is not a
            checkpoint of `arch`.
    """
    if arch not in RELEASED_FILES:
        raise UserError(f"-a {arch}: weights were released only for {', '.join(RELEASED_FILES)}")
    file = RELEASED_FILES[arch]
    target = Path(torch.hub.get_dir()) / "checkpoints" / f"dks_{arch}.pth"
    if target.is_file():
        try:
            load_model(arch, target)
        except UserError as error:
            raise UserError(f"{error} (or remove the file to download it again)") from error
        return target
    download_once([target], lambda: download_to(target, arch, url or file.url, timeout_s))
    return target


def download_to(target: Path, arch: str, url: str, timeout_s: float) -> None:
    """Download weights of `arch`, check them, and move them to `target`."""
    file = RELEASED_FILES[arch]
    target.parent.mkdir(parents=True, exist_ok=True)
    # gdown leaves a partial file behind when a download breaks off.
    with tempfile.TemporaryDirectory(prefix=".dks-", dir=target.parent) as folder:
        downloaded = Path(folder) / target.name
        try:
            download_file(url, downloaded, timeout_s)
            check_not_html(downloaded)
            load_model(arch, downloaded)
        except UserError as error:
            # The temporary file is about to be removed, so the message must not name it.
            reason = str(error).replace(str(downloaded), "the downloaded file").rstrip(".")
            raise UserError(
                f"open {file.web_page} in a browser, save the weights of {arch} "
                f"({file.size_mib} MiB) and give the file as --model_path FILE; the automatic "
                f"download failed: {reason}"
            ) from error
        os.replace(downloaded, target)


def download_file(url: str, path: Path, timeout_s: float) -> None:
    """Download a file with gdown, which handles Google Drive's confirmation pages."""
    try:
        import gdown
    except ImportError as error:
        raise UserError("the download requires: pip install gdown") from error
    try:
        # gdown's progress bar is meant for terminals. With cookies it would write to the home
        # folder.
        quiet = not sys.stderr.isatty()
        gdown.download(url, str(path), quiet=quiet, use_cookies=False, timeout=timeout_s)
    except Exception as error:  # gdown's own exceptions, those of requests, and OSError
        reason = root_cause(error).partition("The received bytes are kept")[0].strip()
        raise UserError(reason) from error
    if not path.is_file():
        raise UserError(f"no file received from {url}")


def check_not_html(path: Path) -> None:
    """Raise `UserError` if the server sent a web page instead of the file."""
    with open(path, "rb") as file:
        start = file.read(200).lstrip().lower()
    if start.startswith((b"<!doctype html", b"<html")):
        raise UserError("received a web page, probably because Google Drive's quota is exceeded")
