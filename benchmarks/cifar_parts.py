"""The rows of cifar.py that compare parts of training: step, data path, loss, inference."""

import os
from collections.abc import Callable, Iterator
from functools import partial
from itertools import islice
from statistics import median

import torch
from torch import Tensor, nn

from benchmarks import released_data
from benchmarks.profiling import step_operations, step_row
from benchmarks.released import released_loss, released_step
from benchmarks.runner import MEASURED_DTYPES, BenchmarkSetup
from benchmarks.timing import Row, Work, compare, timed
from common.metrics import MetricSums
from data import CIFAR_MEAN, CIFAR_STD, Dataset, DatasetInfo, Split
from engine import Trainer, accumulate
from loader import AugmentedBatches, Batch
from schedule import StepSchedule
from synergy import SynergyLoss
from wide_resnet import WideResNet

WEIGHT_DECAY = 5e-4  # the released code's
REPEATS = 20  # of work that is too short to be timed alone


def training_step(
    depth: int, width: float, batch_size: int, setup: BenchmarkSetup
) -> Iterator[Row]:
    """Compare training steps of DKS."""
    device = setup.device
    operations = step_operations(partial(WideResNet, depth, width, 100), (batch_size, 3, 32, 32))
    what = f"training step, WRN-{depth}-{width:g} DKS, batch {batch_size}"
    released = partial(released_training_step, depth, width, batch_size, device)
    for dtype in MEASURED_DTYPES:
        ours = partial(our_step, depth, width, batch_size, dtype, device)
        row = step_row(what, dtype, (ours, released), operations, setup.rounds, device)
        step_s = median(row.ours_s)
        row.shares["loss"] = loss_time(batch_size, device) / step_s
        row.shares["data (not in the step)"] = data_time(batch_size, device) / step_s
        yield row


def our_step(
    depth: int, width: float, batch_size: int, dtype: str, device: torch.device
) -> tuple[nn.Module, Work]:
    """Return a network and a function that trains it one step as in `main.py`."""
    trainer = new_trainer(depth, width, 100, dtype, device)
    batch, sums = random_batch(batch_size, device), MetricSums(device)
    return trainer.model, lambda: accumulate(sums, batch, *trainer.train_step(batch))


def released_training_step(
    depth: int, width: float, batch_size: int, device: torch.device
) -> tuple[nn.Module, Work]:
    """Return the same network and a function that trains it as the released code does."""
    torch.manual_seed(1)
    model = WideResNet(depth, width, 100)
    step, batch = released_step(model, WEIGHT_DECAY, device), random_batch(batch_size, device)
    return model, lambda: step(batch.images, batch.labels)


def new_trainer(
    depth: int, width: float, num_classes: int, dtype: str, device: torch.device
) -> Trainer:
    torch.manual_seed(1)
    model, schedule = WideResNet(depth, width, num_classes), StepSchedule(0.1, (), 1.0)
    return Trainer(model, SynergyLoss(), schedule, WEIGHT_DECAY, getattr(torch, dtype), device)


def random_batch(size: int, device: torch.device) -> Batch:
    images = torch.randn(size, 3, 32, 32, device=device)
    return Batch(images, torch.randint(100, (size,), device=device), 1.0)


def random_images(count: int) -> Dataset:
    """Return a data set of random pixels in CIFAR-100's shape."""
    pixels = torch.randint(256, (count, 3, 32, 32), dtype=torch.uint8)
    split = Split(pixels, torch.randint(100, (count,)))
    return Dataset(split, split, DatasetInfo([], list(CIFAR_MEAN), list(CIFAR_STD)), flip=True)


def augmented(images: Dataset, batch_size: int, device: torch.device) -> AugmentedBatches:
    return AugmentedBatches(images.train, images.info, batch_size, device, seed=1, flip=images.flip)


def data_time(batch_size: int, device: torch.device) -> float:
    """Return the seconds that an augmented, normalized batch takes."""
    images = random_images((REPEATS + 1) * batch_size)
    batches = augmented(images, batch_size, device).epoch()
    next(batches)
    return timed(lambda: list(islice(batches, REPEATS)), device) / REPEATS


def data(setup: BenchmarkSetup) -> Iterator[Row]:
    """Compare the data paths alone: a training epoch of CIFAR's size without training."""
    images, cores = random_images(50_000), os.cpu_count()
    ours = augmented(images, 128, setup.device)
    transform = released_data.transform(images, train=True)
    released = released_data.loader(
        released_data.PilImages(images.train, transform), 128, workers=cores, train=True
    )
    sides = (partial(exhaust, ours.epoch), partial(exhaust, released.__iter__))
    times = compare(*sides, setup.rounds, setup.device)
    what = "augmented, normalized batches of 50,000 images, 32×32"
    yield Row(what, "float32", *times, f"released with {cores} worker processes")


def exhaust(start: Callable[[], Iterator]) -> None:
    for _ in start():
        pass


def loss_work(
    loss: Callable, classifiers: int, batch_size: int, num_classes: int, device: torch.device
) -> Work:
    """Return a function that computes loss and gradients of random logits `REPEATS` times."""
    logits = [
        torch.randn(batch_size, num_classes, device=device, requires_grad=True)
        for _ in range(classifiers)
    ]
    labels = torch.randint(num_classes, (batch_size,), device=device)

    def work() -> None:
        for _ in range(REPEATS):
            value = loss(logits, labels)
            (value if isinstance(value, Tensor) else value.total).backward()

    return work


def loss_time(batch_size: int, device: torch.device) -> float:
    """Return the seconds that the loss of three classifiers and its gradients take."""
    work = loss_work(SynergyLoss(), 3, batch_size, 100, device)
    work()
    return timed(work, device) / REPEATS


def loss(setup: BenchmarkSetup) -> Iterator[Row]:
    """Compare the losses alone, and how their time grows with the number of classifiers."""
    times = {}
    for classifiers in (3, 4, 16):
        sides = [
            loss_work(each, classifiers, 256, 1000, setup.device)
            for each in (SynergyLoss(), released_loss)
        ]
        times[classifiers] = compare(*sides, setup.rounds, setup.device)
    ours, released = (
        median(many) / median(few) for many, few in zip(times[16], times[4], strict=True)
    )
    yield Row(
        "loss of 3 classifiers, batch 256, 1,000 classes, forward and backward",
        "float32",
        *times[3],
        f"time of 16 classifiers / of 4: {ours:.1f}; released {released:.1f}",
    )


@torch.no_grad()
def inference(setup: BenchmarkSetup) -> Iterator[Row]:
    """Compare the exported backbone with a network that never had branches."""
    backbone = WideResNet(16, 2, 100, branches=False)
    backbone.load_state_dict(WideResNet(16, 2, 100).backbone_state_dict())
    model = backbone.eval().to(setup.device, memory_format=torch.channels_last)
    plain = nn.Sequential(model.stem, *model.groups, model.classifier)
    images = random_batch(128, setup.device).images.contiguous(memory_format=torch.channels_last)
    sides = partial(model, images), partial(plain, images)
    times = compare(*sides, 4 * setup.rounds, setup.device)
    yield Row("inference, exported WRN-16-2 / plain WRN-16-2, batch 128", "float32", *times)
