"""Whole epochs, training and test, that `benchmark.py` compares."""

import os
from collections.abc import Callable, Iterator, Mapping
from itertools import count

import torch
from PIL import Image
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

import released_data
from benchmark_parts import BOTH, WEIGHT_DECAY, Place, new_trainer
from data import Dataset as Images
from data import load_dataset, test_folder
from engine import Trainer
from loader import AugmentedBatches, Batches
from opponent import released_loss, released_step
from progress import Progress
from timing import Row, Work, compare
from wide_resnet import WideResNet

MOST_WORKERS = 4  # that load images; the released code's default
Transform = Callable[[Image.Image], Tensor]


def digits(place: Place) -> Iterator[Row]:
    """Epochs of `make demo`."""
    images = load_dataset("digits", None, 8, 1)

    def theirs(part: str, transform: Transform) -> Dataset:
        return released_data.PilImages(getattr(images, part), transform)

    yield from epochs("digits", images, theirs, 2, 32, place)


def folder(place: Place) -> Iterator[Row]:
    """Epochs of `--dataset folder`; ours has read the images once, before the first."""
    images = load_dataset("folder", place.dataroot, 32, os.cpu_count())
    folders = {"train": place.dataroot / "train", "test": test_folder(place.dataroot)}

    def theirs(part: str, transform: Transform) -> Dataset:
        return released_data.folder_images(folders[part], 32, transform)

    yield from epochs("folder", images, theirs, 1, 128, place)


def epochs(
    name: str,
    images: Images,
    their_images: Callable[[str, Transform], Dataset],
    width: float,
    batch_size: int,
    place: Place,
) -> Iterator[Row]:
    """Compare epochs of WRN-10-`width` with DKS on the same images."""
    classes, device = len(images.facts.classes), place.device
    loaders = {
        part: released_data.loader(
            their_images(part, released_data.transform(images, train=part == "train")),
            batch_size,
            min(MOST_WORKERS, os.cpu_count()),
            train=part == "train",
        )
        for part in ("train", "test")
    }
    theirs = their_epoch(WideResNet(10, width, classes), loaders, device)
    sizes = f"{len(images.train.labels):,} + {len(images.test.labels):,} images"
    for dtype in BOTH:
        ours = our_epoch(new_trainer(10, width, classes, dtype, device), images, batch_size)
        what = f"epoch of {name}, {sizes}, WRN-10-{width:g} DKS, batch {batch_size}"
        yield Row(what, dtype, *compare(ours, theirs, place.rounds, device))


def our_epoch(trainer: Trainer, images: Images, batch_size: int) -> Work:
    """Training and test as `main.py` does them."""
    common = (images.facts, batch_size, trainer.device)
    train = AugmentedBatches(images.train, *common, seed=1, flip=images.flip)
    test = Batches(images.test, *common)
    numbers = count()

    def work() -> None:
        epoch = next(numbers)
        trainer.train_epoch(train, epoch, Progress("ours", len(train)), seed=1)
        trainer.evaluate(test)

    return work


def their_epoch(model: nn.Module, loaders: Mapping[str, DataLoader], device: torch.device) -> Work:
    """Training and test in the released configuration."""
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
