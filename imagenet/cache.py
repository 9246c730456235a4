"""The image cache of `train.py --cache DIR`: its files, and what it is bound to.

A cache holds what is the same in every epoch: training images decoded and resized to squares,
validation images decoded, resized and cropped. Files of DIR:
    images.bin: the pixels, uint8. N squares (side, side, 3), then M crops (S, S, 3). It has this
        name only once it is complete; before, it is `images.bin.HASH.partial`, with a hash of what
        the images are made from and with.
    files.txt: a line `size time name` for each image file, in the order of images.bin; the time of
        the last change is in nanoseconds.
    cache.json: what the images were made from and with, and how many of them are written.
"""

import hashlib
import json
import os
import warnings
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from common.command_line import UserError, one_line
from common.files import write_atomically
from data import ImageSets

FORMAT = 1
RESIZE = "bicubic: tensors for training, PIL for validation"
PIXELS, FILES, STATE, LOCK = "images.bin", "files.txt", "cache.json", "cache.lock"
THREADS = 16  # that ask for sizes and times; a network file system takes long for each


@dataclass(frozen=True)
class CacheState:
    """The content of cache.json."""

    files: str  # SHA-256 of files.txt
    train: int  # number of training images
    validation: int  # number of validation images
    image_size: int  # S
    side: int  # of the squares
    written: int = 0  # images so far, those of training first
    unreadable: tuple[int, ...] = ()  # indices of training images; blank in images.bin
    format: int = FORMAT
    resize: str = field(default=RESIZE)

    @property
    def count(self) -> int:
        return self.train + self.validation

    def offset(self, index: int) -> int:
        """Return the position in images.bin, in bytes, at which image `index` starts."""
        train = min(index, self.train)
        return 3 * (train * self.side**2 + (index - train) * self.image_size**2)

    def source(self) -> dict:
        """Return what two caches of the same pixels have in common."""
        progress = ("written", "unreadable")
        return {key: value for key, value in asdict(self).items() if key not in progress}

    def partial_name(self) -> str:
        """Return the name of images.bin until it is complete.

        A worker that outlives a killed build must not write into the file of another build.
        """
        return f"{PIXELS}.{checksum(self.source())[:12]}.partial"

    def write(self, folder: Path) -> None:
        values = asdict(self)
        text = json.dumps(values | {"checksum": checksum(values)}, indent=1)
        write_atomically(folder / STATE, lambda file: file.write(text.encode()))


def checksum(values: dict) -> str:
    text = json.dumps(values, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()


def read_state(folder: Path) -> CacheState | None:
    """Return the state of the cache in `folder`; None if it is missing or damaged."""
    try:
        values = json.loads((folder / STATE).read_text())
        if values.pop("checksum") != checksum(values):
            return None
        return CacheState(**values | {"unreadable": tuple(values["unreadable"])})
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None


def describe_files(data: Path, sets: ImageSets) -> list[str]:
    """Return the lines of files.txt for the images of `data`."""
    paths = [os.fspath(path) for files in (sets.train, sets.validation) for path in files.paths]
    start = len(os.fspath(data / "name")) - len("name")

    def describe(chunk: list[str]) -> list[str]:
        return [describe_file(path, start) for path in chunk]

    chunks = (paths[first : first + 1000] for first in range(0, len(paths), 1000))
    with ThreadPoolExecutor(THREADS) as pool:
        return [line for lines in pool.map(describe, chunks) for line in lines]


def describe_file(path: str, start: int) -> str:
    """Return the line of a file, whose name is `path` from the character `start` on."""
    try:
        status = os.stat(path)
    except OSError:  # reading it fails too
        return f"? ? {path[start:]!r}"
    return f"{status.st_size} {status.st_mtime_ns} {path[start:]!r}"


def expected_state(lines: Iterable[str], sets: ImageSets) -> CacheState:
    """Return the state, before anything is written, of a cache of these images.

    Args:
        lines: of files.txt.
        sets: the images, not from a cache.
    """
    return CacheState(
        hashlib.sha256("\n".join(lines).encode("utf-8", "surrogateescape")).hexdigest(),
        len(sets.train),
        len(sets.validation),
        sets.train.transform.image_size,
        sets.train.transform.side,
    )


def partial_files(folder: Path) -> list[Path]:
    """Return the files of pixels that are not complete, also those of older versions."""
    return list(folder.glob(f"{PIXELS}.*partial"))


def write_error(folder: Path, error: OSError) -> UserError:
    reason = error.strerror or one_line(error, 150)
    return UserError(
        f"--cache {folder}: can't be written ({reason}); free some space or choose another "
        "folder; the same command continues"
    )


def open_pixels(folder: Path) -> tuple[CacheState, Tensor]:
    """Map a complete cache into memory.

    Returns:
        Its state, and images.bin as one row of bytes, which must not be written.
    """
    state = read_state(folder)
    try:
        pixels = np.memmap(folder / PIXELS, np.uint8, "r")
    except (OSError, ValueError) as error:
        raise UserError(f"--cache {folder}: can't be read ({error})") from error
    if state is None or len(pixels) != state.offset(state.count):
        raise UserError(f"--cache {folder}: damaged; delete {folder / PIXELS}")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # PyTorch warns of memory that can't be written
        return state, torch.from_numpy(pixels)
