"""Score a network on labelled images: the errors of every classifier and of their average."""

import contextlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader
from tqdm import tqdm

from command_line import Refused, lacks_memory, one_line
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


@contextlib.contextmanager
def refuse_too_large_batches() -> Iterator[None]:
    """Turn running out of memory, in the block or decorated function, into a refusal."""
    try:
        yield
    except RuntimeError as error:
        if not lacks_memory(error):
            raise
        raise Refused(
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
        Refused: an image can't be read, the device's memory is too small for a batch, the
            network's outputs are not finite, or no image was scored.
    """
    model.eval()
    sums = Sums(device)
    for images, labels in batches(loader, device):
        sums.add(**counts(forward(model, images, dtype), labels))
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


@torch.no_grad()
def check_image_size(model: nn.Module, image_size: int, device: torch.device) -> None:
    """Refuse images of `image_size` pixels if the model, in evaluation mode, can't take them."""
    try:
        model(torch.zeros(1, 3, image_size, image_size, device=device))
    except (AssertionError, RuntimeError) as error:
        raise Refused(
            f"--image-size {image_size}: the network can't take such images "
            f"({one_line(error, 150)}); use the size it was trained with"
        ) from error


def forward(model: nn.Module, images: Tensor, dtype: torch.dtype) -> tuple[Tensor, ...]:
    """The model's logits, computed under autocast unless `dtype` is float32."""
    with torch.autocast(images.device.type, dtype, enabled=dtype != torch.float32):
        return model(images)


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


class Bar:
    """A progress bar with the running errors of this process's images; `evaluate` calls it.

    Args:
        batches: how many there will be.
        every: batches between refreshes, each of which waits for the device.
        shown: False makes it do nothing, for all processes but one.
    """

    def __init__(self, batches: int, every: int, shown: bool = True):
        self._bar = tqdm(total=batches, unit="batch", disable=not shown)
        self._every = every
        self._done = 0

    def __enter__(self) -> "Bar":
        return self

    def __exit__(self, *exception) -> None:
        self._bar.close()

    def __call__(self, scores_so_far: Callable[[], Scores]) -> None:
        self._done += 1
        if self._bar.disable or (self._done % self._every and self._done < self._bar.total):
            return
        errors = scores_so_far().classifiers[0]
        self._bar.set_postfix_str(
            f"top-1 {errors.top1:.2f}%, top-5 {errors.top5:.2f}%", refresh=False
        )
        self._bar.update(self._done - self._bar.n)
