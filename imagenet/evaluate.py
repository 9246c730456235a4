"""Evaluate a model: top-1 and top-5 errors of its classifiers and their ensemble; predictions."""

import contextlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

from common.command_line import UserError, is_out_of_memory, one_line, plural
from common.metrics import MetricSums, topk_correct
from common.signals import check_signals
from layout import memory_format
from loader import device_batches


class Errors(NamedTuple):
    """Error rates of a classifier, in percent."""

    top1_error: float
    top5_error: float


@dataclass(frozen=True)
class Scores:
    """Result of an evaluation."""

    classifiers: tuple[Errors, ...]  # backbone, then branches from shallow to deep
    ensemble: Errors  # of the mean of the classifiers' probabilities
    images: int  # number of images scored
    unreadable: int  # number of images skipped


@contextlib.contextmanager
def catch_out_of_memory() -> Iterator[None]:
    """Raise `UserError` if the block, or the decorated function, runs out of memory."""
    try:
        yield
    except RuntimeError as error:
        if not is_out_of_memory(error):
            raise
        raise UserError(
            f"not enough memory for a batch ({one_line(error, 150)}); use a smaller batch size "
            "(-b) or --dtype bfloat16"
        ) from error


@catch_out_of_memory()
@torch.no_grad()
def evaluate(
    model: nn.Module,
    loader: DataLoader,
    device: torch.device,
    dtype: torch.dtype = torch.float32,
    progress: Callable[[Callable[[], Scores]], None] | None = None,
) -> Scores:
    """Score `model` on the images of all processes. Puts it into evaluation mode.

    Args:
        model: maps images (B, 3, S, S) to a tuple of logits (B, K), the backbone's first.
        loader: this process's images, at least one batch.
        device: of the model.
        dtype: of convolutions and matrix products. Softmax and means are always float32.
        progress: called after each batch with a function that returns this process's scores so
            far. Calling that function waits for the device.

    Raises:
        UserError: an image cannot be read, a batch does not fit in memory, the logits are not
            finite, or no image was scored.
    """
    model.eval()
    sums = MetricSums(device)
    for images, labels in device_batches(loader, device):
        sums.add(**batch_counts(forward(model, images, dtype), labels))
        if progress:
            progress(lambda: summarize(sums.totals(all_processes=False)))
        check_signals()
    totals = sums.totals()
    if totals["not_finite"]:
        raise UserError(
            f"the logits are not finite for {plural(int(totals['not_finite']), 'image')}; use "
            "--dtype bfloat16 or float32 instead of float16, or another checkpoint"
        )
    if not totals["images"]:
        skipped = plural(int(totals["unreadable"]), "image")
        raise UserError(f"no image left to score: skipped {skipped} that cannot be read")
    return summarize(totals)


@catch_out_of_memory()
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
        UserError: an image cannot be read, or a batch does not fit in memory.
    """
    model.eval()
    predictions = []
    for images, _ in device_batches(loader, device):
        check_signals()
        probabilities = forward(model, images, dtype)[0].float().softmax(-1)
        best = probabilities.topk(min(count, probabilities.shape[1]))
        predictions += [
            list(zip(indices, values, strict=True))
            for indices, values in zip(best.indices.tolist(), best.values.tolist(), strict=True)
        ]
    return predictions


@torch.no_grad()
def check_image_size(model: nn.Module, image_size: int, device: torch.device) -> None:
    """Raise `UserError` if the model, in evaluation mode, fails on images of `image_size`."""
    try:
        model(torch.zeros(1, 3, image_size, image_size, device=device))
    except (AssertionError, RuntimeError) as error:
        raise UserError(
            f"--image-size {image_size}: the network does not accept this size "
            f"({one_line(error, 150)}); use the size it was trained on"
        ) from error


def forward(model: nn.Module, images: Tensor, dtype: torch.dtype) -> tuple[Tensor, ...]:
    """Compute the model's logits, under autocast unless `dtype` is float32."""
    device = images.device
    images = images.contiguous(memory_format=memory_format(images.shape[-1], device, dtype))
    with torch.autocast(device.type, dtype, enabled=dtype != torch.float32):
        return model(images)


def batch_counts(logits: Sequence[Tensor], labels: Tensor) -> dict[str, Tensor]:
    """Count correct predictions in a batch.

    Args:
        logits: N tensors (B, K).
        labels: (B,); negative for images that do not count.

    Returns:
        `top1` and `top5`, (N + 1,): correct predictions of each classifier and of the ensemble;
        and the scalars `images`, `unreadable` and `not_finite`.
    """
    stacked = torch.stack(tuple(logits)).float()  # (N, B, K)
    # A single classifier is ranked by its logits: softmax can round them to equal probabilities.
    ensemble = stacked.softmax(-1).mean(0, keepdim=True) if len(stacked) > 1 else stacked
    scores = torch.cat([stacked, ensemble])  # (N + 1, B, K)
    return {
        "top1": torch.stack([topk_correct(each, labels, 1) for each in scores]),
        "top5": torch.stack([topk_correct(each, labels, 5) for each in scores]),
        "images": (labels >= 0).sum(),
        "unreadable": (labels < 0).sum(),
        "not_finite": (~stacked.isfinite().all(-1).all(0)).sum(),
    }


def summarize(totals: dict[str, Tensor]) -> Scores:
    """Turn the sums of `batch_counts` over all batches into error rates."""
    images = int(totals["images"])
    errors = [
        Errors(*(100 * (images - int(correct)) / max(images, 1) for correct in pair))
        for pair in zip(totals["top1"], totals["top5"], strict=True)
    ]
    return Scores(tuple(errors[:-1]), errors[-1], images, int(totals["unreadable"]))
