"""Batches of a dataset on the device: shuffled, augmented and normalized there."""

from collections.abc import Iterator
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor

from common.distributed import shard
from common.mixing import Mixing
from common.seeds import derived_seed
from common.stopping import PreemptionGuard
from data import DatasetInfo, Split


class Batch(NamedTuple):
    """This process's part of a batch.

    If the last batch has fewer images than there are processes, a process without images gets a
    placeholder image with a batch fraction of 0, so that it can take part in the step.
    """

    images: Tensor  # (B, 3, S, S) float32, normalized
    labels: Tensor  # (B,) int64, or (B, K) float32 if images are mixed
    batch_fraction: float  # fraction of the whole batch's images


class Batches:
    """The batches of a split in its stored order. The last batch may be partial.

    Args:
        split: images and labels; copied to the device.
        info: provides the mean and standard deviation for normalization.
        batch_size: total batch size over all processes.
        device: device of the split and the batches.
    """

    def __init__(self, split: Split, info: DatasetInfo, batch_size: int, device: torch.device):
        self.images, self.labels = split.images.to(device), split.labels.to(device)
        self.batch_size = batch_size
        self.device = device
        self._mean = torch.tensor(info.mean, device=device).view(3, 1, 1) * 255
        std = torch.tensor(info.std, device=device).view(3, 1, 1) * 255
        self._scale = 1 / std.clamp_min(1)  # avoids NaN for constant channels

    def __len__(self) -> int:
        return -(-len(self.labels) // self.batch_size)

    def epoch(self, epoch: int = 0) -> Iterator[Batch]:
        """Yield the batches of the split in its stored order; `epoch` is ignored."""
        for start in range(0, len(self.labels), self.batch_size):
            batch = range(start, min(start + self.batch_size, len(self.labels)))
            own = batch[shard(len(batch))]
            used = own or batch[:1]  # a placeholder if there are none
            part = slice(used[0], used[-1] + 1)
            yield self._normalize(self.images[part], self.labels[part], len(own) / len(batch))

    def _normalize(self, images: Tensor, labels: Tensor, batch_fraction: float) -> Batch:
        pixels = images.float().sub_(self._mean).mul_(self._scale)
        return Batch(pixels, labels, batch_fraction)


class AugmentedBatches(Batches):
    """Training batches: shuffled, with random crops and horizontal flips.

    As in the released code, images are padded by reflection (by an eighth of the side, which is 4
    pixels at 32x32), cropped to their size, and flipped with probability 1/2. Order and
    augmentation are functions of the seed and the epoch, for any number of processes.

    Args:
        split, *args: see `Batches`.
        seed: random seed.
        flip: whether to flip images.
        mixing: mixes pairs of images of a batch, if given.
        random_scheme: see `derived_seed`.
    """

    def __init__(
        self,
        split: Split,
        *args,
        seed: int,
        flip: bool,
        mixing: Mixing | None = None,
        random_scheme: int = 2,
    ):
        super().__init__(split, *args)
        self._seed = partial(derived_seed, seed, scheme=random_scheme)
        self._flip = flip
        self._mixing = mixing
        size = split.images.shape[-1]
        padding = size // 8
        index = torch.arange(-padding, size + padding, device=self.device).abs()
        index = torch.minimum(index, 2 * (size - 1) - index)  # reflected at both ends
        padded = self.images[:, :, index][:, :, :, index]
        # A view of every possible crop: (N, 3, top, left, S, S).
        self._crops = padded.unfold(2, size, 1).unfold(3, size, 1)

    def epoch(self, epoch: int = 0) -> Iterator[Batch]:
        """Yield the batches of `epoch` (0-based)."""
        generator = torch.Generator().manual_seed(self._seed(epoch))
        count, offsets = len(self.labels), self._crops.shape[2]
        order = torch.randperm(count, generator=generator).to(self.device)
        tops, lefts = torch.randint(offsets, (2, count), generator=generator).to(self.device)
        flips = (torch.rand(count, generator=generator) < 0.5).to(self.device)
        for step, start in enumerate(range(0, count, self.batch_size)):
            batch = order[start : start + self.batch_size]
            own = shard(len(batch))
            batch_fraction = (own.stop - own.start) / len(batch)
            index = batch[own] if batch_fraction else batch[:1]
            if self._mixing:
                index = torch.cat((batch[own.start - 1].view(1), index))
            images = self._crops[index, :, tops[index], lefts[index]]
            if self._flip:
                images = torch.where(flips[index].view(-1, 1, 1, 1), images.flip(3), images)
            images, labels, _ = part = self._normalize(images, self.labels[index], batch_fraction)
            if self._mixing:
                part = Batch(*self._mixing(images, labels, epoch, step), batch_fraction)
            yield part


class StoppableBatches:
    """Batches between which all processes stop together when a signal arrives."""

    def __init__(self, batches: Batches, guard: PreemptionGuard):
        self._batches = batches
        self._guard = guard

    def __len__(self) -> int:
        return len(self._batches)

    def epoch(self, epoch: int = 0) -> Iterator[Batch]:
        """Yield the batches of `epoch` (0-based). Raise `Interrupted` after a signal."""
        return self._guard.over(self._batches.epoch(epoch), len(self))
