"""Save checkpoints between steps, at intervals and on a termination signal."""

import time
from collections.abc import Callable, Iterator
from functools import partial
from typing import Protocol

from torch import Tensor
from torch.utils.data import DataLoader

from common.command_line import UserError
from common.metrics import MetricSums
from common.stopping import PreemptionGuard

NEVER = -(2**62)  # stands for a step that does not exist


class TrainingState(Protocol):
    """The part of a `Trainer` that `CheckpointHook` needs."""

    step: int
    epoch: int
    sums: MetricSums

    def first_nonfinite_step(self) -> int: ...


class CheckpointHook:
    """Called by every process after each step: save the run at intervals, or stop it.

    Args:
        guard: records signals.
        trainer: gives the step, and whether a loss was not finite.
        save: writes the checkpoint on process 0, given the sums over all processes.
        minutes: between two checkpoints.
    """

    def __init__(
        self,
        guard: PreemptionGuard,
        trainer: TrainingState,
        save: Callable[[dict[str, Tensor]], None],
        minutes: float,
    ):
        self._guard = guard
        self._trainer = trainer
        self._save = save
        self._interval_s = 60 * minutes
        self._saved_at = time.monotonic()

    def __call__(self, check_losses: bool = False) -> None:
        """Run the hook. With `check_losses`, wait for the device and check its losses.

        Raises:
            UserError: a loss was not finite.
            Interrupted: a signal arrived; the run is saved.
        """
        due = time.monotonic() - self._saved_at >= self._interval_s
        signum, due = self._guard.agree(due)
        if check_losses and not (signum or due):
            self.check_losses()
        if signum or due:
            self.save()

    def save(self) -> None:
        """Save the run; stop it if a signal has arrived.

        Raises:
            UserError: a loss or a weight is not finite.
            Interrupted: a signal arrived; the run is saved.
        """
        self.check_losses()
        self._guard.on_main_process(partial(self._save, self._trainer.sums.totals()))
        self._saved_at = time.monotonic()
        self._guard.check()

    def check_losses(self) -> None:
        """Raise `UserError` if a loss of any process was not finite."""
        step = self._trainer.first_nonfinite_step()
        _, first = self._guard.agree(-step if step else NEVER)
        if first != NEVER:
            raise UserError(
                f"the loss is not finite since step {-first} of the run (epoch "
                f"{self._trainer.epoch + 1}); the last checkpoint is from an earlier step; "
                "try a lower --lr"
            )

    def wrap(self, loader: DataLoader) -> Iterator:
        """Yield the loader's batches; run the hook after each, equally often on every process."""
        return self._guard.over(loader, len(loader), self)
