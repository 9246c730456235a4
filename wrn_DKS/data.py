"""Small images in memory: CIFAR, the included digits, and folders; and their batches.

The whole data set is on the device. Batches are shuffled, augmented and normalized there.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torchvision import datasets

from common.command_line import UserError, one_line, plural
from common.distributed import first_on_node, print_once, shard, steps_per_epoch, world_size
from common.evaluation import Batch
from common.images import check_classes, find_test_folder, hash_lines, list_images, read_squares
from common.schedule import Mixing, derived_seed

# Normalization of the released code, for both CIFAR-10 and CIFAR-100.
CIFAR_MEAN = [125.3 / 255, 123.0 / 255, 113.9 / 255]
CIFAR_STD = [63.0 / 255, 62.1 / 255, 66.7 / 255]
CIFAR = {"CIFAR10": datasets.CIFAR10, "CIFAR100": datasets.CIFAR100}
DIGITS = Path(__file__).with_name("digits.npz")
DIGITS_TRAIN = 1437  # the other 360 images are by different writers


class Split(NamedTuple):
    """Images (N, 3, S, S) uint8 and labels (N,) int64."""

    images: Tensor
    labels: Tensor


class Dataset(NamedTuple):
    """A data set in memory. `train` is None if only the test images were loaded."""

    train: Split | None
    test: Split
    classes: list[str]  # names, in the order of the labels
    mean: list[float]  # per channel, of pixels scaled to [0, 1]
    std: list[float]
    flip: bool  # whether training may flip images horizontally
    identity: str  # differs between data sets


def load_dataset(
    name: str, root: Path, image_size: int, workers: int, trained: dict | None = None
) -> Dataset:
    """Load a data set, and print how many classes and images it has.

    Args:
        name: CIFAR100, CIFAR10, digits or folder.
        root: folder of the CIFAR files, which are downloaded if missing, or of images.
        image_size: side in pixels to which the images of a folder are resized.
        workers: threads that decode the images of a folder.
        trained: metadata of a trained network, with `classes`, `mean` and `std`. If given, load
            only the test images, with labels that index its classes.
    """
    known = trained and trained["classes"]
    if name == "folder":
        data = load_folder(root, image_size, workers, known)
    else:
        data = load_digits() if name == "digits" else load_cifar(name, root)
        train, test = len(data.train.labels), len(data.test.labels)
        found = plural(len(data.classes), "class")
        print_once(f"{name}: {train:,} training and {test:,} test images of {found}")
    if trained and data.classes != known:
        raise UserError(
            f"--dataset {name}: the network was trained on {plural(len(known), 'class')} such as "
            f"{known[0]!r}, not on these {len(data.classes)} such as {data.classes[0]!r}"
        )
    return data._replace(mean=trained["mean"], std=trained["std"]) if trained else data


def load_cifar(name: str, root: Path) -> Dataset:
    """Load CIFAR from the official files in `root`, which torchvision downloads and verifies."""
    cifar = CIFAR[name]
    if (root / "train").is_dir() and not (root / cifar.base_folder).exists():
        raise UserError(f"--dataroot {root}: a folder of images; add --dataset folder")
    try:
        with first_on_node() as first:
            train, test = (cifar(root, train, download=first) for train in (True, False))
    except (OSError, RuntimeError, ValueError, EOFError) as error:
        raise UserError(
            f"{name} is not in {root} and can't be downloaded ({one_line(error, 150)}); download "
            f"{cifar.url} and unpack it there, or use --dataset digits, which needs no download"
        ) from error
    splits = []
    for part in (train, test):
        pixels = torch.from_numpy(part.data).permute(0, 3, 1, 2).contiguous()
        splits.append(Split(pixels, torch.tensor(part.targets)))
    return Dataset(*splits, list(test.classes), CIFAR_MEAN, CIFAR_STD, flip=True, identity=name)


def load_digits() -> Dataset:
    """Load the included UCI handwritten digits: grayscale, 8x8, values from 0 to 16."""
    with np.load(DIGITS) as file:
        images, labels = file["images"], torch.from_numpy(file["labels"].astype(np.int64))
    gray = (images.astype(np.float32) * (255 / 16)).round().astype(np.uint8)
    pixels = torch.from_numpy(gray).unsqueeze(1).repeat(1, 3, 1, 1)
    train = Split(pixels[:DIGITS_TRAIN], labels[:DIGITS_TRAIN])
    test = Split(pixels[DIGITS_TRAIN:], labels[DIGITS_TRAIN:])
    classes, (mean, std) = [str(digit) for digit in range(10)], channel_statistics(train.images)
    return Dataset(train, test, classes, mean, std, flip=False, identity="digits")


def load_folder(
    root: Path, image_size: int, workers: int, trained_classes: list[str] | None
) -> Dataset:
    """Load the images in `root/train/<class>` and in the test folder; see `find_test_folder`.

    Both are listed and their classes compared before any image is decoded. If `trained_classes` is
    given, only the test images are loaded, and there are no statistics.
    """
    listings = [list_images(find_test_folder(root))]
    if trained_classes is None:
        listings.insert(0, list_images(root / "train"))
    classes = trained_classes or listings[0].classes
    check_classes(classes, listings[-1].classes, root)
    splits = []
    for listing in listings:
        own = torch.tensor([classes.index(name) for name in listing.classes])
        images = read_squares(listing.paths, image_size, workers)
        splits.append(Split(images, own[torch.from_numpy(listing.labels)]))
    train, test = splits if trained_classes is None else (None, *splits)
    mean, std = channel_statistics(train.images) if train else ([], [])
    identity = hash_lines(listing.identity for listing in listings)
    return Dataset(train, test, classes, mean, std, flip=True, identity=identity)


def channel_statistics(images: Tensor) -> tuple[list[float], list[float]]:
    """Return the mean and standard deviation per channel of uint8 images, scaled to [0, 1]."""
    values = torch.arange(256, dtype=torch.float64) / 255
    mean, std = [], []
    for channel in images.unbind(1):
        frequency = channel.reshape(-1).bincount(minlength=256).double() / channel.numel()
        mean.append(float(frequency @ values))
        std.append(float((frequency @ (values - mean[-1]).square()).sqrt()))
    return mean, std


class Batches:
    """This process's part of the images in their stored order, in batches.

    Args:
        split: images and labels; copied to the device.
        data: has the mean and standard deviation for normalization.
        batch_size: total batch size over all processes.
        device: of the split and the batches.
    """

    def __init__(self, split: Split, data: Dataset, batch_size: int, device: torch.device):
        self.images, self.labels = split.images.to(device), split.labels.to(device)
        self.batch_size, self.device = batch_size, device
        self._own, self._size = shard(len(split.labels)), -(-batch_size // world_size())
        self._mean = torch.tensor(data.mean, device=device).view(3, 1, 1) * 255
        scale = torch.tensor(data.std, device=device).view(3, 1, 1) * 255
        self._scale = 1 / scale.clamp_min(1)  # avoids NaN for constant channels

    def __len__(self) -> int:
        return -(-(self._own.stop - self._own.start) // self._size)

    def __iter__(self) -> Iterator[Batch]:
        parts = (each[self._own].split(self._size) for each in (self.images, self.labels))
        for images, labels in zip(*parts, strict=True):
            yield Batch(self.normalize(images), labels, len(labels) * world_size())

    def normalize(self, images: Tensor) -> Tensor:
        return images.float().sub_(self._mean).mul_(self._scale)


class AugmentedBatches(Batches):
    """Training batches: shuffled, with random crops and horizontal flips.

    As in the released code, images are padded by reflection (by an eighth of the side, which is 4
    pixels at 32x32), cropped to their size, and flipped with probability 1/2. Order and
    augmentation are functions of the seed and the epoch, for any number of processes.

    Args:
        data: of the training images.
        batch_size, device: see `Batches`.
        seed: random seed.
        mixing: mixes pairs of images of a batch, if it is not empty.
    """

    def __init__(
        self, data: Dataset, batch_size: int, device: torch.device, seed: int, mixing: Mixing
    ):
        super().__init__(data.train, data, batch_size, device)
        self._seed, self._flip, self._mixing = seed, data.flip, mixing
        count, size = len(self.labels), self.images.shape[-1]
        self.steps = steps_per_epoch(count, batch_size)
        padding = size // 8
        index = torch.arange(-padding, size + padding, device=device).abs()
        index = torch.minimum(index, 2 * (size - 1) - index)  # reflected at both ends
        padded = self.images[:, :, index][:, :, :, index]
        # A view of every possible crop: (N, 3, top, left, S, S).
        self._crops = padded.unfold(2, size, 1).unfold(3, size, 1)

    def epoch(self, epoch: int, first_step: int = 0) -> Iterator[Batch]:
        """Yield the batches of `epoch` (0-based) from `first_step` on."""
        generator = torch.Generator().manual_seed(derived_seed(self._seed, epoch))
        count, offsets = len(self.labels), self._crops.shape[2]
        order = torch.randperm(count, generator=generator).to(self.device)
        tops, lefts = torch.randint(offsets, (2, count), generator=generator).to(self.device)
        flips = (torch.rand(count, generator=generator) < 0.5).to(self.device)
        for step in range(first_step, self.steps):
            batch = order[step * self.batch_size : (step + 1) * self.batch_size]
            own = shard(len(batch))
            index = batch[own]
            if self._mixing:
                index = torch.cat((batch[own.start - 1].view(1), index))
            images = self._crops[index, :, tops[index], lefts[index]]
            if self._flip:
                images = torch.where(flips[index].view(-1, 1, 1, 1), images.flip(3), images)
            images, labels = self.normalize(images), self.labels[index]
            if self._mixing:
                images, labels = self._mixing(images, labels, epoch, step)
            yield Batch(images, labels, len(batch))
