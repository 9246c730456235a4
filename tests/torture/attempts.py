"""A fault, one attempt at surviving it, and what counts as survived."""

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from torture.children import Child, Ended
from torture.scripts import Script


class Lost(Exception):
    """The attempt was not survived; says what was seen."""


class Attempt:
    """One try of a fault.

    Args:
        folder: its own, empty.
        shared: what the fault's preparation made, for reading.
        index: number of the attempt, from 0.
        draws: random numbers of its own.
    """

    def __init__(self, folder: Path, shared: Path, index: int, draws: random.Random):
        self.folder = folder
        self.shared = shared
        self.index = index
        self.draws = draws
        self._runs = 0

    def start(
        self, script: Script, words: Sequence[str], before: Callable[[], None] | None = None
    ) -> Child:
        """Start a command line; `before` is called in its process first."""
        self._runs += 1
        return Child(
            " ".join([str(script), *map(repr, words)]),
            lambda: script.main(words, before),
            self.folder / f"output-{self._runs}",
        )

    def run(
        self,
        script: Script,
        words: Sequence[str],
        before: Callable[[], None] | None = None,
        limit_s: float = 60,
    ) -> Ended:
        """Run a command line to its end."""
        return self.start(script, words, before).wait(limit_s)


@dataclass(frozen=True)
class Fault:
    """A row of the table.

    Args:
        key: short name, for `--only`.
        name: what happens.
        times: attempts at N = 1.
        means: what has to be seen for an attempt to count as survived.
        attempt: does one, and raises `Lost`.
        prepare: makes what all attempts share, once.
        limit_s: seconds after which an attempt is ended, and not survived.
    """

    key: str
    name: str
    times: int
    means: str
    attempt: Callable[[Attempt], None]
    prepare: Callable[[Attempt], None] | None = None
    limit_s: float = 180


def expect(condition: object, what: str, seen: object = "") -> None:
    """Raise `Lost` unless the condition holds."""
    if not condition:
        raise Lost(f"{what}: {seen}" if seen else what)


def expect_done(ended: Ended) -> None:
    """The run ended well and had nothing to complain of."""
    expect(ended.status == 0, "expected status 0", ended)
    expect(not ended.errors, "expected nothing on standard error", ended)


def expect_refused(ended: Ended, *mentions: str) -> None:
    """The run was refused in one line, in which these words stand."""
    expect(ended.status == 2, "expected status 2", ended)
    one_line = len(ended.errors) == 1 and ended.errors[0].startswith("error: ")
    expect(one_line, "expected one line on standard error", ended)
    expect("Traceback" not in ended.out, "a traceback on standard output", ended)
    for words in mentions:
        expect(words in ended.errors[0], f"expected {words!r} in the line", ended)


def expect_done_or_refused(ended: Ended, *mentions: str) -> bool:
    """Either of the two; returns whether it was done."""
    if ended.status != 0:
        expect_refused(ended, *mentions)
        return False
    expect_done(ended)
    return True
