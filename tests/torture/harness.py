"""Attempts: programs in forked processes, and what counts as survived."""

import os
import random
import re
import resource
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from signal import SIGKILL
from typing import NamedTuple

from processes import ForkedPython, kill_descendants

TESTS = Path(__file__).resolve().parents[1]
IMAGENET, WRN, TRAIN = TESTS.parent / "imagenet", TESTS.parent / "wrn_DKS", TESTS / "tiny_train.py"
PROGRAMS = {"wrn": (TRAIN, WRN), "train": (TRAIN, IMAGENET)}  # and the folder to import from
PROGRAMS["test"] = TESTS / "torture" / "tiny_main.py", IMAGENET
SHARED = threading.RLock()  # to be held while something that attempts share is made
HARMLESS = (  # what torch and its C++ code print
    r"^(\[rank\d+\]:)?\[?[WEI]\d{4} |^frame #\d+: |^Exception raised from |^$|"
    r"^<omitting python frames>|This DataLoader will create|check_worker_number_rationality"
)


class Result(NamedTuple):
    """How a program ended."""

    about: str
    status: int | None  # None: it was killed at the time limit
    out: str
    err: str

    @property
    def errors(self) -> list[str]:
        """The lines on standard error, without those that a successful run may print."""
        return [line for line in self.err.splitlines() if not re.search(HARMLESS, line)]

    def __str__(self) -> str:
        return "\n    ".join([self.about, f"status {self.status}", *self.errors[-6:]])

    def expect_success(self) -> None:
        """Expect exit status 0 and nothing on standard error."""
        assert self.status == 0 and not self.errors, f"expected success: {self}"

    def expect_error(self, mention: str = "", status: int = 2) -> None:
        """Expect an exit status and a one-line error message that contains a text."""
        one_line = len(self.errors) == 1 and self.errors[0].startswith("error: ")
        assert self.status == status and one_line, f"expected status {status}, one line: {self}"
        assert mention in self.errors[0], f"expected {mention} in the message: {self}"

    def expect_success_or_error(self, mention: str = "", status: int = 2) -> bool:
        """Expect either; return whether it was success."""
        self.expect_error(mention, status) if self.status else self.expect_success()
        return self.status == 0


@dataclass
class Attempt:
    """One attempt to survive something."""

    folder: Path  # initially empty; the working directory of its programs
    shared: Path  # what attempts share: folders of runs, by name, and `images`
    index: int  # from 0
    rng: random.Random
    python: ForkedPython  # starts programs

    def start(self, program: str, argv: list, fault: str = "", **variables: str) -> int:
        """Start one of `PROGRAMS`; return the process ID. See tiny_train.py for faults."""
        script, folder = PROGRAMS[program]
        variables = {"FAULT": fault, "RANK": "0"} | variables
        path = (folder, TESTS)
        return self.python.start(script, *argv, path=path, cwd=self.folder, variables=variables)

    def wait(self, pid: int, about: object, limit_s: float = 120) -> Result:
        """Wait for a process, which is killed after `limit_s` seconds."""
        start = time.monotonic()
        timer = threading.Timer(limit_s, lambda: (kill_descendants(pid), os.kill(pid, SIGKILL)))
        timer.start()
        done = self.python.wait(pid)
        timer.cancel()
        status = None if time.monotonic() - start > limit_s else done.returncode
        return Result(str(about), status, done.stdout, done.stderr)

    def run(self, program: str, argv: list, fault: str = "", memory: int = 0) -> Result:
        """Start a program, with a limit of its memory in bytes, and wait until it ends."""
        pid = self.start(program, argv, fault)
        if memory:
            resource.prlimit(pid, resource.RLIMIT_AS, (memory, memory))
        return self.wait(pid, " ".join([program, *map(str, argv), fault]))

    def wait_for(self, path: Path, pid: int) -> None:
        """Wait until a file exists or a process has ended."""
        state = Path(f"/proc/{pid}/stat")
        while not path.exists() and ") Z" not in state.read_text():
            time.sleep(0.005)
