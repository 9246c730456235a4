"""Functions of the position in a run: the learning rate, the seeds, and how images are mixed."""

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torchvision.transforms import v2

from .command_line import plural
from .options import TrainingConfig


def scaled_milestones(percent: Sequence[int], epochs: int, offset: int = 0) -> tuple[int, ...]:
    """Return milestones for another number of epochs, rounded; those outside of the run are left
    out.

    Args:
        percent: milestones in percent of the epochs.
        epochs: of the run.
        offset: 1 if `percent` is of epochs counted from 1, at whose start the rate decays.
    """
    scaled = {(epochs * each + 50) // 100 - offset for each in percent}
    return tuple(sorted(each for each in scaled if 0 < each < epochs))


class Schedule(NamedTuple):
    """The learning rate as a function of the step. It has no state to save."""

    kind: str  # `step` or `cosine`
    lr: float  # initial learning rate, after the warm-up
    milestones: tuple[int, ...]  # finished epochs after which `step` multiplies by `factor`
    factor: float
    warmup_epochs: float  # during which the learning rate rises linearly to `lr`
    epochs: int  # of the whole run, at whose end `cosine` reaches 0
    steps_per_epoch: int
    # Whether momentum is cleared at milestones, as by the released code for CIFAR, which creates a
    # new optimizer there.
    clears_momentum: bool = False
    first_epoch_factor: float = 1.0  # on the rate of the first epoch

    def rate(self, step: int) -> float:
        """Return the learning rate of a step, counted from 0 over the whole run."""
        warmup = round(self.warmup_epochs * self.steps_per_epoch)
        if step < warmup:
            return self.lr * (step + 1) / warmup
        if self.kind == "cosine":
            progress = (step - warmup) / max(self.steps_per_epoch * self.epochs - warmup, 1)
            return self.lr * 0.5 * (1 + math.cos(math.pi * progress))
        finished, rate = step // self.steps_per_epoch, self.lr
        for milestone in self.milestones:
            if finished >= milestone:
                rate *= self.factor
        return rate if finished else rate * self.first_epoch_factor

    def clears_momentum_at(self, step: int) -> bool:
        """Return whether momentum is cleared before a step."""
        epoch, in_epoch = divmod(step, self.steps_per_epoch)
        return self.clears_momentum and in_epoch == 0 and epoch in self.milestones

    def __str__(self) -> str:
        """Describe the schedule, such as `learning rate 0.1, times 0.1 after epoch 30 of 90`."""
        text = f"learning rate {self.lr:g}"
        if self.warmup_epochs:
            text += f" after {self.warmup_epochs:g} epochs of linear warm-up"
        if self.first_epoch_factor != 1:
            text += f" ({self.lr * self.first_epoch_factor:g} in the first epoch)"
        if self.kind == "cosine":
            return f"{text}, half a cosine to 0 over {plural(self.epochs, 'epoch')}"
        milestones = [str(each) for each in sorted(self.milestones) if each < self.epochs]
        if not milestones:
            return f"{text}, constant over {plural(self.epochs, 'epoch')}"
        return f"{text}, times {self.factor:g} after epoch {', '.join(milestones)} of {self.epochs}"


def make_schedule(config: TrainingConfig, steps_per_epoch: int, **options) -> Schedule:
    """Return the schedule of these options; `options` are further fields of `Schedule`."""
    return Schedule(
        config.lr_schedule,
        config.lr,
        config.milestones,
        config.lr_factor,
        config.warmup_epochs,
        config.epochs,
        steps_per_epoch,
        **options,
    )


def derived_seed(seed: int, *key: int) -> int:
    """Derive a seed from the seed of a run and a key, such as an epoch and a process.

    Different keys give different seeds, also if they differ only in their length.
    """
    return int(np.random.SeedSequence(seed, spawn_key=key).generate_state(1, np.uint64)[0])


class Mixing:
    """Mixes each image of a batch with the one before it, and the first with the last.

    The random numbers are functions of the seed, the epoch and the step.

    Args:
        mixup, cutmix: the parameter alpha of the distribution Beta(alpha, alpha) of the weights;
            0: not used. If both are used, one is chosen at random for each batch.
        num_classes: number of classes K.
        seed: random seed.
    """

    def __init__(self, mixup: float, cutmix: float, num_classes: int, seed: int):
        kinds = ((v2.MixUp, mixup), (v2.CutMix, cutmix))
        used = [kind(alpha=float(alpha), num_classes=num_classes) for kind, alpha in kinds if alpha]
        self._mix = v2.RandomChoice(used) if used else None
        self._seed = seed

    def __bool__(self) -> bool:
        return self._mix is not None

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
