"""Learning-rate schedule. Does not import torch."""

import math
from typing import NamedTuple

from common.command_line import plural

LR_SCHEDULES = ("step", "cosine")


def default_milestones(epochs: int) -> tuple[int, ...]:
    """Return the paper's milestones, 30, 60 and 90 of 100 epochs, scaled to `epochs` epochs.

    Milestones that fall together or do not lie inside the run are dropped.
    """
    scaled = {(epochs * percent + 50) // 100 for percent in (30, 60, 90)}  # half rounds up
    return tuple(sorted(milestone for milestone in scaled if 0 < milestone < epochs))


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

    def __str__(self) -> str:
        """Describe the schedule, such as `learning rate 0.1, decayed to 0.01 after epoch 30`."""
        text = f"learning rate {self.lr:g}"
        if self.warmup_epochs:
            unit = "epoch" if self.warmup_epochs == 1 else "epochs"
            text += f" after {self.warmup_epochs:g} {unit} of linear warmup"
        if self.kind == "cosine":
            return f"{text}, decayed to 0 along half a cosine over {plural(self.epochs, 'epoch')}"
        rate, decays = self.lr, []
        for milestone in sorted(self.milestones):
            rate *= self.factor
            if milestone < self.epochs:
                decays.append(f"{rate:g} after {milestone}")
        if not decays:
            return f"{text}, constant over {plural(self.epochs, 'epoch')}"
        return f"{text}, decayed to {', '.join(decays).replace('after', 'after epoch', 1)}"
