"""The learning-rate schedule. Does not import torch."""

from typing import NamedTuple

from common.command_line import plural

# In percent of the epochs: 60, 120 and 160 of 200, and 82 and 123 of 164.
PERCENT = {"wrn": (30, 60, 80), "resnet": (50, 75)}


class StepSchedule(NamedTuple):
    """Step decay at milestones, given as 1-based epochs."""

    lr: float
    milestones: tuple[int, ...]  # 1-based epochs at whose start the rate decays
    ratio: float  # decay factor
    # Whether milestones reset the momentum buffers, as in the released code, which creates a new
    # optimizer there.
    reset_momentum: bool = True

    def rate(self, epoch: int) -> float:
        """Return the learning rate of `epoch` (0-based)."""
        rate = self.lr
        for milestone in self.milestones:
            if epoch + 1 >= milestone:
                rate *= self.ratio
        return rate

    def resets_momentum(self, epoch: int) -> bool:
        """Return whether the momentum buffers are reset at the start of `epoch` (0-based)."""
        return self.reset_momentum and epoch + 1 in self.milestones

    def describe(self, epochs: int) -> str:
        """Return a line that says at which of the epochs the rate falls and to what."""
        start = f"learning rate {self.rate(0):g}"
        falls = sorted({epoch for epoch in self.milestones if 1 < epoch <= epochs})
        if not falls:
            return f"{start}, constant over {plural(epochs, 'epoch')}"
        first, *others = (f"{self.rate(epoch - 1):g} at {{}}{epoch}" for epoch in falls)
        steps = [first.format("epoch "), *(step.format("") for step in others)]
        return f"{start}, decayed to {', '.join(steps)}"


def scaled_milestones(epochs: int, arch: str) -> tuple[int, ...]:
    """Return the paper's milestones for another number of epochs, in proportion and rounded.

    In runs of a few epochs, milestones coincide or would be in the first epoch; these are left out.
    """
    rounded = ((percent * epochs + 50) // 100 for percent in PERCENT[arch])
    return tuple(sorted({epoch for epoch in rounded if 1 < epoch <= epochs}))
