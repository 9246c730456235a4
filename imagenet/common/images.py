"""Image files: which ones a folder contains, and how they are decoded."""

import contextlib
import errno
import io
import os
import sys
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image, UnidentifiedImageError
from torch import Tensor
from torchvision.datasets.folder import IMG_EXTENSIONS
from tqdm import tqdm

from .command_line import UserError, one_line
from .distributed import rank
from .signals import check_signals

RETRY_PAUSES_S = (0.25, 1.0, 4.0)  # before each further attempt to read a file


class ImageListing(NamedTuple):
    """The images of a folder with one subfolder per class."""

    classes: list[str]  # names of the subfolders, sorted
    paths: list[Path]  # in the order of torchvision's ImageFolder
    labels: list[int]  # index into `classes` for each path
    num_skipped: int  # files without an image extension


def list_images(folder: Path) -> ImageListing:
    """List `folder/<class>/**/<image>`: the files of torchvision's ImageFolder, in its order.

    Raises:
        UserError: the folder is missing or has no subfolders, or a class has no images.
    """
    if not folder.is_dir():
        raise UserError(f"{folder}: no such folder; expected one with a subfolder per class")
    classes = sorted(entry.name for entry in os.scandir(folder) if entry.is_dir())
    if not classes:
        raise UserError(f"{folder}: no subfolders; expected one per class, with its images")
    paths, labels, num_skipped = [], [], 0
    for label, name in enumerate(classes):
        files = [Path(path) for path in list_files(folder / name)]
        images = [path for path in files if path.suffix.lower() in IMG_EXTENSIONS]
        if not images:
            raise UserError(
                f"{folder / name}: no image in this class; add some or remove the folder"
            )
        paths += images
        labels += [label] * len(images)
        num_skipped += len(files) - len(images)
    return ImageListing(classes, paths, labels, num_skipped)


def list_files(folder: Path) -> Iterator[str]:
    """Yield the paths of all files below `folder`. Follow links, but visit each folder once."""
    visited = set()
    contents = []
    for root, folders, files in os.walk(folder, followlinks=True):
        real_path = os.path.realpath(root)
        if real_path in visited:
            folders.clear()
            continue
        visited.add(real_path)
        contents.append((root, sorted(files)))
    for root, files in sorted(contents):
        yield from (os.path.join(root, file) for file in files)


def read_file(path: Path) -> bytes:
    """Read a file. Try again after errors that can pass, as those of network file systems do.

    Raises:
        OSError: the file can't be read, after the last attempt or for a lasting reason.
    """
    for pause_s in RETRY_PAUSES_S:
        try:
            return path.read_bytes()
        except (FileNotFoundError, PermissionError, IsADirectoryError, NotADirectoryError):
            raise
        except OSError as error:
            if error.errno == errno.ELOOP:  # a loop of links
                raise
            reason = error.strerror or one_line(error, 150)
            print(f"{path}: {reason}; trying again in {pause_s:g} s", file=sys.stderr)
            time.sleep(pause_s)
    return path.read_bytes()


def read_rgb(path: Path) -> Image.Image:
    """Decode an image and convert it to RGB with PIL, without applying EXIF rotation.

    16-bit grayscale, which PIL would clip to white, is scaled to 8 bits instead.

    Raises:
        UserError: the file can't be read (see `read_file`) or decoded; the message begins with
            its path.
    """
    with image_errors(path):
        return decode_rgb(read_file(path))


@contextlib.contextmanager
def image_errors(path: Path) -> Iterator[None]:
    """Turn whatever the block raises while it reads an image into a `UserError`."""
    try:
        yield
    except FileNotFoundError as error:
        raise UserError(f"{path}: no such file; give the path of an image") from error
    except UnidentifiedImageError as error:  # whose message names the buffer
        raise UserError(
            f"{path}: not an image that can be read (unknown format); repair or remove it"
        ) from error
    except Exception as error:  # a decoder can raise almost any exception on a damaged file
        if isinstance(error, OSError) and error.strerror:  # the file may be undamaged
            raise UserError(
                f"{path}: can't be read ({error.strerror}); check its disk and its permissions"
            ) from error
        raise UserError(
            f"{path}: not an image that can be read ({one_line(error, 150)}); repair or remove it"
        ) from error


def open_image(data: bytes) -> Image.Image:
    """Read the header of an image. Raise `ValueError` for a decompression bomb."""
    image = Image.open(io.BytesIO(data))
    # PIL itself only warns about decompression bombs.
    if image.width * image.height > Image.MAX_IMAGE_PIXELS:
        raise ValueError(
            f"{image.width} x {image.height} pixels, the limit is {Image.MAX_IMAGE_PIXELS}"
        )
    return image


def decode_rgb(data: bytes) -> Image.Image:
    """Decode the content of an image file; see `read_rgb`."""
    with open_image(data) as image:
        if image.mode.startswith("I"):  # I;16 and its variants, or I in some PIL versions
            gray = np.asarray(image).astype(np.float64) / 257  # 65535 / 255
            image = Image.fromarray(gray.clip(0, 255).round().astype(np.uint8))
        if image.mode != "RGB":
            return image.convert("RGB")
        image.load()
        return image


def read_squares(paths: Sequence[Path], side: int, workers: int, description: str) -> Tensor:
    """Decode images with several threads and resize them to squares (bicubic).

    Returns:
        (N, 3, side, side) uint8.

    Raises:
        UserError: an image can't be read.
    """
    images = torch.empty(len(paths), 3, side, side, dtype=torch.uint8)

    def read(index: int) -> None:
        image = read_rgb(paths[index]).resize((side, side), Image.Resampling.BICUBIC)
        images[index] = torch.from_numpy(np.array(image)).permute(2, 0, 1)

    with ThreadPoolExecutor(workers) as pool:
        done = pool.map(read, range(len(paths)))
        disable = None if rank() == 0 else True  # None: show the bar in terminals only
        try:
            for _ in tqdm(done, description, len(paths), leave=False, disable=disable):
                check_signals()
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise
    return images
