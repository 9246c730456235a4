"""Stop all processes of a run together, between two steps, when a signal arrives."""

from collections.abc import Callable, Iterable, Iterator
from datetime import timedelta

import torch
import torch.distributed as dist

from .command_line import UserError, one_line
from .distributed import is_peer_failure, rank
from .signals import Interrupted, defer_signals, recorder

# A process waits as long for process 0 to save. PyTorch's default for gloo, too.
TIMEOUT = timedelta(minutes=30)


class PreemptionGuard:
    """Record termination signals while the block runs, instead of acting on them at once.

    A stop in the middle of a step would leave the processes in different states, or waiting in a
    collective that one of them never enters. They therefore agree to stop between two steps.
    """

    def __init__(self):
        self._recorder = recorder()
        self._agreed = 0  # the signal for which all processes stop
        self._deferral = defer_signals(protect=False)
        # A CPU group, so that agreeing does not wait for a GPU.
        self._group = None
        if dist.is_initialized():
            self._group = dist.new_group(backend="gloo", timeout=TIMEOUT)

    def __enter__(self) -> "PreemptionGuard":
        self._deferral.__enter__()
        return self

    def __exit__(self, kind, error, traceback) -> None:
        self._deferral.__exit__(kind, error, traceback)
        # After a signal, the peers may have exited. The step then fails; nothing can be saved.
        signum = self._recorder.signum or self._agreed
        if signum and isinstance(error, RuntimeError) and is_peer_failure(error):
            raise Interrupted(signum) from error

    def agree(self, value: int = 0) -> tuple[int, int]:
        """Return the signal that any process has received (0: none) and the maximum of `value`.

        All processes must call it together.
        """
        values = torch.tensor([self._recorder.signum, value])
        if self._group:
            dist.all_reduce(values, dist.ReduceOp.MAX, group=self._group)
        self._agreed, maximum = values.tolist()
        return self._agreed, maximum

    def check(self) -> None:
        """Raise `Interrupted` on all processes if any has received a signal."""
        signum, _ = self.agree()
        if signum:
            raise Interrupted(signum)

    def over(
        self, batches: Iterable, count: int, after_each: Callable[[], None] | None = None
    ) -> Iterator:
        """Yield `count` batches, and call `after_each` (`check` by default) after each of them.

        It is called equally often on every process.
        """
        after_each = after_each or self.check
        _, max_count = self.agree(count)
        for batch in batches:
            yield batch
            after_each()
        for _ in range(max_count - count):
            after_each()

    def on_main_process(self, work: Callable[[], None]) -> None:
        """Run `work`, which saves the run, on process 0 while the other processes wait.

        They wait because torchrun ends process 0 soon after another process has exited.

        Raises:
            UserError: `work` failed; raised by all processes.
        """
        reason = None
        # A repeated signal must not end process 0 while it saves, nor another one before it has.
        with defer_signals(protect=rank() != 0):
            if rank() == 0:
                try:
                    with defer_signals():
                        work()
                except (UserError, OSError) as error:
                    reason = one_line(error)
            reason = self._from_main_process(reason)
        if reason:
            raise UserError(reason)

    def _from_main_process(self, reason: str | None) -> str | None:
        """Return the `reason` of process 0."""
        shared = [reason]
        if self._group:
            try:
                dist.broadcast_object_list(shared, 0, group=self._group)
            except RuntimeError as error:
                # If the run ends here anyway, it does not matter that a peer is gone.
                if not (reason or self._agreed) or not is_peer_failure(error):
                    raise
        return shared[0]
