"""Batches of a split that lies on the device: shuffled, augmented and normalised there."""

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from data import Facts, Split
from distributed import shard


class Batch(NamedTuple):
    """This process's part of a batch.

    A last batch of fewer images than processes leaves some with none; such a process gets one
    image of the batch all the same, with a share of 0, so that it can take part in the step.
    """

    images: Tensor  # (B, 3, S, S) float32, normalised
    labels: Tensor  # (B,) int64
    share: float  # of the whole batch's images


class Batches:
    """The batches of one split; of `batch_size` images over all processes, the last one partial.

    Args:
        split: the images and labels; moved to the device whole.
        facts: gives the normalisation.
        batch_size: total over processes.
        device: where the split is held and the batches are made.
    """

    def __init__(self, split: Split, facts: Facts, batch_size: int, device: torch.device):
        self.images, self.labels = split.images.to(device), split.labels.to(device)
        self.batch_size = batch_size
        self.device = device
        self._mean = torch.tensor(facts.mean, device=device).view(3, 1, 1) * 255
        # A channel that is the same everywhere carries nothing; it must not become NaN.
        self._scale = 1 / (torch.tensor(facts.std, device=device).view(3, 1, 1) * 255).clamp_min(1)

    def __len__(self) -> int:
        return -(-len(self.labels) // self.batch_size)

    def epoch(self, epoch: int = 0) -> Iterator[Batch]:
        """The whole split in its own order, as it is."""
        for start in range(0, len(self.labels), self.batch_size):
            whole = range(start, min(start + self.batch_size, len(self.labels)))
            own = whole[shard(len(whole))]
            taken = own or whole[:1]
            part = slice(taken[0], taken[-1] + 1)
            yield self._batch(self.images[part], self.labels[part], len(own) / len(whole))

    def _batch(self, images: Tensor, labels: Tensor, share: float) -> Batch:
        pixels = images.float().sub_(self._mean).mul_(self._scale)
        return Batch(pixels, labels, share)


class AugmentedBatches(Batches):
    """Batches for training: shuffled, and each image with its own crop and flip.

    As in the released code an image is padded by reflection (4 pixels at 32x32; an eighth of the
    side at other sizes), cropped back to its size at random, and mirrored half of the time. Order
    and augmentation are functions of (seed, epoch), whatever was drawn elsewhere, and the same
    for any number of processes.
    """

    def __init__(self, split: Split, *args, seed: int, flip: bool):
        super().__init__(split, *args)
        self._seed = seed
        self._flip = flip
        size = split.images.shape[-1]
        padding = size // 8
        inside = torch.arange(-padding, size + padding, device=self.device).abs()
        reflected = torch.minimum(inside, 2 * (size - 1) - inside)
        padded = self.images[:, :, reflected][:, :, :, reflected]
        # (N, 3, top, left, S, S): every crop there is, as a view.
        self._crops = padded.unfold(2, size, 1).unfold(3, size, 1)

    def epoch(self, epoch: int = 0) -> Iterator[Batch]:
        """The whole split in the order and with the augmentation of this epoch (0-based)."""
        draws = generator(self._seed, epoch)
        count, offsets = len(self.labels), self._crops.shape[2]
        order = torch.randperm(count, generator=draws).to(self.device)
        tops, lefts = torch.randint(offsets, (2, count), generator=draws).to(self.device)
        flips = (torch.rand(count, generator=draws) < 0.5).to(self.device)
        for start in range(0, count, self.batch_size):
            whole = order[start : start + self.batch_size]
            own = shard(len(whole))
            share = (own.stop - own.start) / len(whole)
            index = whole[own] if share else whole[:1]
            images = self._crops[index, :, tops[index], lefts[index]]
            if self._flip:
                images = torch.where(flips[index].view(-1, 1, 1, 1), images.flip(3), images)
            yield self._batch(images, self.labels[index], share)


def generator(*key: int) -> torch.Generator:
    """A CPU generator of random numbers that is a function of the key alone."""
    state = np.random.SeedSequence(key).generate_state(1, np.uint64)
    return torch.Generator().manual_seed(int(state[0]) % 2**63)
