"""Score a network on labelled images: the errors of every classifier and of their average."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

from command_line import Refused
from data import batches
from metrics import Sums, topk_correct


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
        Refused: an image can't be read, the device's memory is too small for a batch, the
            network's outputs are not finite, or no image was scored.
    """
    model.eval()
    sums = Sums(device)
    for images, labels in batches(loader, device):
        with torch.autocast(device.type, dtype, enabled=dtype != torch.float32):
            logits = classify(model, images)
        sums.add(**counts(logits, labels))
        if progress:
            progress(lambda: scores(sums.totals(all_processes=False)))
    totals = sums.totals()
    if totals["not_finite"]:
        raise Refused(
            f"the network's outputs are not finite on {int(totals['not_finite'])} image(s): "
            "use --dtype bfloat16 or float32 if this was float16, else another checkpoint"
        )
    if not totals["images"]:
        raise Refused(f"none of the {int(totals['unreadable'])} images could be read")
    return scores(totals)


def classify(model: nn.Module, images: Tensor) -> tuple[Tensor, ...]:
    """The model's logits; a batch that is too large for the device is refused."""
    try:
        return model(images)
    except torch.OutOfMemoryError as error:
        raise Refused(
            f"not enough memory on {images.device} for {len(images)} images at once; "
            "use a smaller batch size (-b) or --dtype bfloat16"
        ) from error


def counts(logits: Sequence[Tensor], labels: Tensor) -> dict[str, Tensor]:
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
    average = stacked.softmax(-1).mean(0, keepdim=True) if len(stacked) > 1 else stacked
    ranked = torch.cat([stacked, average])
    return {
        "top1": torch.stack([topk_correct(scores, labels, 1) for scores in ranked]),
        "top5": torch.stack([topk_correct(scores, labels, 5) for scores in ranked]),
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
