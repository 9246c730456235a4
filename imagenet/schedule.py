"""The learning rate of each step."""

import math
from typing import NamedTuple

LR_SCHEDULES = ("step", "cosine")


class Schedule(NamedTuple):
    """The learning rate as a function of the step, so that there is no state to keep."""

    kind: str  # one of `LR_SCHEDULES`
    lr: float  # the highest
    steps_per_epoch: int
    epochs: int  # of the whole run; `cosine` ends with it
    warmup_epochs: float  # over which the rate rises linearly to `lr`
    milestones: tuple[int, ...]  # finished epochs after which `step` multiplies by the factor
    factor: float

    def rate(self, step: int) -> float:
        """The learning rate of a step, which counts from 0 over the whole run."""
        warmup = round(self.warmup_epochs * self.steps_per_epoch)
        if step < warmup:
            return self.lr * (step + 1) / warmup
        if self.kind == "cosine":
            done = (step - warmup) / max(self.steps_per_epoch * self.epochs - warmup, 1)
            return self.lr * 0.5 * (1 + math.cos(math.pi * done))
        finished = step // self.steps_per_epoch
        return self.lr * self.factor ** sum(finished >= milestone for milestone in self.milestones)
