"""The weights that the paper's authors released on Google Drive, fetched once and checked."""

import os
import sys
import tempfile
from pathlib import Path
from typing import NamedTuple

import torch

from common.command_line import UserError, one_line
from pretrained import load_model


class Released(NamedTuple):
    """A file on Google Drive."""

    drive_id: str
    size_mib: int

    @property
    def page(self) -> str:
        """Where a person can fetch it with a browser."""
        return f"https://drive.google.com/file/d/{self.drive_id}/view"

    @property
    def address(self) -> str:
        return f"https://drive.google.com/uc?id={self.drive_id}"


RELEASED = {
    "resnet18": Released("1P5QA_uLyaqaSDUCVb0Kkg-UlvVoBJphc", 45),
    "resnet50": Released("1sqhBPdzHi-X0svyBeFWEjiqveWfAohdK", 98),
    "resnet152": Released("1zoCNTuSI0dG2JUjTLFc5vjFodVPPi6C7", 231),
}


def fetch(arch: str, address: str | None = None, timeout_s: float = 60) -> Path:
    """The path of the released weights in torch's hub cache, after fetching them if need be.

    A file takes its place there only once every key and shape in it has been checked.

    Args:
        arch: a name in `RELEASED`.
        address: where to fetch from in place of Google Drive.
        timeout_s: how long the server may stay silent.

    Raises:
        UserError: nothing was released for `arch`, or what came is not a checkpoint of it.
    """
    if arch not in RELEASED:
        raise UserError(f"-a {arch}: weights were released for {', '.join(RELEASED)}; use one")
    file = RELEASED[arch]
    target = Path(torch.hub.get_dir()) / "checkpoints" / f"dks_{arch}.pth"
    if target.is_file():
        try:
            load_model(arch, target)
        except UserError as refusal:
            raise UserError(f"{refusal} (or remove it, to have it fetched again)") from refusal
        return target
    target.parent.mkdir(parents=True, exist_ok=True)
    # gdown leaves what it has of a broken download; the temporary folder takes that along.
    with tempfile.TemporaryDirectory(prefix=".dks-", dir=target.parent) as folder:
        arrived = Path(folder) / target.name
        try:
            download(address or file.address, arrived, timeout_s)
            refuse_web_page(arrived)
            load_model(arch, arrived)
        except UserError as refusal:
            # Not the name of a file that is about to go.
            reason = str(refusal).replace(str(arrived), "what arrived").rstrip(".")
            raise UserError(
                f"the weights of {arch} could not be fetched: {reason}. Fetch {file.page} "
                f"({file.size_mib} MiB) with a browser and give the file as --model_path"
            ) from refusal
        os.replace(arrived, target)
    return target


def download(address: str, path: Path, timeout_s: float) -> None:
    """Save what is at `address`, through Google Drive's questions if it is there."""
    try:
        import gdown
    except ImportError as error:
        raise UserError("it needs a package: pip install gdown") from error
    try:
        # Without cookies gdown touches no file in the home folder. Its bar is for terminals.
        quiet = not sys.stderr.isatty()
        gdown.download(address, str(path), quiet=quiet, use_cookies=False, timeout=timeout_s)
    except Exception as error:  # its own, those of requests, and OSError
        reason = one_line(error, 200).partition("The received bytes are kept")[0].strip()
        raise UserError(reason) from error
    if not path.is_file():
        raise UserError(f"nothing arrived from {address}")


def refuse_web_page(path: Path) -> None:
    with open(path, "rb") as file:
        start = file.read(200).lstrip().lower()
    if start.startswith((b"<!doctype html", b"<html")):
        raise UserError("a web page came in place of the file, as when Drive's quota is spent")
