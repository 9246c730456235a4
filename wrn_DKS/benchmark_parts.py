"""Parts of training that `benchmark.py` compares: a step, the data path, the loss, inference."""

import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from itertools import islice
from pathlib import Path
from statistics import median

import torch
from torch import Tensor, nn

import released_data
from command_line import DTYPES
from data import CIFAR_MEAN, CIFAR_STD, Dataset, Facts, Split
from engine import Trainer, count
from loader import AugmentedBatches, Batch
from metrics import Sums
from opponent import released_loss, released_step
from profiling import step_operations, step_row
from schedule import StepSchedule
from synergy import SynergyLoss
from timing import Row, Work, compare, timed
from wide_resnet import WideResNet

BOTH = ("float32", "bfloat16")
WEIGHT_DECAY = 5e-4  # the released code's
REPEATS = 20  # of what is too short to be timed by itself


@dataclass(frozen=True)
class Place:
    """Where it is measured, and how often."""

    device: torch.device
    rounds: int  # pairs of runs
    dataroot: Path | None


def training_step(depth: int, width: float, size: int, place: Place) -> Iterator[Row]:
    """A training step of DKS on `size` images."""
    device = place.device
    operations = step_operations(partial(WideResNet, depth, width, 100), (size, 3, 32, 32))
    what = f"training step, WRN-{depth}-{width:g} DKS, batch {size}"
    theirs = partial(their_step, depth, width, size, device)
    for dtype in BOTH:
        ours = partial(our_step, depth, width, size, dtype, device)
        row = step_row(what, dtype, (ours, theirs), operations, place.rounds, device)
        step_s = median(row.ours_s)
        row.shares["loss"] = loss_time(size, device) / step_s
        row.shares["data (not in the step)"] = data_time(size, device) / step_s
        yield row


def our_step(
    depth: int, width: float, size: int, dtype: str, device: torch.device
) -> tuple[nn.Module, Work]:
    """A network and a step that trains it as `main.py` does."""
    trainer = new_trainer(depth, width, 100, dtype, device)
    batch, sums = random_batch(size, device), Sums(device)

    def step() -> None:
        logits, losses = trainer.losses(batch)
        trainer.update(trainer.weigh(losses, batch))
        count(sums, batch, logits, losses)

    return trainer.model, step


def their_step(depth: int, width: float, size: int, device: torch.device) -> tuple[nn.Module, Work]:
    """The same network and a step of the released configuration."""
    torch.manual_seed(1)
    model = WideResNet(depth, width, 100)
    step, batch = released_step(model, WEIGHT_DECAY, device), random_batch(size, device)
    return model, lambda: step(batch.images, batch.labels)


def new_trainer(
    depth: int, width: float, classes: int, dtype: str, device: torch.device
) -> Trainer:
    torch.manual_seed(1)
    model, schedule = WideResNet(depth, width, classes), StepSchedule(0.1, (), 1.0)
    return Trainer(model, SynergyLoss(), schedule, WEIGHT_DECAY, DTYPES[dtype], device)


def random_batch(size: int, device: torch.device) -> Batch:
    images = torch.randn(size, 3, 32, 32, device=device)
    return Batch(images, torch.randint(100, (size,), device=device), 1.0)


def random_images(count: int) -> Dataset:
    """Noise in CIFAR-100's shape."""
    pixels = torch.randint(256, (count, 3, 32, 32), dtype=torch.uint8)
    split = Split(pixels, torch.randint(100, (count,)))
    return Dataset(split, split, Facts([], list(CIFAR_MEAN), list(CIFAR_STD)), flip=True)


def augmented(images: Dataset, size: int, device: torch.device) -> AugmentedBatches:
    return AugmentedBatches(images.train, images.facts, size, device, seed=1, flip=images.flip)


def data_time(size: int, device: torch.device) -> float:
    """Seconds that a batch of augmented, normalised images takes."""
    batches = augmented(random_images((REPEATS + 1) * size), size, device).epoch()
    next(batches)
    return timed(lambda: list(islice(batches, REPEATS)), device) / REPEATS


def data(place: Place) -> Iterator[Row]:
    """The data path alone: a training epoch of CIFAR's size, with nothing trained."""
    images, cores = random_images(50_000), os.cpu_count()
    ours = augmented(images, 128, place.device)
    transform = released_data.transform(images, train=True)
    theirs = released_data.loader(
        released_data.PilImages(images.train, transform), 128, workers=cores, train=True
    )
    sides = (partial(exhaust, ours.epoch), partial(exhaust, theirs.__iter__))
    times = compare(*sides, place.rounds, place.device)
    what = "augmented, normalised batches of 50,000 images, 32×32"
    yield Row(what, "float32", *times, f"released with {cores} worker processes")


def exhaust(start: Callable[[], Iterator]) -> None:
    for _ in start():
        pass


def loss_work(
    loss: Callable, classifiers: int, size: int, classes: int, device: torch.device
) -> Work:
    """Loss and gradients of random logits, `REPEATS` times."""
    shape = (size, classes)
    logits = [torch.randn(shape, device=device, requires_grad=True) for _ in range(classifiers)]
    labels = torch.randint(classes, (size,), device=device)

    def work() -> None:
        for _ in range(REPEATS):
            value = loss(logits, labels)
            (value if isinstance(value, Tensor) else value.total).backward()

    return work


def loss_time(size: int, device: torch.device) -> float:
    """Seconds that the loss of three classifiers and its gradients take."""
    work = loss_work(SynergyLoss(), 3, size, 100, device)
    work()
    return timed(work, device) / REPEATS


def loss(place: Place) -> Iterator[Row]:
    """The loss alone, and how it grows with the number of classifiers."""
    times = {}
    for classifiers in (3, 4, 16):
        sides = [
            loss_work(each, classifiers, 256, 1000, place.device)
            for each in (SynergyLoss(), released_loss)
        ]
        times[classifiers] = compare(*sides, place.rounds, place.device)
    ours, theirs = (
        median(many) / median(few) for many, few in zip(times[16], times[4], strict=True)
    )
    yield Row(
        "loss of 3 classifiers, batch 256, 1,000 classes, forward and backward",
        "float32",
        *times[3],
        f"time of 16 classifiers / of 4: {ours:.1f}; released {theirs:.1f}",
    )


@torch.no_grad()
def inference(place: Place) -> Iterator[Row]:
    """The backbone that training leaves against a network that never had branches."""
    backbone = WideResNet(16, 2, 100, branches=False)
    backbone.load_state_dict(WideResNet(16, 2, 100).backbone_state())
    model = backbone.eval().to(place.device, memory_format=torch.channels_last)
    plain = nn.Sequential(model.stem, *model.groups, model.classifier)
    images = random_batch(128, place.device).images.contiguous(memory_format=torch.channels_last)
    times = compare(partial(model, images), partial(plain, images), 4 * place.rounds, place.device)
    yield Row("inference, exported WRN-16-2 / plain WRN-16-2, batch 128", "float32", *times)
