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
    """Return those milestones, given in percent of the epochs, that are within the run.

    `offset` is 1 if `percent` is of epochs counted from 1, at whose start the rate decays.
    """
    scaled = {(epochs * each + 50) // 100 - offset for each in percent}
    return tuple(sorted(each for each in scaled if 0 < each < epochs))


class Schedule(NamedTuple):
    """The learning rate as a function of the step. It has no state to save."""

    config: TrainingConfig
    steps_per_epoch: int
    # Whether momentum is cleared at milestones, as by the released code for CIFAR, which creates a
    # new optimizer there.
    clears_momentum: bool = False
    first_epoch_factor: float = 1.0  # on the rate of the first epoch

    def rate(self, step: int) -> float:
        """Return the learning rate of a step, counted from 0 over the whole run."""
        config, rate = self.config, self.config.lr
        warmup = round(config.warmup_epochs * self.steps_per_epoch)
        if step < warmup:
            return rate * (step + 1) / warmup
        if config.lr_schedule == "cosine":
            progress = (step - warmup) / max(self.steps_per_epoch * config.epochs - warmup, 1)
            return rate * 0.5 * (1 + math.cos(math.pi * progress))
        finished = step // self.steps_per_epoch
        for milestone in config.milestones:
            if finished >= milestone:
                rate *= config.lr_factor
        return rate if finished else rate * self.first_epoch_factor

    def clears_momentum_at(self, step: int) -> bool:
        """Return whether momentum is cleared before a step."""
        epoch, in_epoch = divmod(step, self.steps_per_epoch)
        return self.clears_momentum and in_epoch == 0 and epoch in self.config.milestones

    def __str__(self) -> str:
        """Describe the schedule, such as `learning rate 0.1, times 0.1 after epoch 30 of 90`."""
        config, text = self.config, f"learning rate {self.config.lr:g}"
        if config.warmup_epochs:
            text += f" after {config.warmup_epochs:g} epochs of linear warm-up"
        if self.first_epoch_factor != 1:
            text += f" ({config.lr * self.first_epoch_factor:g} in the first epoch)"
        if config.lr_schedule == "cosine":
            return f"{text}, half a cosine to 0 over {plural(config.epochs, 'epoch')}"
        milestones = [str(each) for each in sorted(config.milestones) if each < config.epochs]
        if not milestones:
            return f"{text}, constant over {plural(config.epochs, 'epoch')}"
        text += f", times {config.lr_factor:g} after epoch {', '.join(milestones)}"
        return f"{text} of {config.epochs}"


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
        used = [kind(alpha=alpha, num_classes=num_classes) for kind, alpha in kinds if alpha]
        self._mix = v2.RandomChoice(used) if used else None
        self._seed = seed

    def __bool__(self) -> bool:
        return self._mix is not None

    def __call__(
        self, images: Tensor, labels: Tensor, epoch: int, step: int
    ) -> tuple[Tensor, Tensor]:
        """Mix one process's part of a batch: images (1 + B, 3, S, S) and labels (1 + B,).

        The first image is the one before those of this process in the whole batch, or the last. So
        the mixed images (B, 3, S, S) do not depend on the number of processes. With them, return
        the probabilities of their classes (B, K), float32.
        """
        with torch.random.fork_rng(devices=[]):  # torchvision draws from the CPU's generator
            torch.default_generator.manual_seed(derived_seed(self._seed, epoch, step, 1))
            images, labels = self._mix(images, labels)
        return images[1:], labels[1:]
