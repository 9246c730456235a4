"""The learning-rate schedule."""

from typing import NamedTuple


class StepSchedule(NamedTuple):
    """Step decay at milestones, given as 1-based epochs.

    As in the released code, which creates a new optimizer at each milestone, the momentum buffers
    are reset there too.
    """

    lr: float
    milestones: tuple[int, ...]  # 1-based epochs at whose start the rate decays
    ratio: float  # decay factor

    def rate(self, epoch: int) -> float:
        """Return the learning rate of `epoch` (0-based)."""
        rate = self.lr
        for milestone in self.milestones:
            if epoch + 1 >= milestone:
                rate *= self.ratio
        return rate

    def resets_momentum(self, epoch: int) -> bool:
        """Return whether the momentum buffers are reset at the start of `epoch` (0-based)."""
        return epoch + 1 in self.milestones
