"""Faults, attempts to survive them, and checks of the outcome."""

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from torture.children import Child, ProcessResult
from torture.scripts import Script


class NotSurvived(Exception):
    """An attempt did not end as expected; the message says what happened."""


class Attempt:
    """One attempt to survive a fault.

    Args:
        folder: of this attempt, initially empty.
        shared: what the fault's `prepare` wrote; read-only.
        index: of the attempt, from 0.
        rng: of this attempt.
    """

    def __init__(self, folder: Path, shared: Path, index: int, rng: random.Random):
        self.folder = folder
        self.shared = shared
        self.index = index
        self.rng = rng
        self._runs = 0

    def start(
        self, script: Script, argv: Sequence[str], before: Callable[[], None] | None = None
    ) -> Child:
        """Start a script in a forked process, which calls `before` first."""
        self._runs += 1
        return Child(
            " ".join([str(script), *map(repr, argv)]),
            lambda: script.main(argv, before),
            self.folder / f"output-{self._runs}",
        )

    def run(
        self,
        script: Script,
        argv: Sequence[str],
        before: Callable[[], None] | None = None,
        limit_s: float = 60,
    ) -> ProcessResult:
        """Start a script and wait until it ends."""
        return self.start(script, argv, before).wait(limit_s)


@dataclass(frozen=True)
class Fault:
    """A row of the table.

    Args:
        key: short name, for `--only`.
        name: description of the fault.
        attempts: number of attempts at N = 1.
        expected: description of the outcome that counts as survived.
        attempt: runs one attempt; raises `NotSurvived`.
        prepare: writes what all attempts share, once.
        limit_s: time limit of an attempt in seconds.
        missing: returns what this machine lacks to make attempts; empty if nothing.
    """

    key: str
    name: str
    attempts: int
    expected: str
    attempt: Callable[[Attempt], None]
    prepare: Callable[[Attempt], None] | None = None
    limit_s: float = 180
    missing: Callable[[], str] | None = None


def expect(condition: object, message: str, found: object = "") -> None:
    """Raise `NotSurvived` unless the condition holds."""
    if not condition:
        raise NotSurvived(f"{message}: {found}" if found else message)


def expect_success(result: ProcessResult) -> None:
    """Expect exit status 0 and no error messages."""
    expect(result.status == 0, "expected status 0", result)
    expect(not result.errors, "expected nothing on standard error", result)


def expect_user_error(result: ProcessResult, *mentions: str) -> None:
    """Expect exit status 2 and a one-line error message that contains these texts."""
    expect(result.status == 2, "expected status 2", result)
    one_line = len(result.errors) == 1 and result.errors[0].startswith("error: ")
    expect(one_line, "expected one line on standard error", result)
    expect("Traceback" not in result.out, "a traceback on standard output", result)
    for text in mentions:
        expect(text in result.errors[0], f"expected {text!r} in the error message", result)


def expect_success_or_user_error(result: ProcessResult, *mentions: str) -> bool:
    """Expect either; return whether it was success."""
    if result.status != 0:
        expect_user_error(result, *mentions)
        return False
    expect_success(result)
    return True
