"""The rows of imagenet.py: evaluation, a training step, inference."""

from collections.abc import Iterator
from functools import partial
from pathlib import Path

import torch
import torchvision
from torch import Tensor, nn
from torch.utils.data import DataLoader
from torchvision import datasets, transforms

import resnet
from benchmarks.profiling import step_operations, step_row
from benchmarks.released import released_step
from benchmarks.runner import MEASURED_DTYPES, BenchmarkSetup
from benchmarks.timing import Row, Work, compare
from common.sgd import make_sgd
from data import ImageFiles
from engine import Trainer
from evaluate import evaluate, forward
from layout import memory_format
from loader import Batch, evaluation_loader
from presets import IMAGENET_MEAN, IMAGENET_STD, evaluation_transform
from synergy import SynergyLoss
from workers import WorkerSignalGuard

WEIGHT_DECAY = 1e-4  # the paper's
BATCH_SIZE = 50  # of the evaluation


def training_step(setup: BenchmarkSetup) -> Iterator[Row]:
    """Compare training steps of ResNet-18 with DKS on 128 images of 64x64 pixels."""
    device, shape = setup.device, (128, 3, 64, 64)
    operations = step_operations(partial(resnet.build, "resnet18", num_classes=100), shape)
    released = partial(released_training_step, shape, device)
    what = "training step, ResNet-18 DKS, 64×64, batch 128"
    for dtype in MEASURED_DTYPES:
        ours = partial(our_step, shape, dtype, device)
        yield step_row(what, dtype, (ours, released), operations, setup.rounds, device)


def our_step(shape: tuple[int, ...], dtype: str, device: torch.device) -> tuple[nn.Module, Work]:
    """Return a network and a function that trains it one step as in `train.py`."""
    torch.manual_seed(1)
    layout = memory_format(shape[-1], device, getattr(torch, dtype))
    model = resnet.build("resnet18", num_classes=100).to(device, memory_format=layout)
    sgd = make_sgd(model, 0.1, 0.9, WEIGHT_DECAY)
    trainer = Trainer(model, SynergyLoss(), sgd, dtype=getattr(torch, dtype))
    batch = Batch(*random_batch(shape, device), 1.0)
    return model, partial(trainer.train_step, batch, 0.1)


def released_training_step(shape: tuple[int, ...], device: torch.device) -> tuple[nn.Module, Work]:
    """Return the same network and a function that trains it as the released code does."""
    torch.manual_seed(1)
    model = resnet.build("resnet18", num_classes=100)
    return model, partial(released_step(model, WEIGHT_DECAY, device), *random_batch(shape, device))


def random_batch(shape: tuple[int, ...], device: torch.device) -> tuple[Tensor, Tensor]:
    return torch.randn(shape, device=device), torch.randint(100, shape[:1], device=device)


def evaluation(setup: BenchmarkSetup, arch: str = "resnet50") -> Iterator[Row]:
    """Compare evaluations of the images in val/, each image twice, from files to errors."""
    device = setup.device
    images = datasets.ImageFolder(setup.data / "val", released_transform())
    released_loader = DataLoader(
        images + images,
        BATCH_SIZE,
        num_workers=setup.workers,
        pin_memory=torch.cuda.is_available(),  # the release always asks for it
    )
    paths, labels = map(list, zip(*images.samples * 2, strict=True))
    files = ImageFiles([Path(path) for path in paths], labels, evaluation_transform())
    torch.manual_seed(1)
    plain = torchvision.models.get_model(arch).eval().to(device)
    released = partial(released_evaluation, plain, released_loader, device)
    what = f"evaluation, {arch}, {len(files)} photographs from their files"
    with WorkerSignalGuard() as guard:
        loader = evaluation_loader(files, BATCH_SIZE, setup.workers, device, guard)
        for dtype in MEASURED_DTYPES:
            model = our_network(arch, plain, dtype)
            ours = partial(evaluate, model, loader, device, getattr(torch, dtype))
            times = compare(ours, released, setup.rounds, device)
            batch = next(iter(released_loader))[0]
            difference = largest_difference(model, plain, batch, getattr(torch, dtype))
            yield Row(what, dtype, *times, f"logits differ by {difference:.0e} of the largest")


def our_network(arch: str, plain: nn.Module, dtype: str) -> nn.Module:
    """Return torchvision's network `plain` as `main.py` runs it."""
    model = resnet.build(arch, branches=False)
    model.load_state_dict(plain.state_dict())
    model.eval().to(next(plain.parameters()).device, memory_format=torch.channels_last)
    if dtype != "float32":
        resnet.fold_batch_norms(model)
    return model


def released_transform() -> transforms.Compose:
    """Build the released transform: resize to 256x256, center crop, normalize."""
    return transforms.Compose(
        [
            transforms.Resize((256, 256), transforms.InterpolationMode.BICUBIC),
            transforms.CenterCrop(224),
            transforms.ToTensor(),
            transforms.Normalize(IMAGENET_MEAN, IMAGENET_STD),
        ]
    )


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
def largest_difference(
    model: nn.Module, plain: nn.Module, images: Tensor, dtype: torch.dtype
) -> float:
    """Return the largest difference of the logits, relative to the largest logit."""
    images = images.to(next(plain.parameters()).device)
    expected = plain(images)
    nhwc = images.contiguous(memory_format=torch.channels_last)
    difference = forward(model, nhwc, dtype)[0].float() - expected
    return float(difference.abs().max() / expected.abs().max())


@torch.no_grad()
def inference(setup: BenchmarkSetup) -> Iterator[Row]:
    """Compare the exported backbone with torchvision's network in the same memory format."""
    exported = resnet.build("resnet18", branches=False)
    exported.load_state_dict(resnet.backbone_state_dict(resnet.build("resnet18").state_dict()))
    plain = torchvision.models.resnet18()
    images = torch.randn(16, 3, 224, 224, device=setup.device)
    nhwc = images.contiguous(memory_format=torch.channels_last)
    sides = (
        partial(each.eval().to(setup.device, memory_format=torch.channels_last), nhwc)
        for each in (exported, plain)
    )
    times = compare(*sides, 4 * setup.rounds, setup.device)
    yield Row("inference, exported ResNet-18 / torchvision's, batch 16", "float32", *times)
