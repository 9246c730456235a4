"""What `benchmark.py` compares: evaluation, a training step, inference."""

import os
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
import torchvision
from torch import Tensor, nn
from torch.utils.data import DataLoader
from torchvision import datasets, transforms

import resnet
from command_line import DTYPES
from data import IMAGENET_MEAN, IMAGENET_STD, ImageFiles, evaluation_loader, evaluation_transform
from engine import Trainer, fastest_layout
from evaluate import evaluate, forward
from opponent import released_step
from profiling import step_operations, step_row
from sgd import make_sgd
from synergy import SynergyLoss
from timing import Row, Work, compare
from train_data import Batch

BOTH = ("float32", "bfloat16")
WEIGHT_DECAY = 1e-4  # the paper's
ARCH = "resnet50"  # evaluated
BATCH_SIZE = 50
MOST_WORKERS = 4  # processes that read images; the released code's default


@dataclass(frozen=True)
class Place:
    """Where it is measured, how often, and on what images."""

    device: torch.device
    rounds: int  # pairs of runs
    imagenet: Path | None


def training_step(place: Place) -> Iterator[Row]:
    """A training step of ResNet-18 DKS on 128 images of 64x64 pixels."""
    device, shape = place.device, (128, 3, 64, 64)
    operations = step_operations(partial(resnet.resnet18, num_classes=100), shape)
    theirs = partial(their_step, shape, device)
    what = "training step, ResNet-18 DKS, 64×64, batch 128"
    for dtype in BOTH:
        ours = partial(our_step, shape, dtype, device)
        yield step_row(what, dtype, (ours, theirs), operations, place.rounds, device)


def our_step(shape: tuple[int, ...], dtype: str, device: torch.device) -> tuple[nn.Module, Work]:
    """A network and a step that trains it as `train.py` does."""
    torch.manual_seed(1)
    layout = fastest_layout(shape[-1], device)
    model = resnet.resnet18(num_classes=100).to(device, memory_format=layout)
    sgd = make_sgd(model, 0.1, 0.9, WEIGHT_DECAY)
    trainer = Trainer(model, SynergyLoss(), sgd, dtype=DTYPES[dtype])
    batch = Batch(*random_batch(shape, device), 1.0)
    return model, partial(trainer.train_step, batch, 0.1)


def their_step(shape: tuple[int, ...], device: torch.device) -> tuple[nn.Module, Work]:
    """The same network and a step of the released configuration."""
    torch.manual_seed(1)
    model = resnet.resnet18(num_classes=100)
    return model, partial(released_step(model, WEIGHT_DECAY, device), *random_batch(shape, device))


def random_batch(shape: tuple[int, ...], device: torch.device) -> tuple[Tensor, Tensor]:
    return torch.randn(shape, device=device), torch.randint(100, shape[:1], device=device)


def evaluation(place: Place) -> Iterator[Row]:
    """The evaluation of `ARCH` on the images below val/, twice, from files to errors."""
    device, workers = place.device, min(MOST_WORKERS, os.cpu_count())
    images = datasets.ImageFolder(place.imagenet / "val", released_transform())
    theirs = DataLoader(images + images, BATCH_SIZE, num_workers=workers)
    paths, labels = map(list, zip(*images.samples * 2, strict=True))
    files = ImageFiles([Path(path) for path in paths], labels, evaluation_transform())
    ours = evaluation_loader(files, BATCH_SIZE, workers, device)
    torch.manual_seed(1)
    plain = torchvision.models.get_model(ARCH).eval().to(device)
    what = f"evaluation, {ARCH}, {len(files)} photographs from their files"
    for dtype in BOTH:
        model = our_network(plain, dtype)
        times = compare(
            partial(evaluate, model, ours, device, DTYPES[dtype]),
            partial(released_evaluation, plain, theirs, device),
            place.rounds,
            device,
        )
        difference = largest_difference(model, plain, next(iter(theirs))[0], DTYPES[dtype])
        yield Row(what, dtype, *times, f"logits differ by {difference:.0e} of the largest")


def our_network(plain: nn.Module, dtype: str) -> nn.Module:
    """The same network as `main.py` has it."""
    model = resnet.build(ARCH, branches=False)
    model.load_state_dict(plain.state_dict())
    model.eval().to(next(plain.parameters()).device, memory_format=torch.channels_last)
    if dtype != "float32":
        resnet.fold_batch_norms(model)
    return model


def released_transform() -> transforms.Compose:
    """Resize to 256x256, centre crop, normalise."""
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
    """The released loop: top-1 and top-5 error in percent, read back after every batch."""
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
    """Of the logits, relative to the largest one."""
    images = images.to(next(plain.parameters()).device)
    expected = plain(images)
    nhwc = images.contiguous(memory_format=torch.channels_last)
    difference = forward(model, nhwc, dtype)[0].float() - expected
    return float(difference.abs().max() / expected.abs().max())


@torch.no_grad()
def inference(place: Place) -> Iterator[Row]:
    """The backbone that training leaves against torchvision's network, in the same layout."""
    state = resnet.backbone_weights(resnet.resnet18(num_classes=1000).state_dict())
    exported = resnet.resnet18(branches=False)
    exported.load_state_dict(state)
    plain = torchvision.models.resnet18()
    images = torch.randn(16, 3, 224, 224, device=place.device)
    nhwc = images.contiguous(memory_format=torch.channels_last)
    sides = (
        partial(each.eval().to(place.device, memory_format=torch.channels_last), nhwc)
        for each in (exported, plain)
    )
    times = compare(*sides, 4 * place.rounds, place.device)
    yield Row("inference, exported ResNet-18 / torchvision's, batch 16", "float32", *times)
