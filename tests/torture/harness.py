"""Runs the attempts of every fault, some at a time, and counts."""

import dataclasses
import os
import random
import shutil
import sys
import time
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

from torture.attempts import Attempt, Fault, Lost
from torture.children import POLL_S, Child


class Outcome(NamedTuple):
    """What came of one attempt."""

    fault: Fault
    index: int
    why: str  # it was not survived; empty if it was


@dataclasses.dataclass
class Running:
    """An attempt in progress."""

    fault: Fault
    index: int
    child: Child
    folder: Path
    start: float = dataclasses.field(default_factory=time.monotonic)

    def over(self) -> bool:
        return self.child.ended() or time.monotonic() - self.start > self.fault.limit_s

    def outcome(self) -> Outcome:
        """End it, if it has not ended, and clear its folder away."""
        ended = self.child.wait(0)
        self.child.end_group()
        why = ""
        if ended.status is None:
            why = f"took longer than {self.fault.limit_s:.0f} s"
        elif ended.status:
            why = (ended.out + ended.err).strip() or f"status {ended.status}"
        shutil.rmtree(self.folder, ignore_errors=True)
        return Outcome(self.fault, self.index, why)


def launch(fault: Fault, index: int, seed: int, shared: Path, folder: Path, work) -> Running:
    """Start `work` on an attempt, in a process of its own."""
    folder.mkdir()
    draws = random.Random(f"{seed} {fault.key} {index}")
    attempt = Attempt(folder, shared, index, draws)

    def guarded() -> int:
        try:
            work(attempt)
        except Lost as lost:
            print(lost, file=sys.stderr)
            return 1
        return 0

    child = Child(f"{fault.key} {index}", guarded, folder / "verdict", leads_group=True)
    return Running(fault, index, child, folder)


def outcomes(
    fault: Fault, indices: Iterable[int], seed: int, place: Path, at_a_time: int
) -> Iterable[Outcome]:
    """Do attempts of a fault, so many at a time."""
    shared = place / f"{fault.key}-shared"
    shared.mkdir()
    running: list[Running] = []
    try:
        if fault.prepare:
            running = [launch(fault, -1, seed, shared, place / f"{fault.key}-made", fault.prepare)]
            prepared = finish_one(running)
            if prepared.why:
                yield prepared._replace(why=f"preparation: {prepared.why}")
                return
        for index in indices:
            if len(running) >= at_a_time:
                yield finish_one(running)
            folder = place / f"{fault.key}-{index}"
            running.append(launch(fault, index, seed, shared, folder, fault.attempt))
        while running:
            yield finish_one(running)
    finally:
        for each in running:
            each.child.end_group()
        shutil.rmtree(shared, ignore_errors=True)


def finish_one(running: list[Running]) -> Outcome:
    """Wait until one of them is over, and take it out."""
    while True:
        for each in running:
            if each.over():
                running.remove(each)
                return each.outcome()
        time.sleep(POLL_S)


def refuse_threads() -> None:
    """A fork takes one thread along; what the others held would stay locked for ever."""
    if Path("/proc/self/task").is_dir() and len(os.listdir("/proc/self/task")) > 1:
        sys.exit("torture: this process has started threads; set OMP_NUM_THREADS=1")
