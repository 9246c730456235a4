"""The rows of imagenet.py that compare input pipelines, from files to batches in memory.

The reference is torchvision's: PIL, ToTensor, Normalize and a DataLoader. Ours ends with uint8
batches, because the device normalizes them.
"""

import contextlib
import os
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from pathlib import Path
from statistics import median

import torch
from torch.utils.data import DataLoader
from torchvision import datasets, transforms

from benchmarks.runner import BenchmarkSetup
from benchmarks.timing import Row, compare, timed
from cache_building import cached_sets
from data import AugmentedDataset, ImageFiles, ImageSets
from decoding import choose_decoder
from loader import evaluation_loader, training_batches
from presets import IMAGENET_MEAN, IMAGENET_STD, evaluation_transform, training_transform
from sampler import ResumableBatchSampler
from workers import WorkerSignalGuard

IMAGES = 512  # of which 224-pixel squares take 100 MB, more than a CPU's cache
BATCH_SIZE = 128
CACHE_BYTES = 2**29  # that are read from the cache for a measurement, in several epochs
COPIED_BYTES = 2**28

CPU = torch.device("cpu")

Batches = Callable[[], Iterable]


def pipeline(setup: BenchmarkSetup) -> Iterator[Row]:
    """Compare the pipelines at 224 and at 64 pixels: in one process, then with all cores."""
    threads = torch.get_num_threads()
    for size in (224, 64):
        for workers in (0, os.cpu_count()):
            torch.set_num_threads(max(1, workers))
            yield from rows_of_size(setup, size, workers)
    torch.set_num_threads(threads)


def rows_of_size(setup: BenchmarkSetup, size: int, workers: int) -> Iterator[Row]:
    """Compare training without and from the cache, and evaluation.

    Args:
        setup: of the benchmark.
        size: of the images in pixels.
        workers: processes of both sides; 0: everything in one process.
    """
    epoch_bytes = 3 * size**2 * IMAGES
    samples = datasets.ImageFolder(setup.data / "val").samples
    samples = (samples * -(-IMAGES // len(samples)))[:IMAGES]
    sets = image_sets(samples, size)
    # One process uses one core: its CPU time does not depend on what else the machine does.
    clock = time.perf_counter if workers else time.process_time
    where = f"{size}×{size}, {f'{workers} processes' if workers else 'one core'}"
    references = [reference(setup.data / "val", size, workers, train) for train in (True, False)]
    with WorkerSignalGuard() as guard, tempfile.TemporaryDirectory() as folder:

        def ours(sets: ImageSets) -> Batches:
            dataset = AugmentedDataset(sets.train, seed=1)
            sampler = ResumableBatchSampler(len(sets.train), BATCH_SIZE, seed=1)
            loader = training_batches(dataset, sampler, workers, 4, setup.device, guard)
            return lambda: loader

        with contextlib.redirect_stdout(sys.stderr):
            cached = cached_sets(Path(folder), setup.data, sets, workers)
        compare_sides = partial(row, setup=setup, clock=clock)
        yield compare_sides(f"training, {where}", ours(sets), references[0])
        what = f"training from the cache, {where}"
        yield compare_sides(what, ours(cached), references[0], repeats=CACHE_BYTES // epoch_bytes)
        loader = evaluation_loader(sets.validation, BATCH_SIZE, workers, setup.device, guard)
        yield compare_sides(f"evaluation, {where}", lambda: loader, references[1])


def image_sets(samples: list[tuple[str, int]], size: int) -> ImageSets:
    """Return the same images for training and for validation."""
    paths, labels = map(list, zip(*samples, strict=True))
    paths = [Path(path) for path in paths]
    train = ImageFiles(paths, labels, training_transform("crop", size), False, choose_decoder())
    return ImageSets([], train, ImageFiles(paths, labels, evaluation_transform(size)))


def reference(folder: Path, size: int, workers: int, train: bool) -> Batches:
    """Return a function that starts an epoch of torchvision's pipeline."""
    side = round(size * 256 / 224)
    crop = [transforms.RandomCrop(size), transforms.RandomHorizontalFlip()]
    transform = transforms.Compose(
        [
            transforms.Resize((side, side), transforms.InterpolationMode.BICUBIC),
            *(crop if train else [transforms.CenterCrop(size)]),
            transforms.ToTensor(),
            transforms.Normalize(IMAGENET_MEAN, IMAGENET_STD),
        ]
    )
    images = datasets.ImageFolder(folder, transform)
    images.samples = (images.samples * -(-IMAGES // len(images)))[:IMAGES]
    loader = DataLoader(
        images,
        BATCH_SIZE,
        shuffle=train,
        num_workers=workers,
        pin_memory=torch.cuda.is_available(),
        persistent_workers=workers > 0,
    )
    return lambda: loader


def row(
    what: str,
    ours: Batches,
    reference: Batches,
    setup: BenchmarkSetup,
    clock: Callable[[], float],
    repeats: int = 1,
) -> Row:
    """Compare an epoch of both pipelines; ours is repeated for each measurement."""
    bytes_per_epoch = sum(images.numel() for images, _ in ours())
    sides = partial(read, ours, repeats), partial(read, reference, 1)
    copies = [copy_rate(clock)]
    ours_s, reference_s = compare(*sides, setup.rounds, setup.device, clock)
    copies.append(copy_rate(clock))
    ours_s = [seconds / repeats for seconds in ours_s]
    rates = [IMAGES / median(seconds) for seconds in (ours_s, reference_s)]
    share = bytes_per_epoch / median(ours_s) / median(copies)
    remarks = f"{rates[0]:,.0f} images/s, reference {rates[1]:,.0f}"
    if repeats > 1:
        remarks += f"; {100 * share:.0f} % of a memory copy's {median(copies) / 1e9:.1f} GB/s"
    return Row(what, "uint8", ours_s, reference_s, remarks)


def read(batches: Batches, epochs: int) -> None:
    for _ in range(epochs):
        for _ in batches():
            pass


def copy_rate(clock: Callable[[], float]) -> float:
    """Return the bytes per second that PyTorch copies in memory: the median of seven copies."""
    source, target = (torch.ones(COPIED_BYTES, dtype=torch.uint8) for _ in range(2))
    copy = partial(target.copy_, source)
    return COPIED_BYTES / median(timed(copy, CPU, clock) for _ in range(7))
