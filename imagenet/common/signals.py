"""Termination signals: recorded when they arrive, and raised as an exception.

Python swallows an exception that a signal handler raises in a finalizer, such as `__del__` or the
callback of a weak reference: it prints the exception, and the program goes on. The record makes
sure that the signal is not lost there.
"""

import contextlib
import signal
import time
from collections.abc import Iterator

# `timeout`, torchrun and SLURM send the same signal two times within moments.
REPEATED_AFTER_S = 3


class Interrupted(BaseException):
    """A termination signal arrived. Not an `Exception`, so that error handlers do not catch it."""

    def __init__(self, signum: int):
        super().__init__(signal.Signals(signum).name)
        self.status = 128 + signum


class SignalRecorder:
    """A signal handler that records the first signal and, unless it is deferred, raises it.

    A signal that is repeated `REPEATED_AFTER_S` seconds after the first one ends the process, which
    nothing can swallow.
    """

    def __init__(self):
        self.signum = 0  # of the first signal
        self.deferrals = 0  # number of active blocks that defer signals
        self.protections = 0  # number of those that a repeated signal must not end
        self._time = 0.0  # of the first signal

    def __call__(self, signum: int, frame) -> None:
        if not self.signum:
            self.signum, self._time = signum, time.monotonic()
            self.check()
        elif not self.protections and time.monotonic() - self._time > REPEATED_AFTER_S:
            signal.signal(signum, signal.SIG_DFL)
            signal.raise_signal(signum)

    def check(self) -> None:
        """Raise `Interrupted` if a signal has arrived and is not deferred."""
        if self.signum and not self.deferrals:
            raise Interrupted(self.signum)


def termination_signals() -> list[signal.Signals]:
    """Return SIGINT, SIGTERM and, unless it is ignored as under nohup, SIGHUP."""
    ignored = signal.getsignal(signal.SIGHUP) == signal.SIG_IGN
    return [signal.SIGINT, signal.SIGTERM, *([] if ignored else [signal.SIGHUP])]


@contextlib.contextmanager
def raise_signals() -> Iterator[None]:
    """Raise `Interrupted` when a termination signal arrives while the block runs."""
    handler = SignalRecorder()
    previous = {s: signal.signal(s, handler) for s in termination_signals()}
    try:
        yield
        handler.check()  # a signal that was swallowed
    finally:
        for signum, old_handler in previous.items():
            signal.signal(signum, old_handler)


def recorder() -> SignalRecorder:
    """Return the handler that `raise_signals` has installed, or else one that stays unused."""
    handler = signal.getsignal(signal.SIGTERM)
    return handler if isinstance(handler, SignalRecorder) else SignalRecorder()


def check_signals() -> None:
    """Raise `Interrupted` if a termination signal has arrived and is not deferred."""
    recorder().check()


@contextlib.contextmanager
def defer_signals(protect: bool = True) -> Iterator[None]:
    """Defer termination signals until the block ends.

    Args:
        protect: also ignore repeated signals, which otherwise end the process.
    """
    handler = recorder()
    handler.deferrals += 1
    handler.protections += protect
    try:
        yield
    finally:
        handler.deferrals -= 1
        handler.protections -= protect
    handler.check()
