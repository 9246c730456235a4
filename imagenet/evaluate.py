"""Run a model on images: errors of every classifier and of their ensemble, or predictions."""

import contextlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

from common.command_line import UserError, is_out_of_memory, one_line
from common.metrics import MetricSums, topk_correct
from loader import device_batches


class Errors(NamedTuple):
    """How many of the images a classifier gets wrong, in percent."""

    top1: float
    top5: float


@dataclass(frozen=True)
class Scores:
    """What `evaluate` measures."""

    classifiers: tuple[Errors, ...]  # the backbone's first, then branches from shallow to deep
    ensemble: Errors  # of the classifiers' averaged probabilities
    images: int  # scored
    unreadable: int  # skipped


@contextlib.contextmanager
def refuse_too_large_batches() -> Iterator[None]:
    """Turn running out of memory, in the block or decorated function, into a refusal."""
    try:
        yield
    except RuntimeError as error:
        if not is_out_of_memory(error):
            raise
        raise UserError(
            f"not enough memory for a batch ({one_line(error, 150)}); use a smaller batch size "
            "(-b) or --dtype bfloat16"
        ) from error


@refuse_too_large_batches()
@torch.no_grad()
def evaluate(
    model: nn.Module,
    loader: DataLoader,
    device: torch.device,
    dtype: torch.dtype = torch.float32,
    progress: Callable[[Callable[[], Scores]], None] | None = None,
) -> Scores:
    """Score `model`, which is put into evaluation mode, on every image of every process's loader.

    Args:
        model: maps images (B, 3, S, S) to a tuple of logits (B, K), the backbone's first.
        loader: this process's share of the images, at least one batch.
        device: where the model is.
        dtype: of convolutions and matrix products. Softmax and averages are in float32 always.
        progress: called after each batch with a function that gives this process's scores so
            far; calling that waits for the device.

    Raises:
        UserError: an image can't be read, the device's memory is too small for a batch, the
            network's outputs are not finite, or no image was scored.
    """
    model.eval()
    sums = MetricSums(device)
    for images, labels in device_batches(loader, device):
        sums.add(**batch_counts(forward(model, images, dtype), labels))
        if progress:
            progress(lambda: scores(sums.totals(all_processes=False)))
    totals = sums.totals()
    if totals["not_finite"]:
        raise UserError(
            f"the network's outputs are not finite on {int(totals['not_finite'])} image(s): "
            "use --dtype bfloat16 or float32 if this was float16, else another checkpoint"
        )
    if not totals["images"]:
        raise UserError(f"none of the {int(totals['unreadable'])} images could be read")
    return scores(totals)


@refuse_too_large_batches()
@torch.no_grad()
def predict(
    model: nn.Module, loader: DataLoader, device: torch.device, dtype: torch.dtype, count: int = 5
) -> list[list[tuple[int, float]]]:
    """Return the `count` most likely classes of each image, (index, probability), best first.

    Args:
        model: maps images (B, 3, S, S) to a tuple of logits (B, K), of which the first is used.
        loader: of the images; its labels are ignored.
        device: of the model.
        dtype: of convolutions and matrix products.
        count: number of classes to return, K at most.

    Raises:
        UserError: an image cannot be read, or a batch does not fit in the device's memory.
    """
    model.eval()
    found = []
    for images, _ in device_batches(loader, device):
        probabilities = forward(model, images, dtype)[0].float().softmax(-1)
        best = probabilities.topk(min(count, probabilities.shape[1]))
        found += [
            list(zip(indices, values, strict=True))
            for indices, values in zip(best.indices.tolist(), best.values.tolist(), strict=True)
        ]
    return found


@torch.no_grad()
def check_image_size(model: nn.Module, image_size: int, device: torch.device) -> None:
    """Refuse images of `image_size` pixels if the model, in evaluation mode, can't take them."""
    try:
        model(torch.zeros(1, 3, image_size, image_size, device=device))
    except (AssertionError, RuntimeError) as error:
        raise UserError(
            f"--image-size {image_size}: the network can't take such images "
            f"({one_line(error, 150)}); use the size it was trained with"
        ) from error


def forward(model: nn.Module, images: Tensor, dtype: torch.dtype) -> tuple[Tensor, ...]:
    """The model's logits, computed under autocast unless `dtype` is float32."""
    with torch.autocast(images.device.type, dtype, enabled=dtype != torch.float32):
        return model(images)


def batch_counts(logits: Sequence[Tensor], labels: Tensor) -> dict[str, Tensor]:
    """What one batch adds to the sums.

    Args:
        logits: N tensors (B, K).
        labels: (B,); a negative one marks an image that is not to be counted.

    Returns:
        `top1` and `top5`, (N + 1,): correct images of each classifier and of the averaged
        probabilities; and the scalars `images`, `unreadable` and `not_finite`.
    """
    stacked = torch.stack(tuple(logits)).float()  # (N, B, K)
    # Softmax can round different logits to equal probabilities: one classifier needs none.
    ensemble = stacked.softmax(-1).mean(0, keepdim=True) if len(stacked) > 1 else stacked
    ranked = torch.cat([stacked, ensemble])
    return {
        "top1": torch.stack([topk_correct(each, labels, 1) for each in ranked]),
        "top5": torch.stack([topk_correct(each, labels, 5) for each in ranked]),
        "images": (labels >= 0).sum(),
        "unreadable": (labels < 0).sum(),
        "not_finite": (~stacked.isfinite().all(-1).all(0)).sum(),
    }


def scores(totals: dict[str, Tensor]) -> Scores:
    """Percentages from the sums over all batches."""
    images = int(totals["images"])
    wrong = [
        Errors(*(100 * (images - int(correct)) / max(images, 1) for correct in pair))
        for pair in zip(totals["top1"], totals["top5"], strict=True)
    ]
    return Scores(tuple(wrong[:-1]), wrong[-1], images, int(totals["unreadable"]))
