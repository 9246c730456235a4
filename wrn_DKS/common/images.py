"""Image files: which ones a folder holds, and their pixels."""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image
from torchvision.datasets.folder import IMG_EXTENSIONS

from .command_line import UserError, one_line


class ImageListing(NamedTuple):
    """The images of a folder with one subfolder a class."""

    classes: list[str]  # names of the subfolders, sorted
    paths: list[Path]  # in the order of torchvision's ImageFolder
    labels: list[int]  # index into `classes` of each path
    others: int  # files of other kinds, which are left out


def list_images(folder: Path) -> ImageListing:
    """Find `folder/<class>/**/<image>`, with the files and the order of torchvision's ImageFolder.

    Raises:
        UserError: the folder is missing, has no subfolder, or a class has no image.
    """
    if not folder.is_dir():
        raise UserError(f"{folder}: no such folder; expected one with a subfolder a class")
    classes = sorted(entry.name for entry in os.scandir(folder) if entry.is_dir())
    if not classes:
        raise UserError(f"{folder}: no subfolders; expected one for each class, with its images")
    paths, labels, others = [], [], 0
    for label, name in enumerate(classes):
        found = [Path(path) for path in walk(folder / name)]
        images = [path for path in found if path.suffix.lower() in IMG_EXTENSIONS]
        if not images:
            raise UserError(
                f"{folder / name}: no image in this class; add some or remove the folder"
            )
        paths += images
        labels += [label] * len(images)
        others += len(found) - len(images)
    return ImageListing(classes, paths, labels, others)


def walk(folder: Path) -> Iterator[str]:
    """The paths of all files below `folder`, links followed, a loop of links entered once."""
    visited = set()
    found = []
    for root, folders, files in os.walk(folder, followlinks=True):
        real = os.path.realpath(root)
        if real in visited:
            folders.clear()
            continue
        visited.add(real)
        found.append((root, sorted(files)))
    for root, files in sorted(found):
        yield from (os.path.join(root, file) for file in files)


def read_rgb(path: Path) -> Image.Image:
    """Decode an image as PIL's conversion to RGB gives it; EXIF rotation is not applied.

    16-bit gray, which that conversion would clip to white, is scaled to 8 bits.

    Raises:
        UserError: the file can't be opened or decoded; the message begins with its path.
    """
    try:
        with Image.open(path) as image:
            # PIL itself only warns of files that claim more pixels than any photograph has.
            if image.width * image.height > Image.MAX_IMAGE_PIXELS:
                raise ValueError(f"{image.width} x {image.height} pixels, as none has")
            if image.mode.startswith("I"):  # I;16 and its kin, or I where PIL widens them
                gray = np.asarray(image).astype(np.float64) / 257  # 65535 / 255
                image = Image.fromarray(gray.clip(0, 255).round().astype(np.uint8))
            return image.convert("RGB")
    except FileNotFoundError as error:
        raise UserError(f"{path}: no such file; give the path of an image") from error
    except Exception as error:  # decoders raise nearly anything on damaged files
        raise UserError(
            f"{path}: not an image that can be read ({one_line(error, 150)})"
        ) from error
