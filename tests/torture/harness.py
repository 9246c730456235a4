"""Run the attempts of a fault, several in parallel."""

import dataclasses
import os
import random
import shutil
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

from torture.attempts import Attempt, Fault, NotSurvived
from torture.children import POLL_S, Child


class Outcome(NamedTuple):
    """Outcome of an attempt."""

    fault: Fault
    index: int
    failure: str  # what went wrong; empty if the attempt was survived


@dataclasses.dataclass
class RunningAttempt:
    """An attempt in progress."""

    fault: Fault
    index: int
    child: Child
    folder: Path
    start: float = dataclasses.field(default_factory=time.monotonic)

    def has_finished(self) -> bool:
        """Whether the attempt has ended or exceeded its time limit."""
        return self.child.has_ended() or time.monotonic() - self.start > self.fault.limit_s

    def finish(self) -> Outcome:
        """Kill what is still running and remove the attempt's folder."""
        result = self.child.wait(0)
        self.child.kill_group()
        failure = ""
        if result.status is None:
            failure = f"took longer than {self.fault.limit_s:.0f} s"
        elif result.status:
            failure = (result.out + result.err).strip() or f"status {result.status}"
        shutil.rmtree(self.folder, ignore_errors=True)
        return Outcome(self.fault, self.index, failure)


def launch(
    fault: Fault,
    index: int,
    seed: int,
    shared: Path,
    folder: Path,
    work: Callable[[Attempt], None],
) -> RunningAttempt:
    """Call `work` with an attempt in a new process."""
    folder.mkdir()
    rng = random.Random(f"{seed} {fault.key} {index}")
    attempt = Attempt(folder, shared, index, rng)

    def exit_status() -> int:
        try:
            work(attempt)
        except NotSurvived as failure:
            print(failure, file=sys.stderr)
            return 1
        return 0

    child = Child(f"{fault.key} {index}", exit_status, folder / "outcome", leads_group=True)
    return RunningAttempt(fault, index, child, folder)


def run_attempts(
    fault: Fault, indices: Iterable[int], seed: int, folder: Path, jobs: int
) -> Iterator[Outcome]:
    """Run attempts of a fault, `jobs` in parallel; yield their outcomes as they end."""
    shared = folder / f"{fault.key}-shared"
    shared.mkdir()
    running: list[RunningAttempt] = []
    try:
        if fault.prepare:
            own = folder / f"{fault.key}-prepare"
            running = [launch(fault, -1, seed, shared, own, fault.prepare)]
            outcome = next_outcome(running)
            if outcome.failure:
                yield outcome._replace(failure=f"preparation: {outcome.failure}")
                return
        for index in indices:
            if len(running) >= jobs:
                yield next_outcome(running)
            own = folder / f"{fault.key}-{index}"
            running.append(launch(fault, index, seed, shared, own, fault.attempt))
        while running:
            yield next_outcome(running)
    finally:
        for attempt in running:
            attempt.child.kill_group()
        shutil.rmtree(shared, ignore_errors=True)


def next_outcome(running: list[RunningAttempt]) -> Outcome:
    """Wait until one of the attempts has finished and remove it from the list."""
    while True:
        for attempt in running:
            if attempt.has_finished():
                running.remove(attempt)
                return attempt.finish()
        time.sleep(POLL_S)


def require_single_thread() -> None:
    """Exit if this process has threads: a fork would copy their locks but not the threads."""
    if Path("/proc/self/task").is_dir() and len(os.listdir("/proc/self/task")) > 1:
        sys.exit("torture: this process has started threads; set OMP_NUM_THREADS=1")
