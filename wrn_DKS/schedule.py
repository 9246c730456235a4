"""The learning rate of each epoch."""

from typing import NamedTuple


class StepSchedule(NamedTuple):
    """The rate falls by a factor at the start of each milestone epoch.

    As in the released code the milestones count epochs from 1, and at each a new optimizer is
    made there: the momentum buffers start anew.
    """

    lr: float
    milestones: tuple[int, ...]  # 1-based epochs
    ratio: float  # factor at each

    def rate(self, epoch: int) -> float:
        """The learning rate in `epoch`, 0-based."""
        rate = self.lr
        for milestone in self.milestones:
            if epoch + 1 >= milestone:
                rate *= self.ratio
        return rate

    def resets_momentum(self, epoch: int) -> bool:
        """Whether `epoch`, 0-based, begins without momentum."""
        return epoch + 1 in self.milestones
