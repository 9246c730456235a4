"""The test of every classifier: counts, sums over batches and processes, and scores."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor, nn

from .checkpoint import write_json
from .command_line import UserError, plural
from .distributed import Compute, print_once, rank
from .options import OutputConfig


class Batch(NamedTuple):
    """This process's part of a batch, on the device."""

    images: Tensor  # (B, 3, S, S) float32, normalized
    labels: Tensor  # (B,) int64, or (B, K) float32 if images are mixed
    total: int  # number of images of the whole batch, over all processes


def classifier_names(count: int) -> list[str]:
    """Return the names of a network's classifiers in the order of the logits."""
    if count <= 3:
        return ["backbone", "shallow branch", "deep branch"][:count]
    return ["backbone", *(f"branch {i}" for i in range(1, count))]


def prediction_counts(logits: Sequence[Tensor], labels: Tensor) -> dict[str, Tensor]:
    """Count correct predictions of logits, N tensors (B, K), in a batch of a test.

    Returns:
        `top1` and `top5`, (N + 1,): correct predictions of each classifier and of the ensemble;
        `images` and `not_finite`: numbers of images, and of those whose logits are not finite.
    """
    stacked = torch.stack(tuple(logits)).float()  # (N, B, K)
    # A single classifier is ranked by its logits: softmax can round them to equal probabilities.
    ensemble = stacked.softmax(-1).mean(0, keepdim=True) if len(stacked) > 1 else stacked
    scores = torch.cat([stacked, ensemble])  # (N + 1, B, K)
    # Of equal logits, which bfloat16 makes frequent, the first counts; topk would take any.
    best = scores.sort(dim=-1, descending=True, stable=True).indices[..., :5]  # (N + 1, B, 5)
    hits = best == labels[:, None]
    return {
        "top1": hits[..., 0].sum(-1),
        "top5": hits.any(-1).sum(-1),
        "images": torch.full_like(labels[0], len(labels)),
        "not_finite": (~stacked.isfinite().all(-1).all(0)).sum(),
    }


class Sums:
    """Named running sums, kept on the device so that adding to them does not synchronize."""

    def __init__(self, device: torch.device):
        self._device = device
        self._sums: dict[str, Tensor] = {}

    def add(self, **values: Tensor) -> None:
        """Add each value to the sum of that name; its shape must be the same in every call."""
        for name, value in values.items():
            value = value.detach().to(self._device, torch.float64)
            self._sums[name] = self._sums[name] + value if name in self._sums else value

    def totals(self) -> dict[str, Tensor]:
        """Return the sums over all processes, on the CPU."""
        totals = {name: value.clone() for name, value in self._sums.items()}
        if dist.is_initialized():
            for value in totals.values():
                dist.all_reduce(value)
        return {name: value.cpu() for name, value in totals.items()}


@dataclass(frozen=True)
class Scores:
    """The result of a test. Errors are in percent: of the backbone, then of the branches."""

    images: int
    top1_errors: list[float]
    top5_errors: list[float]
    ensemble_top1_error: float  # of the mean of the classifiers' probabilities
    ensemble_top5_error: float
    losses: dict[str, float] | None = None  # means over the images, by field of `Losses`
    divergences: list[list[float]] | None = None  # KL(p_j || p_i) at [j][i]
    confusion: Tensor | None = None  # (K, K): images of class [i] that are predicted as [j]

    @classmethod
    def from_sums(cls, totals: dict[str, Tensor], loss_names: Sequence[str]) -> "Scores":
        """Compute the scores from sums over all images of `prediction_counts` and losses."""
        images, not_finite = int(totals.pop("images")), int(totals.pop("not_finite"))
        if not_finite:
            raise UserError(
                f"the logits are not finite for {plural(not_finite, 'image')}; in training, try a "
                "lower --lr; in a test, --dtype float32 or another checkpoint"
            )
        confusion = totals.pop("confusion", None)
        top1, top5 = ((100 * (images - totals.pop(k)) / images).tolist() for k in ("top1", "top5"))
        means = {name: (total / images).tolist() for name, total in totals.items()}
        if "losses" in means:
            means["losses"] = dict(zip(loss_names, means["losses"], strict=True))
        ensemble = top1.pop(), top5.pop()
        return cls(images, top1, top5, *ensemble, **means, confusion=confusion)

    def by_name(self) -> dict[str, tuple[float, float]]:
        """Return the top-1 and the top-5 error of each classifier and of the ensemble."""
        pairs = zip(self.top1_errors, self.top5_errors, strict=True)
        named = dict(zip(classifier_names(len(self.top1_errors)), pairs, strict=True))
        if len(named) > 1:
            named["ensemble"] = (self.ensemble_top1_error, self.ensemble_top5_error)
        return named

    def to_dict(self) -> dict:
        """Return the scores as plain values, without the confusion matrix."""
        return {name: value for name, value in vars(self).items() if name != "confusion"}


@torch.no_grad()
def evaluate(
    models: dict[str, nn.Module],
    batches: Iterable[Batch],
    compute: Compute,
    criterion: nn.Module | None = None,
    after_batch: Callable[[], None] = lambda: None,
    confusion: bool = False,
) -> dict[str, Scores]:
    """Score models on the images of all processes, in one pass. Puts them into evaluation mode.

    Args:
        models: by name; each maps images to a tuple of logits (B, K), the backbone's first.
        batches: this process's images, each once.
        compute: where and how to compute. Softmax and means are always float32.
        criterion: if given, the losses and the divergences are computed too.
        after_batch: called after each batch.
        confusion: whether to count the predictions of the backbone by class.
    """
    sums = {name: Sums(compute.device) for name in models}
    for model in models.values():
        model.eval()
    for batch in batches:
        for name, model in models.items():
            logits = compute.forward(model, batch.images)
            counts = prediction_counts(logits, batch.labels)
            if criterion is not None:
                count = len(batch.labels)
                counts["losses"] = torch.stack(criterion(logits, batch.labels)) * count
                counts["divergences"] = criterion.divergences(logits) * count
            if confusion:
                classes = logits[0].shape[-1]
                cell = batch.labels * classes + logits[0].argmax(-1)
                # Not bincount, which waits for a GPU.
                cells = cell.new_zeros(classes**2).index_add_(0, cell, torch.ones_like(cell))
                counts["confusion"] = cells.view(classes, classes)
            sums[name].add(**counts)
        after_batch()
    names = criterion.loss_names if criterion is not None else ()
    return {name: Scores.from_sums(each.totals(), names) for name, each in sums.items()}


@torch.no_grad()
def predict(model: nn.Module, batches: Iterable[Batch], compute: Compute) -> Tensor:
    """Return the backbone's probabilities of the classes for each image, (N, K)."""
    model.eval()
    logits = [compute.forward(model, batch.images)[0].cpu() for batch in batches]
    return torch.cat(logits).float().softmax(-1)


def print_scores(scores: Scores) -> None:
    """Print the errors of every classifier and of their ensemble."""
    for name, (top1, top5) in scores.by_name().items():
        print_once(f"[{name}] top-1 error {top1:.2f} %, top-5 error {top5:.2f} %")


def report_scores(
    scores: Scores, classes: Sequence[str], config: OutputConfig, source: object
) -> None:
    """Print the scores of the weights in `source`, and write them to --json."""
    by_class, confused = class_errors(scores, classes), confused_pairs(scores, classes)
    if config.per_class:
        print_once("top-1 error of each class:")
        for name, error in by_class.items():
            print_once(f"{error:7.2f} %  {name}")
        for each in confused:
            print_once("{images:7} ×  {class} taken for {predicted}".format(**each))
    print_scores(scores)
    names = ("top1_error", "top5_error")
    errors = {k: dict(zip(names, pair, strict=True)) for k, pair in scores.by_name().items()}
    content = {
        **errors["backbone"],
        "classifiers": errors,
        **scores.to_dict(),
        "class_errors": by_class,
        "confused": confused,
        "checkpoint": str(source),
        "options": config.to_dict(),
        "torch": torch.__version__,
    }
    if config.json and rank() == 0:
        write_json(config.json, content)


def class_errors(scores: Scores, classes: Sequence[str]) -> dict[str, float]:
    """Return the backbone's top-1 error of each class that was tested, in percent."""
    counts, correct = scores.confusion.sum(1).tolist(), scores.confusion.diagonal().tolist()
    each = zip(classes, counts, correct, strict=True)
    return {name: 100 - 100 * right / count for name, count, right in each if count}


def confused_pairs(scores: Scores, classes: Sequence[str], limit: int = 10) -> list[dict]:
    """Return the classes that the backbone confuses most often, the most frequent first."""
    wrong = scores.confusion.clone().fill_diagonal_(0)
    counts, cells = wrong.flatten().topk(min(limit, wrong.numel()))
    return [
        {
            "class": classes[cell // len(classes)],
            "predicted": classes[cell % len(classes)],
            "images": int(count),
        }
        for count, cell in zip(counts.tolist(), cells.tolist(), strict=True)
        if count
    ]
