"""Compare wrn_DKS/ with the released configuration, side by side on this machine.

    python benchmarks/cifar.py
    python benchmarks/cifar.py --row wrn-28-10 digits
    python benchmarks/cifar.py --row folder --data PATH       PATH contains train/ and val/ or test/

`released / ours` is the time of the released configuration divided by ours: the median over pairs
of runs, the lowest and the highest. The released configuration is float32 in NCHW, a loss of two
nested loops, and PIL images in a DataLoader whose workers start again at each epoch.
"""

import os
import sys
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

sys.path.insert(1, str(Path(__file__).parents[1] / "wrn_DKS"))  # after the folder of this file

import torch
from PIL import Image
from torch import Tensor, nn
from torch.utils.data import DataLoader
from torchvision import datasets, transforms

import timing
from common.command_line import run_script
from common.engine import Trainer
from common.images import find_test_folder
from common.logs import Progress
from common.schedule import Mixing
from data import AugmentedBatches, Batches, Dataset, Split, load_dataset
from flags import Config
from steps import make_trainer, random_batch, released_loss, released_step, step_rows
from timing import DTYPES, Row, Setup, Work, compare
from weights import choose_compute
from wide_resnet import WideResNet

WEIGHT_DECAY = 5e-4  # the released code's


def training_step(depth: int, width: float, batch_size: int, setup: Setup) -> Iterator[Row]:
    """Compare training steps of DKS."""
    sizes = depth, width, batch_size, setup.device
    what = f"training step, WRN-{depth}-{width:g} DKS, batch {batch_size}"
    ours, released = partial(partial, our_step, *sizes), partial(released_training_step, *sizes)
    yield from step_rows(what, ours, released, setup)


def our_step(
    depth: int, width: float, batch_size: int, device: torch.device, dtype: str
) -> tuple[nn.Module, Work]:
    """Return a network and a function that trains it one step as in `main.py`."""
    trainer = new_trainer(depth, width, 100, dtype, device)
    return trainer.model, partial(trainer.train_step, random_batch((batch_size, 3, 32, 32), device))


def released_training_step(
    depth: int, width: float, batch_size: int, device: torch.device
) -> tuple[nn.Module, Work]:
    """Return the same network and a function that trains it as the released code does."""
    torch.manual_seed(1)
    model = WideResNet(depth, width, 100)
    images, labels, _ = random_batch((batch_size, 3, 32, 32), device)
    return model, partial(released_step(model, WEIGHT_DECAY, device), images, labels)


def new_trainer(
    depth: int, width: float, num_classes: int, dtype: str, device: torch.device
) -> Trainer:
    torch.manual_seed(1)
    model = WideResNet(depth, width, num_classes)
    return make_trainer(model, choose_compute(Config(dtype=dtype), model, device), WEIGHT_DECAY)


def digits(setup: Setup) -> Iterator[Row]:
    """Compare epochs of `make demo`."""
    data = load_dataset("digits", Path(), 8, 1)
    released = {part: partial(PilImages, getattr(data, part)) for part in ("train", "test")}
    yield from epochs("digits", data, released, 2, 32, setup)


def folder(setup: Setup) -> Iterator[Row]:
    """Compare epochs of `--dataset folder`; ours reads the images once, before the first epoch."""
    data = load_dataset("folder", setup.data, 32, os.cpu_count())
    folders = {"train": setup.data / "train", "test": find_test_folder(setup.data)}
    resize = transforms.Resize((32, 32), transforms.InterpolationMode.BICUBIC)

    def images(folder: Path, transform: Callable) -> datasets.ImageFolder:
        return datasets.ImageFolder(folder, transforms.Compose([resize, transform]))

    released = {part: partial(images, path) for part, path in folders.items()}
    yield from epochs("folder", data, released, 1, 128, setup)


def epochs(
    name: str,
    data: Dataset,
    released: dict[str, Callable],
    width: float,
    batch_size: int,
    setup: Setup,
) -> Iterator[Row]:
    """Compare epochs of WRN-10-`width` with DKS, training and test, on the same images.

    `released` returns the images of a part that a transform has been applied to.
    """
    classes, device = len(data.classes), setup.device
    loaders = {
        part: released_loader(make(released_transform(data, part)), part, batch_size, setup.workers)
        for part, make in released.items()
    }
    theirs = released_epoch(WideResNet(10, width, classes), loaders, device)
    sizes = f"{len(data.train.labels):,} + {len(data.test.labels):,} images"
    what = f"epoch of {name}, {sizes}, WRN-10-{width:g} DKS, batch {batch_size}"
    train, test = augmented(data, batch_size, device), Batches(data.test, data, batch_size, device)
    for dtype in DTYPES:
        ours = partial(our_epoch, new_trainer(10, width, classes, dtype, device), train, test)
        yield Row(what, dtype, *compare(ours, theirs, setup))


def our_epoch(trainer: Trainer, train: AugmentedBatches, test: Batches) -> None:
    """Train and test as in `main.py`."""
    trainer.train_epoch(train, Progress("ours", train.steps), lambda: None)
    trainer.test(test, lambda: None)
    trainer.finish_epoch()


def released_epoch(model: nn.Module, loaders: dict[str, DataLoader], device: torch.device) -> Work:
    """Return a function that trains and tests in the released configuration."""
    step = released_step(model, WEIGHT_DECAY, device)

    @torch.no_grad()
    def test(images: Tensor, labels: Tensor) -> tuple[float, int]:
        logits, labels = model(images.to(device)), labels.to(device)
        loss = released_loss(logits, labels).item()
        return loss, int((logits[0].argmax(1) == labels).sum())

    def work() -> None:
        model.train()
        for images, labels in loaders["train"]:
            step(images, labels)
        model.eval()
        for images, labels in loaders["test"]:
            test(images, labels)

    return work


class PilImages(torch.utils.data.Dataset):
    """A split whose images are transformed one by one as PIL images, as in torchvision's CIFAR."""

    def __init__(self, split: Split, transform: Callable[[Image.Image], Tensor]):
        self._pixels = split.images.permute(0, 2, 3, 1).numpy()
        self._labels = split.labels.tolist()
        self._transform = transform

    def __len__(self) -> int:
        return len(self._labels)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return self._transform(Image.fromarray(self._pixels[index])), self._labels[index]


def released_transform(data: Dataset, part: str) -> transforms.Compose:
    """Return the transform: for `train` reflection padding, flip and crop; then normalization."""
    size = data.train.images.shape[-1]
    augmentation = [
        transforms.Pad(size // 8, padding_mode="reflect"),
        *([transforms.RandomHorizontalFlip()] if data.flip else []),
        transforms.RandomCrop(size),
    ]
    normalization = [transforms.ToTensor(), transforms.Normalize(data.mean, data.std)]
    return transforms.Compose([*(augmentation if part == "train" else []), *normalization])


def released_loader(
    images: torch.utils.data.Dataset, part: str, batch_size: int, workers: int
) -> DataLoader:
    return DataLoader(
        images,
        batch_size,
        shuffle=part == "train",
        num_workers=workers,
        pin_memory=torch.cuda.is_available(),  # as released
    )


def augmented(data: Dataset, batch_size: int, device: torch.device) -> AugmentedBatches:
    return AugmentedBatches(data, batch_size, device, 1, Mixing(0, 0, len(data.classes), 1))


ROWS = {
    "wrn-28-10": partial(training_step, 28, 10, 32),
    "wrn-16-2": partial(training_step, 16, 2, 128),
    "digits": digits,
    "folder": folder,
}

if __name__ == "__main__":
    run_script(partial(timing.main, "benchmarks/cifar.py", ROWS, ["folder"]))
