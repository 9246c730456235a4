"""What happens between two steps: a checkpoint, or a stop that all processes agree on."""

import signal
import time
from collections.abc import Callable, Iterator
from typing import Protocol

import torch
import torch.distributed as dist
from torch.utils.data import DataLoader

from common.command_line import Interrupted, UserError, termination_signals
from common.distributed import is_peer_failure, print_once

NEVER = -(2**62)


class PreemptionGuard:
    """Note termination signals while the block runs, instead of acting on them at once.

    A stop in the middle of a step would leave the processes in different states, or waiting in a
    collective that one of them never enters. They therefore agree on a stop after a step.
    """

    def __init__(self):
        self._signum = 0
        # On the CPU, where agreeing waits for no GPU.
        self._group = dist.new_group(backend="gloo") if dist.is_initialized() else None
        self._previous = {}

    def __enter__(self) -> "PreemptionGuard":
        for signum in termination_signals():
            self._previous[signum] = signal.signal(signum, self._note)
        return self

    def __exit__(self, kind, error, traceback) -> None:
        for signum, handler in self._previous.items():
            signal.signal(signum, handler)
        # A signalled process may find its peers gone: the step fails and there is nothing to save.
        peer_failed = isinstance(error, RuntimeError) and is_peer_failure(error)
        if self._signum and self._group and peer_failed:
            raise Interrupted(self._signum) from error

    def _note(self, signum, frame) -> None:
        self._signum = signum

    def agree(self, value: int) -> tuple[int, int]:
        """Return the signal that any process has received (0: none) and the maximum of `value`.

        Every process must call it together.
        """
        values = torch.tensor([self._signum, value])
        if self._group:
            dist.all_reduce(values, dist.ReduceOp.MAX, group=self._group)
        signum, maximum = values.tolist()
        return signum, maximum


class TrainingState(Protocol):
    """What `CheckpointHook` reads of a `Trainer`."""

    step: int
    epoch: int

    def first_bad_step(self) -> int: ...


class CheckpointHook:
    """Called by every process after each step: saves the run when it is time, or stops it.

    Args:
        guard: collects signals.
        trainer: knows the step, and whether a loss was not finite.
        save: writes the checkpoint; every process calls it together.
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

    def __call__(self, read: bool = False) -> None:
        """Run the hook; with `read`, wait for the device and check its losses in any case.

        Raises:
            UserError: a loss was not finite.
            Interrupted: a signal arrived; the run is saved.
        """
        due = time.monotonic() - self._saved_at >= self._interval_s
        signum, due = self._guard.agree(due)
        if read and not (signum or due):
            self.refuse_bad_losses()
        if signum or due:
            self.save()
        if signum:
            print_once(
                f"saved after step {self._trainer.step}; to continue, add --resume auto to the "
                "same command"
            )
            raise Interrupted(signum)

    def save(self) -> None:
        """Save the run, unless a loss was not finite, which raises `UserError`."""
        self.refuse_bad_losses()
        self._save()
        self._saved_at = time.monotonic()

    def refuse_bad_losses(self) -> None:
        """Raise `UserError` if a loss of any process was not finite."""
        step = self._trainer.first_bad_step()
        _, first = self._guard.agree(-step if step else NEVER)
        if first != NEVER:
            raise UserError(
                f"the loss is not finite since step {-first} of the run (epoch "
                f"{self._trainer.epoch + 1}); the last checkpoint is from before it; "
                "try a lower --lr"
            )

    def over(self, loader: DataLoader) -> Iterator:
        """Yield the loader's batches and run after each, equally often on every process."""
        _, most = self._guard.agree(len(loader))
        for batch in loader:
            yield batch
            self()
        for _ in range(most - len(loader)):
            self()
