"""What happens between two steps: a stop that all processes agree on, or a checkpoint."""

import signal
import time
from collections.abc import Callable, Iterator

import torch
import torch.distributed as dist
from torch.utils.data import DataLoader

from command_line import Refused, Stopped, stop_signals
from distributed import lost_a_process, print_once
from engine import Trainer

NEVER = -(2**62)


class Interruption:
    """While the block runs, signals that end a run are noted instead of breaking into a step.

    Stopping in the middle of a step would leave the processes in different states, or waiting in
    a collective that one of them never enters. So they ask at the end of a step, and agree.
    """

    def __init__(self):
        self._signum = 0
        # On the CPU, where agreeing waits for no GPU.
        self._group = dist.new_group(backend="gloo") if dist.is_initialized() else None
        self._previous = {}

    def __enter__(self) -> "Interruption":
        for signum in stop_signals():
            self._previous[signum] = signal.signal(signum, self._note)
        return self

    def __exit__(self, kind, error, traceback) -> None:
        for signum, handler in self._previous.items():
            signal.signal(signum, handler)
        # Who is told to stop may find the others gone: a failed step, and nothing to save.
        if (
            self._signum
            and self._group
            and isinstance(error, RuntimeError)
            and lost_a_process(error)
        ):
            raise Stopped(self._signum) from error

    def _note(self, signum, frame) -> None:
        self._signum = signum

    def agree(self, number: int) -> tuple[int, int]:
        """The signal that any process has received (0: none), and the largest of their numbers.

        Every process must call it together.
        """
        values = torch.tensor([self._signum, number])
        if self._group:
            dist.all_reduce(values, dist.ReduceOp.MAX, group=self._group)
        signum, largest = values.tolist()
        return signum, largest


class Pause:
    """Called between two steps by every process; stops the run, saves it, or does nothing.

    Args:
        trainer: knows of losses that were not finite.
        save: writes the checkpoint; every process calls it together.
        minutes: between two checkpoints.
    """

    def __init__(
        self,
        interruption: Interruption,
        trainer: Trainer,
        save: Callable[[], None],
        minutes: float,
    ):
        self._interruption = interruption
        self._trainer = trainer
        self._save = save
        self._seconds = 60 * minutes
        self._saved = time.monotonic()

    def __call__(self, read: bool = False) -> None:
        """Take the pause; with `read`, wait for the device and look at its losses in any case.

        Raises:
            Refused: a loss was not finite.
            Stopped: a signal has come; the run is saved.
        """
        due = time.monotonic() - self._saved >= self._seconds
        signum, due = self._interruption.agree(due)
        if read and not (signum or due):
            self.refuse_bad_losses()
        if signum or due:
            self.save()
        if signum:
            print_once(
                f"saved after step {self._trainer.step}; to go on: the same command with "
                "--resume auto"
            )
            raise Stopped(signum)

    def save(self) -> None:
        """Save the run, unless a loss was not finite, which is refused."""
        self.refuse_bad_losses()
        self._save()
        self._saved = time.monotonic()

    def refuse_bad_losses(self) -> None:
        step = self._trainer.first_bad_step()
        _, first = self._interruption.agree(-step if step else NEVER)
        if first != NEVER:
            raise Refused(
                f"the loss is not finite since step {-first} of the run (epoch "
                f"{self._trainer.epoch + 1}); the last checkpoint is from before it; "
                "try a lower --lr"
            )

    def over(self, loader: DataLoader) -> Iterator:
        """The loader's batches, with a pause after each: as many on every process."""
        _, most = self._interruption.agree(len(loader))
        for batch in loader:
            yield batch
            self()
        for _ in range(most - len(loader)):
            self()
