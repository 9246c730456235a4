"""Compare imagenet/ with the released configuration, side by side on this machine.

    python benchmarks/imagenet.py --data IMAGENET      IMAGENET contains val/<class>/
    python benchmarks/imagenet.py --row resnet18       a training step, which needs no images

`released / ours` is the time of the released configuration divided by ours: the median over pairs
of runs, the lowest and the highest. The networks have random weights. In the rows of the input
pipeline, the reference is torchvision's: PIL, ToTensor, Normalize and a DataLoader. Ours ends with
uint8 batches, because the device normalizes them.
"""

import gc
import os
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from pathlib import Path
from statistics import median

sys.path.insert(1, str(Path(__file__).parents[1] / "imagenet"))  # after the folder of this file

import torch
import torchvision
from torch import nn
from torch.utils.data import DataLoader
from torchvision import datasets, transforms

import resnet
import timing
from augmentation import RandomCrop, cached, evaluation_transform
from batches import IMAGENET_MEAN, IMAGENET_STD, Augmented, TestBatches, make_loader
from common.command_line import run_script
from common.distributed import Compute
from common.evaluation import evaluate
from data import ImageFiles, read_pixels
from steps import make_trainer, random_batch, released_step, step_rows
from timing import DTYPES, Row, Setup, Work, compare
from weights import choose_compute

WEIGHT_DECAY = 1e-4  # the paper's
IMAGES = 512  # of which 224-pixel squares take 100 MB, more than a CPU's cache
SHAPE = (128, 3, 64, 64)  # of a training step's batch


def training_step(setup: Setup) -> Iterator[Row]:
    """Compare training steps of ResNet-18 with DKS on small images."""
    what = f"training step, ResNet-18 DKS, {SHAPE[2]}×{SHAPE[3]}, batch {SHAPE[0]}"
    ours = partial(partial, our_step, setup.device)
    yield from step_rows(what, ours, partial(released_training_step, setup.device), setup)


def our_step(device: torch.device, dtype: str) -> tuple[nn.Module, Work]:
    """Return a network and a function that trains it one step as in `train.py`."""
    torch.manual_seed(1)
    model, compute = resnet.build("resnet18", num_classes=100), choose_compute(64, device, dtype)
    trainer = make_trainer(model, compute, WEIGHT_DECAY)
    return trainer.model, partial(trainer.train_step, random_batch(SHAPE, device))


def released_training_step(device: torch.device) -> tuple[nn.Module, Work]:
    """Return the same network and a function that trains it as the released code does."""
    torch.manual_seed(1)
    model = resnet.build("resnet18", num_classes=100)
    images, labels, _ = random_batch(SHAPE, device)
    return model, partial(released_step(model, WEIGHT_DECAY, device), images, labels)


def evaluation(setup: Setup, arch: str = "resnet50") -> Iterator[Row]:
    """Compare evaluations of the images in val/, each image twice, from files to errors."""
    device = setup.device
    images = datasets.ImageFolder(setup.data / "val", reference_transform(224, train=False))
    loader = reference_loader(images + images, 50, setup.workers)
    files = image_files(images.samples * 2, evaluation_transform(224))
    torch.manual_seed(1)
    plain = torchvision.models.get_model(arch).eval().to(device)
    released = partial(released_evaluation, plain, loader, device)
    what = f"evaluation, {arch}, {len(files)} photographs from their files"
    for dtype in DTYPES:
        compute = choose_compute(224, device, dtype)
        batches = TestBatches(files, 50, setup.workers, compute)
        ours = partial(evaluate, {"": our_network(arch, plain, compute)}, batches, compute)
        yield Row(what, dtype, *compare(ours, released, setup))


def our_network(arch: str, plain: nn.Module, compute: Compute) -> nn.Module:
    """Return torchvision's network `plain` as `main.py` runs it."""
    model = resnet.build(arch, branches=False)
    model.load_state_dict(plain.state_dict())
    if compute.dtype != torch.float32:
        resnet.fold_batch_norms(model.eval())
    return compute.place(model).eval()


@torch.no_grad()
def released_evaluation(
    model: nn.Module, loader: DataLoader, device: torch.device
) -> tuple[float, float]:
    """Return the top-1 and top-5 error in percent; counts are read back after every batch."""
    wrong = {1: 0, 5: 0}
    for images, labels in loader:
        best = model(images.to(device)).topk(5).indices == labels.to(device).unsqueeze(1)
        for k in wrong:
            wrong[k] += len(labels) - best[:, :k].sum().item()
    return tuple(100 * each / len(loader.dataset) for each in wrong.values())


@torch.no_grad()
def inference(setup: Setup) -> Iterator[Row]:
    """Compare the exported backbone with torchvision's network in the same memory format."""
    exported = resnet.build("resnet18", branches=False)
    exported.load_state_dict(resnet.backbone_state_dict(resnet.build("resnet18").state_dict()))
    images = torch.randn(16, 3, 224, 224, device=setup.device)
    images = images.contiguous(memory_format=torch.channels_last)
    sides = (
        partial(each.eval().to(setup.device, memory_format=torch.channels_last), images)
        for each in (exported, torchvision.models.resnet18())
    )
    times = compare(*sides, setup, factor=4)
    yield Row("inference, exported ResNet-18 / torchvision's, batch 16", "float32", *times)


def pipeline(setup: Setup) -> Iterator[Row]:
    """Compare the input pipelines at 224 and at 64 pixels: in one process, then on all cores."""
    threads = torch.get_num_threads()
    for size in (224, 64):
        for workers in (0, os.cpu_count()):
            torch.set_num_threads(max(1, workers))
            yield from pipeline_rows(setup, size, workers)
    torch.set_num_threads(threads)


def pipeline_rows(setup: Setup, size: int, workers: int) -> Iterator[Row]:
    """Compare training without and from the cache, and evaluation, at a size in pixels.

    `workers` are the processes of both sides; 0: everything in one process.
    """
    val = setup.data / "val"
    where = f"{size}×{size}, {f'{workers} processes' if workers else 'one core'}"
    train, test = (reference_images(val, size, part) for part in (True, False))
    crop = RandomCrop(size, IMAGES, seed=1)
    files = image_files(train.samples, crop.fixed, read_pixels)
    loaders = [reference_loader(each, 128, workers) for each in (train, test)]
    keys = [(0, index) for index in range(IMAGES)]
    order = {"batch_sampler": [keys[start : start + 128] for start in range(0, IMAGES, 128)]}
    with tempfile.TemporaryDirectory() as folder:
        cache = cached(files, Path(folder) / "train.npy", "", workers)
        for name, images in (("training", files), ("training from the cache", cache)):
            ours = make_loader(Augmented(images, crop), workers, setup.device, **order)
            yield pipeline_row(f"{name}, {where}", ours, loaders[0], setup, workers)
        images = image_files(test.samples, evaluation_transform(size))
        ours = make_loader(images, workers, setup.device, batch_size=128)
        yield pipeline_row(f"evaluation, {where}", ours, loaders[1], setup, workers)


def pipeline_row(
    what: str, ours: DataLoader, reference: DataLoader, setup: Setup, workers: int
) -> Row:
    """Compare an epoch of both pipelines."""
    gc.collect()  # ends the workers of the row before
    # One process uses one core: its CPU time does not depend on what else the machine does.
    clock = time.perf_counter if workers else time.process_time
    times = compare(partial(exhaust, ours), partial(exhaust, reference), setup, clock)
    rates = [IMAGES / median(each) for each in times]
    return Row(what, "uint8", *times, f"{rates[0]:,.0f} images/s, reference {rates[1]:,.0f}")


def exhaust(batches: Iterable) -> None:
    for _ in batches:
        pass


def image_files(
    samples: list[tuple[str, int]], transform: Callable, *decode: Callable
) -> ImageFiles:
    paths, labels = map(list, zip(*samples, strict=True))
    return ImageFiles([Path(path) for path in paths], labels, transform, *decode)


def reference_images(folder: Path, size: int, train: bool) -> datasets.ImageFolder:
    """Return `IMAGES` images of torchvision's pipeline, those of the folder in turns."""
    images = datasets.ImageFolder(folder, reference_transform(size, train))
    images.samples = (images.samples * -(-IMAGES // len(images)))[:IMAGES]
    return images


def reference_transform(size: int, train: bool) -> transforms.Compose:
    """Return the released transform: resize to a square, crop, normalize; in training also flip."""
    side = round(size * 256 / 224)
    crop = [transforms.RandomCrop(size), transforms.RandomHorizontalFlip()]
    return transforms.Compose(
        [
            transforms.Resize((side, side), transforms.InterpolationMode.BICUBIC),
            *(crop if train else [transforms.CenterCrop(size)]),
            transforms.ToTensor(),
            transforms.Normalize(IMAGENET_MEAN, IMAGENET_STD),
        ]
    )


def reference_loader(images: torch.utils.data.Dataset, batch_size: int, workers: int) -> DataLoader:
    return DataLoader(
        images,
        batch_size,
        num_workers=workers,
        pin_memory=torch.cuda.is_available(),  # the release always asks for it
        persistent_workers=workers > 0,
    )


ROWS = {
    "evaluation": evaluation,
    "pipeline": pipeline,
    "resnet18": training_step,
    "inference": inference,
}

if __name__ == "__main__":
    need_data = ["evaluation", "pipeline"]
    run_script(partial(timing.main, "benchmarks/imagenet.py", ROWS, need_data))
