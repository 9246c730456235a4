"""MixUp and CutMix: pairs of training images and their labels are mixed.

Sources: Zhang et al., ICLR 2018 (MixUp); Yun et al., ICCV 2019 (CutMix); torchvision's `v2.MixUp`
and `v2.CutMix`, which are used here. The paper and the released code have neither.
"""

import torch
from torch import Tensor
from torchvision.transforms import v2

from .seeds import derived_seed


class Mixing:
    """Mixes each image of a batch with the one before it, and the first with the last.

    The random numbers are functions of the seed, the epoch and the step.

    Args:
        mixup, cutmix: the parameter alpha of the distribution Beta(alpha, alpha) of the weights;
            0: not used. At least one must be used. If both are, one is chosen at random for each
            batch.
        num_classes: number of classes.
        seed: random seed.
    """

    def __init__(self, mixup: float, cutmix: float, num_classes: int, seed: int):
        kinds = ((v2.MixUp, mixup), (v2.CutMix, cutmix))
        used = [kind(alpha=float(alpha), num_classes=num_classes) for kind, alpha in kinds if alpha]
        self._mix = v2.RandomChoice(used)
        self._seed = seed

    def __call__(
        self, images: Tensor, labels: Tensor, epoch: int, step: int
    ) -> tuple[Tensor, Tensor]:
        """Mix one process's part of a batch.

        Args:
            images: (1 + B, 3, S, S), float. The first one is the image before those of this
                process in the whole batch, or the last of the batch. So the mixed images do not
                depend on the number of processes.
            labels: (1 + B,), int64.
            epoch, step: of the batch.

        Returns:
            Images (B, 3, S, S) and the probabilities of their classes (B, K), float32.
        """
        with torch.random.fork_rng(devices=[]):  # torchvision draws from the CPU's generator
            torch.default_generator.manual_seed(derived_seed(self._seed, epoch, step, 1))
            images, labels = self._mix(images, labels)
        return images[1:], labels[1:]


def make_mixing(mixup: float, cutmix: float, num_classes: int, seed: int) -> Mixing | None:
    """Return the mixing of these options, or None if both are 0. See `Mixing`."""
    return Mixing(mixup, cutmix, num_classes, seed) if mixup or cutmix else None
