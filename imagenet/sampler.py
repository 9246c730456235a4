"""The order of the training images: a batch sampler that can start at any step."""

from collections.abc import Iterator

import torch

from common.distributed import shard
from common.seeds import derived_seed


class ResumableBatchSampler:
    """Batch sampler of this process that can start at any step of any epoch.

    The order is a function of (seed, epoch). A batch holds the same images for any number of
    processes, each of which takes a contiguous part of it. The last batch may be partial.

    Args:
        num_images: size of the data set.
        batch_size: total batch size over all processes.
        seed: of the order.
        with_previous: put the image before those of this process in front of them, or the last
            one of the batch before its first; for `Mixing`.
    """

    def __init__(self, num_images: int, batch_size: int, seed: int, with_previous: bool = False):
        self.steps = -(-num_images // batch_size)  # in an epoch
        self._num_images = num_images
        self._batch_size = batch_size
        self._seed = seed
        self._with_previous = with_previous
        self._epoch = self._first_step = 0

    def start_at(self, epoch: int, first_step: int) -> None:
        """Make the next iteration yield the batches of `epoch` from `first_step` on."""
        self._epoch, self._first_step = epoch, first_step

    def batch_fraction(self, step: int) -> float:
        """Return this process's fraction of the batch, from 0 to 1."""
        batch = self._batch(step)
        return len(batch[shard(len(batch))]) / len(batch)

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        generator = torch.Generator().manual_seed(derived_seed(self._seed, self._epoch))
        order = torch.randperm(self._num_images, generator=generator)
        for step in range(self._first_step, self.steps):
            batch = self._batch(step)
            # A process without images in the batch gets a placeholder, which has weight 0.
            own = batch[shard(len(batch))] or batch[:1]
            positions = list(own)
            if self._with_previous:
                positions.insert(0, own.start - 1 if own.start > batch.start else batch[-1])
            yield [(self._epoch, index) for index in order[positions].tolist()]

    def _batch(self, step: int) -> range:
        """Positions of a batch in the order of the epoch."""
        start = step * self._batch_size
        return range(start, min(start + self._batch_size, self._num_images))
