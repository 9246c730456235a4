"""Datasets as uint8 tensors in memory: CIFAR, the bundled digits, and image folders."""

from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from cifar import CIFAR, provide_cifar
from common.command_line import UserError, plural
from common.distributed import print_once
from common.images import list_images, read_squares

# Normalization of the released code, for both CIFAR-10 and CIFAR-100.
CIFAR_MEAN = (125.3 / 255, 123.0 / 255, 113.9 / 255)
CIFAR_STD = (63.0 / 255, 62.1 / 255, 66.7 / 255)
IMAGE_SIZES = {"CIFAR100": 32, "CIFAR10": 32, "digits": 8, "folder": 32}  # side, in pixels
DIGITS = Path(__file__).with_name("digits.npz")
DIGITS_TRAIN = 1437  # the other 360 images are by different writers


class Split(NamedTuple):
    """Images (N, 3, S, S) uint8 and labels (N,) int64."""

    images: Tensor
    labels: Tensor


class DatasetInfo(NamedTuple):
    """Class names and normalization of a dataset; stored in checkpoints."""

    classes: list[str]  # names, in the order of the labels
    mean: list[float]  # per channel, of pixels scaled to [0, 1]
    std: list[float]


class Dataset(NamedTuple):
    """A dataset in memory. `train` is None if it was loaded for evaluation."""

    train: Split | None
    test: Split
    info: DatasetInfo
    flip: bool  # whether training may flip images horizontally


def load_dataset(
    name: str,
    dataroot: Path | None,
    image_size: int,
    workers: int,
    info: DatasetInfo | None = None,
) -> Dataset:
    """Load a dataset.

    Args:
        name: a key of `IMAGE_SIZES`.
        dataroot: folder of the CIFAR files, which are downloaded if missing, or the image folder.
            Not used for digits.
        image_size: side in pixels to which the images of a folder are resized.
        workers: number of threads that decode the images of a folder.
        info: that of a trained network. If given, load only the test images, with labels that
            index its classes.

    Raises:
        UserError: the data is missing or damaged or can't be downloaded, or the classes of the
            parts do not match.
    """
    with_train = info is None
    if name in CIFAR:
        splits, classes = load_cifar(name, dataroot, with_train)
    elif name == "digits":
        splits, classes = load_digits()
    else:
        splits, classes = load_folder(dataroot, image_size, workers, info and info.classes)
    if info is None:
        mean, std = (
            (CIFAR_MEAN, CIFAR_STD) if name in CIFAR else channel_statistics(splits["train"].images)
        )
        info = DatasetInfo(classes, list(mean), list(std))
    elif info.classes != classes:
        raise UserError(
            f"--dataset {name} has {len(classes)} classes starting with {classes[0]!r}, but the "
            f"network was trained on {len(info.classes)} starting with {info.classes[0]!r}; use "
            "the dataset it was trained on"
        )
    train = splits["train"] if with_train else None
    return Dataset(train, splits["test"], info, flip=name != "digits")


def load_cifar(name: str, root: Path, with_train: bool) -> tuple[dict[str, Split], list[str]]:
    """Load CIFAR-10 or CIFAR-100 from the official files in `root`; download missing files."""
    root = provide_cifar(name, root)
    splits = {}
    for part in ("train", "test") if with_train else ("test",):
        cifar = CIFAR[name](root, train=part == "train")
        pixels = torch.from_numpy(cifar.data).permute(0, 3, 1, 2).contiguous()
        splits[part] = Split(pixels, torch.tensor(cifar.targets))
    return splits, list(cifar.classes)


def load_digits() -> tuple[dict[str, Split], list[str]]:
    """Load the bundled UCI handwritten digits: grayscale, 8x8, values from 0 to 16."""
    with np.load(DIGITS) as file:
        images, labels = file["images"], file["labels"]
    gray = (images.astype(np.float32) * (255 / 16)).round().astype(np.uint8)
    pixels = torch.from_numpy(gray).unsqueeze(1).repeat(1, 3, 1, 1)
    targets = torch.from_numpy(labels.astype(np.int64))
    train = Split(pixels[:DIGITS_TRAIN], targets[:DIGITS_TRAIN])
    test = Split(pixels[DIGITS_TRAIN:], targets[DIGITS_TRAIN:])
    return {"train": train, "test": test}, [str(digit) for digit in range(10)]


def load_folder(
    root: Path, image_size: int, workers: int, trained_classes: list[str] | None
) -> tuple[dict[str, Split], list[str]]:
    """Load the images in `root`/train/<class> and `root`/test/<class> or `root`/val/<class>.

    Both folders are listed and their classes compared before any image is decoded. If
    `trained_classes` is given, only the test images are loaded.
    """
    test_folder = find_test_folder(root)
    listings = {} if trained_classes else {"train": list_images(root / "train")}
    listings["test"] = list_images(test_folder)
    classes = trained_classes or listings["train"].classes
    if len(classes) < 2:
        raise UserError(f"{root}: only one class, {classes[0]!r}; expected at least two")
    untrained = sorted(set(listings["test"].classes) - set(classes))
    if untrained:
        raise UserError(
            f"{root}: the test images have a class {untrained[0]!r} that is not among the "
            f"{len(classes)} training classes; remove its folder or add training images"
        )
    label_of = {name: label for label, name in enumerate(classes)}
    splits = {}
    for part, listing in listings.items():
        labels = [label_of[listing.classes[label]] for label in listing.labels]
        folder = f"{listing.paths[0].relative_to(root).parts[0]}/"
        if listing.num_skipped:
            skipped = plural(listing.num_skipped, "file")
            print_once(f"{folder}: skipped {skipped} without an image extension")
        images = read_squares(listing.paths, image_size, workers, f"reading {folder}")
        splits[part] = Split(images, torch.tensor(labels))
    return splits, classes


def find_test_folder(root: Path) -> Path:
    """Return `root`/test or `root`/val, whichever exists."""
    if not root.is_dir():
        raise UserError(
            f"--dataroot {root}: no such folder; give --dataroot DIR, with train/ and test/ in it"
        )
    folders = [root / name for name in ("test", "val") if (root / name).is_dir()]
    if len(folders) != 1:
        found = "both; remove one of them" if folders else "neither"
        raise UserError(f"--dataroot {root}: expected a folder test/ or val/ in it, found {found}")
    return folders[0]


def channel_statistics(images: Tensor) -> tuple[list[float], list[float]]:
    """Return the mean and standard deviation per channel of uint8 images (N, 3, S, S).

    Both are of pixels scaled to [0, 1].
    """
    values = torch.arange(256, dtype=torch.float64) / 255
    mean, std = [], []
    for channel in images.unbind(1):
        frequency = channel.reshape(-1).bincount(minlength=256).double() / channel.numel()
        mean.append(float(frequency @ values))
        std.append(float((frequency @ (values - mean[-1]).square()).sqrt()))
    return mean, std
