"""Save a run at intervals, and stop it after a termination signal."""

import signal
import time

import torch
import torch.distributed as dist

from .command_line import Interrupted
from .distributed import print_once, world_size

AGREE_S = 3.0  # between two times at which the processes agree whether to stop
REPEATED_AFTER_S = 3.0  # `timeout`, torchrun and SLURM send the same signal twice within moments


class Preemption:
    """Notice that the run must be saved, and stop it after a termination signal.

    The signal handler only sets a flag, which is looked at between two steps. Several processes
    agree on it every few seconds, so that all of them stop after the same step.

    Args:
        minutes: between two checkpoints.
        device: of this process.
        how: to run the same command to continue, for a message.
    """

    def __init__(self, minutes: float, device: torch.device, how: str):
        self._interval_s = 60 * minutes
        self._device, self._how = device, how
        self._signum, self._signaled_at = 0, 0.0
        self._agreed = 0  # the signal on which all processes have agreed
        self._saved_at = self._agreed_at = time.monotonic()
        self._steps = self._steps_left = 1  # between two agreements
        self._previous: dict = {}

    def __enter__(self) -> "Preemption":
        numbers = [signal.SIGINT, signal.SIGTERM]
        if signal.getsignal(signal.SIGHUP) != signal.SIG_IGN:  # which nohup ignores
            numbers.append(signal.SIGHUP)
        self._previous = {number: signal.signal(number, self._note) for number in numbers}
        return self

    def __exit__(self, *error) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def _note(self, signum: int, frame) -> None:
        now = time.monotonic()
        if not self._signum:
            self._signum, self._signaled_at = signum, now
        elif now - self._signaled_at > REPEATED_AFTER_S:
            signal.signal(signum, self._previous[signum])
            signal.raise_signal(signum)

    def is_due(self) -> bool:
        """Return, after each step and on all processes alike, whether to save the run now."""
        due = time.monotonic() - self._saved_at >= self._interval_s
        if world_size() == 1:
            self._agreed = self._signum
            return due or self._agreed > 0
        self._steps_left -= 1
        return self._steps_left <= 0 and self.agree(due)

    def agree(self, due: bool = False) -> bool:
        """Return whether any process has received a signal or finds that saving is due."""
        now = time.monotonic()
        step_us = round(1e6 * (now - self._agreed_at) / self._steps) + 1
        self._agreed = self._signum
        if world_size() > 1:
            values = torch.tensor([self._signum, due, step_us], device=self._device)
            dist.all_reduce(values, dist.ReduceOp.MAX)
            self._agreed, due, step_us = values.tolist()
        self._agreed_at = now
        self._steps = self._steps_left = max(1, int(1e6 * min(AGREE_S, self._interval_s) / step_us))
        return bool(due or self._agreed)

    def saved(self) -> None:
        """Note that the run is saved. Raise `Interrupted` if the processes agreed on a signal."""
        self._saved_at = time.monotonic()
        if self._agreed:
            print_once(f"the run is saved; to continue, run the same command {self._how}")
            raise Interrupted(self._agreed)
