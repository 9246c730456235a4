"""The rows of cifar.py that compare whole epochs, training and test."""

import os
from collections.abc import Callable, Iterator, Mapping
from itertools import count

import torch
from PIL import Image
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from benchmarks import released_data
from benchmarks.cifar_parts import WEIGHT_DECAY, new_trainer
from benchmarks.released import released_loss, released_step
from benchmarks.runner import MEASURED_DTYPES, BenchmarkSetup
from benchmarks.timing import Row, Work, compare
from common.progress import Progress
from data import Dataset as TensorDataset
from data import find_test_folder, load_dataset
from engine import Trainer
from loader import AugmentedBatches, Batches
from wide_resnet import WideResNet

Transform = Callable[[Image.Image], Tensor]


def digits(setup: BenchmarkSetup) -> Iterator[Row]:
    """Compare epochs of `make demo`."""
    images = load_dataset("digits", None, 8, 1)

    def released(part: str, transform: Transform) -> Dataset:
        return released_data.PilImages(getattr(images, part), transform)

    yield from epochs("digits", images, released, 2, 32, setup)


def folder(setup: BenchmarkSetup) -> Iterator[Row]:
    """Compare epochs of `--dataset folder`; ours reads the images once, before the first epoch."""
    images = load_dataset("folder", setup.data, 32, os.cpu_count())
    folders = {"train": setup.data / "train", "test": find_test_folder(setup.data)}

    def released(part: str, transform: Transform) -> Dataset:
        return released_data.folder_images(folders[part], 32, transform)

    yield from epochs("folder", images, released, 1, 128, setup)


def epochs(
    name: str,
    images: TensorDataset,
    released_images: Callable[[str, Transform], Dataset],
    width: float,
    batch_size: int,
    setup: BenchmarkSetup,
) -> Iterator[Row]:
    """Compare epochs of WRN-10-`width` with DKS on the same images."""
    num_classes, device = len(images.info.classes), setup.device
    loaders = {
        part: released_data.loader(
            released_images(part, released_data.transform(images, train=part == "train")),
            batch_size,
            setup.workers,
            train=part == "train",
        )
        for part in ("train", "test")
    }
    released = released_epoch(WideResNet(10, width, num_classes), loaders, device)
    sizes = f"{len(images.train.labels):,} + {len(images.test.labels):,} images"
    what = f"epoch of {name}, {sizes}, WRN-10-{width:g} DKS, batch {batch_size}"
    for dtype in MEASURED_DTYPES:
        trainer = new_trainer(10, width, num_classes, dtype, device)
        ours = our_epoch(trainer, images, batch_size)
        yield Row(what, dtype, *compare(ours, released, setup.rounds, device))


def our_epoch(trainer: Trainer, images: TensorDataset, batch_size: int) -> Work:
    """Return a function that trains and tests as in `main.py`."""
    common = (images.info, batch_size, trainer.device)
    train = AugmentedBatches(images.train, *common, seed=1, flip=images.flip)
    test = Batches(images.test, *common)
    numbers = count()

    def work() -> None:
        trainer.train_epoch(train, next(numbers), Progress("ours", len(train)), seed=1)
        trainer.evaluate(test)

    return work


def released_epoch(
    model: nn.Module, loaders: Mapping[str, DataLoader], device: torch.device
) -> Work:
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
