"""Learning-rate schedule."""

import math
from typing import NamedTuple

LR_SCHEDULES = ("step", "cosine")


class Schedule(NamedTuple):
    """Learning rate as a function of the step. It has no state to save."""

    kind: str  # one of `LR_SCHEDULES`
    lr: float  # initial learning rate, after the warmup
    steps_per_epoch: int
    epochs: int  # of the whole run, at whose end `cosine` reaches 0
    warmup_epochs: float  # during which the learning rate rises linearly to `lr`
    milestones: tuple[int, ...]  # finished epochs after which `step` multiplies by `factor`
    factor: float

    def rate(self, step: int) -> float:
        """Return the learning rate of a step, counted from 0 over the whole run."""
        warmup = round(self.warmup_epochs * self.steps_per_epoch)
        if step < warmup:
            return self.lr * (step + 1) / warmup
        if self.kind == "cosine":
            progress = (step - warmup) / max(self.steps_per_epoch * self.epochs - warmup, 1)
            return self.lr * 0.5 * (1 + math.cos(math.pi * progress))
        finished = step // self.steps_per_epoch
        return self.lr * self.factor ** sum(finished >= milestone for milestone in self.milestones)
