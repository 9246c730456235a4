"""Training without the images that cannot be read: they are left out of their batch."""

import torch
import torch.distributed as dist
from torch import Tensor

from data import UNREADABLE


class SkippedImages:
    """Leaves unreadable images out of the batches of all processes, which call it together.

    Args:
        with_previous: the first image is that before those of this process, for `Mixing`.
    """

    def __init__(self, with_previous: bool):
        self._first = int(with_previous)
        # A CPU group, so that adding numbers of images does not wait for a GPU.
        self._group = dist.new_group(backend="gloo") if dist.is_initialized() else None

    def __call__(
        self, images: Tensor, labels: Tensor, batch_fraction: float
    ) -> tuple[Tensor, Tensor, float, int]:
        """Return a batch without its unreadable images, and their number.

        The fraction becomes that of the remaining images of the whole batch. A process without any
        gets a blank placeholder and the fraction 0. If there are none in the whole batch, each
        process gets an empty batch.

        Args:
            images: (B, 3, S, S); blank if unreadable.
            labels: (B,); `UNREADABLE` if the image is.
            batch_fraction: 0 for a placeholder, which does not count.
        """
        readable = (labels != UNREADABLE).tolist()
        own = range(self._first, len(labels) if batch_fraction else self._first)
        kept = [index for index in own if readable[index]]
        total, unreadable = self._sum(len(kept)), len(own) - len(kept)
        if not total:
            return images[:0], labels[:0], 0.0, unreadable
        if not all(readable):
            used = kept or [len(labels) - 1]  # a placeholder
            previous = [0 if readable[0] else used[-1]] * self._first
            images, labels = images[previous + used], labels[previous + used].clamp_min(0)
        return images, labels, len(kept) / total, unreadable

    def _sum(self, count: int) -> int:
        """Return the sum of a number over all processes."""
        value = torch.tensor(count)
        if self._group:
            dist.all_reduce(value, group=self._group)
        return int(value)
