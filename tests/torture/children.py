"""Forked processes with captured output and a time limit."""

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
# Progress bars, and messages of torch, of its C++ code (some with a stack) and of DataLoader.
HARMLESS = (
    r"batch/s|^(\[rank\d+\]:)?\[?[WE]\d{4} .*(torch/|\.cpp:)|^frame #\d+: |^Exception raised from |"
    r"^<omitting python frames>|This DataLoader will create|check_worker_number_rationality"
)


class ProcessResult(NamedTuple):
    """Exit status and output of a process."""

    command: str  # description for error messages
    status: int | None  # -9 for SIGKILL; None if it was killed at the time limit
    out: str
    err: str

    @property
    def errors(self) -> list[str]:
        """Lines on standard error, without those that a successful run may print."""
        lines = self.err.replace("\r", "\n").splitlines()
        return [line for line in lines if line.strip() and not re.search(HARMLESS, line)]

    def __str__(self) -> str:
        ending = "time limit exceeded" if self.status is None else f"status {self.status}"
        last = self.errors[-3:] or ["nothing on standard error"]
        return "\n    ".join([self.command, f"{ending}; last lines:", *last])


class Child:
    """A forked process that calls `work`, which returns the exit status.

    Args:
        command: description for error messages.
        work: called with standard output and error redirected to files.
        stem: path of these files without `.out` and `.err`.
        leads_group: start a process group, so that `kill_group` ends all descendants.
    """

    def __init__(
        self, command: str, work: Callable[[], int], stem: Path, leads_group: bool = False
    ):
        self._command = command
        self._files = [Path(f"{stem}.out"), Path(f"{stem}.err")]
        for path in self._files:
            path.touch()  # the process may be killed before it creates them
        sys.stdout.flush()
        sys.stderr.flush()
        self.pid = os.fork()
        if not self.pid:
            _run_and_exit(work, self._files, leads_group)
        self._status: int | None = None

    def send(self, signum: int) -> None:
        """Send a signal if the process is still running."""
        if not self.has_ended():
            os.kill(self.pid, signum)

    def has_ended(self) -> bool:
        if self._status is None:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            if pid:
                self._status = os.waitstatus_to_exitcode(status)
        return self._status is not None

    def wait(self, limit_s: float) -> ProcessResult:
        """Wait until the process ends; kill it after `limit_s` seconds."""
        deadline = time.monotonic() + limit_s
        while not self.has_ended() and time.monotonic() < deadline:
            time.sleep(POLL_S)
        in_time = self.has_ended()
        self.send(signal.SIGKILL)
        while not self.has_ended():
            time.sleep(POLL_S)
        out, err = (path.read_text(errors="replace") for path in self._files)
        return ProcessResult(self._command, self._status if in_time else None, out, err)

    def kill_group(self) -> None:
        """Kill the process group that this process leads."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.pid, signal.SIGKILL)


def _run_and_exit(work: Callable[[], int], files: list[Path], leads_group: bool) -> None:
    status = 1
    try:
        if leads_group:
            os.setpgid(0, 0)
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        for descriptor, path in enumerate(files, 1):
            os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o666), descriptor)
        status = work()
    except SystemExit as error:  # argparse's --help
        status = error.code or 0
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)
