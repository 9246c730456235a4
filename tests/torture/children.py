"""Work done in a forked process: its status, what it printed, and no more time than its due."""

import contextlib
import os
import re
import signal
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

POLL_S = 0.005
# Progress bars, remarks of torch's compiler, and of its loader on more workers than cores.
OTHERS = r"batch/s|^W\d{4} .* torch/|This DataLoader will create|check_worker_number_rationality"


class Ended(NamedTuple):
    """How a process ended."""

    what: str  # its command line, for people
    status: int | None  # -9 for SIGKILL; None: it took too long and was killed
    out: str
    err: str

    @property
    def errors(self) -> list[str]:
        """The lines on standard error, but for those that a good run may have there."""
        lines = self.err.replace("\r", "\n").splitlines()
        return [line for line in lines if line.strip() and not re.search(OTHERS, line)]

    def __str__(self) -> str:
        ended = "too slow" if self.status is None else f"status {self.status}"
        last = self.errors[-3:] or ["nothing on standard error"]
        return "\n    ".join([self.what, f"{ended}, and at the end:", *last])


class Child:
    """A forked process that does `work`, which returns its exit status.

    Args:
        what: what to call it in front of people.
        work: done with standard output and error in files of their own.
        stem: path of these files, without `.out` and `.err`.
        leads_group: whether it leads a process group, so that `end_group` ends all it starts.
    """

    def __init__(self, what: str, work: Callable[[], int], stem: Path, leads_group: bool = False):
        self._what = what
        self._files = [Path(f"{stem}.out"), Path(f"{stem}.err")]
        for path in self._files:
            path.touch()  # it may be gone before it makes them
        sys.stdout.flush()
        sys.stderr.flush()
        self.pid = os.fork()
        if not self.pid:
            _become(work, self._files, leads_group)
        self._status: int | None = None

    def send(self, signum: int) -> None:
        """Send a signal, if it is still running."""
        if not self.ended():
            os.kill(self.pid, signum)

    def ended(self) -> bool:
        if self._status is None:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            if pid:
                self._status = os.waitstatus_to_exitcode(status)
        return self._status is not None

    def wait(self, limit_s: float) -> Ended:
        """Wait until it ends; after so many seconds, end it."""
        deadline = time.monotonic() + limit_s
        while not self.ended() and time.monotonic() < deadline:
            time.sleep(POLL_S)
        in_time = self.ended()
        self.send(signal.SIGKILL)
        while not self.ended():
            time.sleep(POLL_S)
        out, err = (path.read_text(errors="replace") for path in self._files)
        return Ended(self._what, self._status if in_time else None, out, err)

    def end_group(self) -> None:
        """End whatever is left of the process group that it leads."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.pid, signal.SIGKILL)


def _become(work: Callable[[], int], files: list[Path], leads_group: bool) -> None:
    status = 1
    try:
        if leads_group:
            os.setpgid(0, 0)
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        for descriptor, path in enumerate(files, 1):
            os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o666), descriptor)
        status = work()
    except SystemExit as stop:  # argparse's --help
        status = stop.code or 0
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)
