"""Save checkpoints between steps, and stop all processes together on a termination signal."""

import signal
import time
from collections.abc import Callable, Iterator
from typing import Protocol

import torch
import torch.distributed as dist
from torch.utils.data import DataLoader

from common.command_line import Interrupted, UserError, termination_signals
from common.distributed import is_peer_failure

NEVER = -(2**62)  # stands for a step that does not exist


class PreemptionGuard:
    """Record termination signals while the block runs, instead of acting on them at once.

    A stop in the middle of a step would leave the processes in different states, or waiting in a
    collective that one of them never enters. They therefore agree to stop between two steps.
    """

    def __init__(self):
        self._signum = 0
        # A CPU group, so that agreeing does not wait for a GPU.
        self._group = dist.new_group(backend="gloo") if dist.is_initialized() else None
        self._previous = {}

    def __enter__(self) -> "PreemptionGuard":
        for signum in termination_signals():
            self._previous[signum] = signal.signal(signum, self._record)
        return self

    def __exit__(self, kind, error, traceback) -> None:
        for signum, handler in self._previous.items():
            signal.signal(signum, handler)
        # After a signal, the peers may have exited. The step then fails; nothing can be saved.
        peer_failed = isinstance(error, RuntimeError) and is_peer_failure(error)
        if self._signum and self._group and peer_failed:
            raise Interrupted(self._signum) from error

    def _record(self, signum, frame) -> None:
        self._signum = signum

    def agree(self, value: int) -> tuple[int, int]:
        """Return the signal that any process has received (0: none) and the maximum of `value`.

        All processes must call it together.
        """
        values = torch.tensor([self._signum, value])
        if self._group:
            dist.all_reduce(values, dist.ReduceOp.MAX, group=self._group)
        signum, maximum = values.tolist()
        return signum, maximum


class TrainingState(Protocol):
    """The part of a `Trainer` that `CheckpointHook` needs."""

    step: int
    epoch: int

    def first_nonfinite_step(self) -> int: ...


class CheckpointHook:
    """Called by every process after each step: save the run at intervals, or stop it.

    Args:
        guard: records signals.
        trainer: gives the step, and whether a loss was not finite.
        save: writes the checkpoint; all processes call it together.
        minutes: between two checkpoints.
    """

    def __init__(
        self,
        guard: PreemptionGuard,
        trainer: TrainingState,
        save: Callable[[], None],
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
        if signum:
            raise Interrupted(signum)

    def save(self) -> None:
        """Save the run. Raise `UserError` instead if a loss was not finite."""
        self.check_losses()
        self._save()
        self._saved_at = time.monotonic()

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
        _, max_batches = self._guard.agree(len(loader))
        for batch in loader:
            yield batch
            self()
        for _ in range(max_batches - len(loader)):
            self()
