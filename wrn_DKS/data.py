"""Data sets as uint8 tensors in memory: CIFAR, the digits that ship, folders of images."""

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from PIL.Image import Resampling
from torch import Tensor
from torchvision import datasets
from tqdm import tqdm

from common.command_line import UserError, one_line
from common.distributed import main_process_first, print_once, rank
from common.images import ImageListing, list_images, read_rgb

CIFAR = {"CIFAR10": datasets.CIFAR10, "CIFAR100": datasets.CIFAR100}
# The released code's normalisation of both CIFAR sets.
CIFAR_MEAN = (125.3 / 255, 123.0 / 255, 113.9 / 255)
CIFAR_STD = (63.0 / 255, 62.1 / 255, 66.7 / 255)
IMAGE_SIZES = {"CIFAR100": 32, "CIFAR10": 32, "digits": 8, "folder": 32}  # side, in pixels
DIGITS = Path(__file__).with_name("digits.npz")
DIGITS_TRAIN = 1437  # the last 360 images are by other writers


class Split(NamedTuple):
    """Images (N, 3, S, S) uint8 and labels (N,) int64."""

    images: Tensor
    labels: Tensor


class DatasetInfo(NamedTuple):
    """What a trained network needs to know of its data; a checkpoint carries it."""

    classes: list[str]  # names in the order of the labels
    mean: list[float]  # per channel, of pixels in [0, 1]
    std: list[float]


class Dataset(NamedTuple):
    """A data set in memory; `train` is None where only an evaluation was asked for."""

    train: Split | None
    test: Split
    info: DatasetInfo
    flip: bool  # whether a mirrored image is as good as the image


def load_dataset(
    name: str,
    dataroot: Path | None,
    image_size: int,
    workers: int,
    info: DatasetInfo | None = None,
) -> Dataset:
    """Load a data set.

    Args:
        name: a key of `IMAGE_SIZES`.
        dataroot: where CIFAR is, or is to be downloaded to; or the folder of images. Digits
            need none.
        image_size: side in pixels to which the images of a folder are resized.
        workers: threads that decode a folder's images.
        info: given, only the test images are loaded, and labelled after its classes.

    Raises:
        UserError: the data are missing, damaged, can't be downloaded, or have classes that don't
            fit together.
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
            f"--dataset {name} has other classes than the network was trained on: "
            f"{len(classes)} from {classes[0]!r} on, expected {len(info.classes)} "
            f"from {info.classes[0]!r} on; choose the data it was trained on"
        )
    train = splits["train"] if with_train else None
    return Dataset(train, splits["test"], info, flip=name != "digits")


def load_cifar(name: str, root: Path, with_train: bool) -> tuple[dict[str, Split], list[str]]:
    """CIFAR-10 or CIFAR-100 from the official files in `root`, downloaded there if need be."""
    splits = {}
    for part in ("train", "test") if with_train else ("test",):
        try:
            with main_process_first():
                cifar = CIFAR[name](root, train=part == "train", download=rank() == 0)
        except (OSError, RuntimeError, ValueError, KeyError, EOFError) as error:
            archive = CIFAR[name].url
            raise UserError(
                f"{name} is not in {root} and can't be downloaded to it ({one_line(error, 150)}); "
                f"fetch {archive} and unpack it in {root}, or try --dataset digits, "
                "which needs no download"
            ) from error
        pixels = torch.from_numpy(cifar.data).permute(0, 3, 1, 2).contiguous()
        splits[part] = Split(pixels, torch.tensor(cifar.targets))
    return splits, list(cifar.classes)


def load_digits() -> tuple[dict[str, Split], list[str]]:
    """The UCI handwritten digits that lie beside this file: gray, 8x8, values 0 to 16."""
    with np.load(DIGITS) as file:
        images, labels = file["images"], file["labels"]
    gray = (images.astype(np.float32) * (255 / 16)).round().astype(np.uint8)
    pixels = torch.from_numpy(gray).unsqueeze(1).repeat(1, 3, 1, 1)
    targets = torch.from_numpy(labels.astype(np.int64))
    train = Split(pixels[:DIGITS_TRAIN], targets[:DIGITS_TRAIN])
    test = Split(pixels[DIGITS_TRAIN:], targets[DIGITS_TRAIN:])
    return {"train": train, "test": test}, [str(digit) for digit in range(10)]


def load_folder(
    root: Path, image_size: int, workers: int, known: list[str] | None
) -> tuple[dict[str, Split], list[str]]:
    """Images below `root`/train/<class> and `root`/test/<class> (or val), resized to a square.

    Both folders are listed, and their classes compared, before any image is read. Where the
    classes are `known`, the training images are not looked for.
    """
    tests = test_folder(root)
    listings = {} if known else {"train": list_images(root / "train")}
    listings["test"] = list_images(tests)
    classes = known or listings["train"].classes
    if len(classes) < 2:
        raise UserError(f"{root}: one class, {classes[0]!r}; a classifier needs at least two")
    strangers = sorted(set(listings["test"].classes) - set(classes))
    if strangers:
        raise UserError(
            f"{root}: the class {strangers[0]!r} of the test images is not among the "
            f"{len(classes)} classes trained on; remove its folder or train on it"
        )
    index = {name: label for label, name in enumerate(classes)}
    splits = {
        part: decode_images(listing, [index[name] for name in listing.classes], image_size, workers)
        for part, listing in listings.items()
    }
    return splits, classes


def test_folder(root: Path) -> Path:
    """`root`/test or `root`/val, whichever there is."""
    if not root.is_dir():
        raise UserError(f"--dataroot {root}: no such folder; expected one with train/ and test/")
    found = [root / name for name in ("test", "val") if (root / name).is_dir()]
    if len(found) != 1:
        raise UserError(
            f"--dataroot {root}: expected either test/ or val/ in it, found "
            f"{'both; remove the one that is not meant' if found else 'neither'}"
        )
    return found[0]


def decode_images(listing: ImageListing, index: list[int], image_size: int, workers: int) -> Split:
    """Read and resize (bicubic, antialiased) every image of a listing, with a progress bar."""
    size = (image_size, image_size)
    images = torch.empty(len(listing.paths), 3, *size, dtype=torch.uint8)

    def read(position: int) -> None:
        image = read_rgb(listing.paths[position]).resize(
            (image_size, image_size), Resampling.BICUBIC
        )
        images[position] = torch.from_numpy(np.array(image)).permute(2, 0, 1)

    folder = listing.paths[0].parents[1].name
    if listing.others:
        print_once(f"left out in {folder}/, since no image: {listing.others} file(s)")
    with ThreadPoolExecutor(workers) as pool:
        done = pool.map(read, range(len(images)))
        show = None if rank() == 0 else True  # None: where there is a terminal
        for _ in tqdm(done, f"reading {folder}/", len(images), leave=False, disable=show):
            pass
    return Split(images, torch.tensor([index[label] for label in listing.labels]))


def channel_statistics(images: Tensor) -> tuple[list[float], list[float]]:
    """Per-channel mean and standard deviation of uint8 images (N, 3, S, S), as of [0, 1]."""
    values = torch.arange(256, dtype=torch.float64) / 255
    mean, std = [], []
    for channel in images.unbind(1):
        share = channel.reshape(-1).bincount(minlength=256).double() / channel.numel()
        mean.append(float(share @ values))
        std.append(float((share @ (values - mean[-1]).square()).sqrt()))
    return mean, std
