"""Runs that are killed or stopped at random moments and while saving."""

import os
import signal
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from unittest import mock

from torture.attempts import Attempt, Fault, expect
from torture.children import POLL_S, Child, ProcessResult
from torture.runs import (
    CIFAR_RUN,
    TRAINING_RUN,
    SmallRun,
    duration_s,
    load,
    prepare,
    resume_and_compare,
)

MOMENTS = ("while writing", "before renaming", "after renaming")


def killed(run: SmallRun, attempt: Attempt) -> None:
    """Kill a run once or several times, then resume it."""
    save = attempt.folder / "run"
    while True:
        result = interrupt(run, attempt, save, signal.SIGKILL)
        expect(result.status in (0, -signal.SIGKILL), "expected to be killed", result)
        if result.status == 0 or attempt.rng.random() < 0.6:
            break
    resume_and_compare(run, attempt, save)


def stopped(attempt: Attempt) -> None:
    """Send a run SIGINT or SIGTERM, then resume it."""
    run = (CIFAR_RUN, TRAINING_RUN)[attempt.index % 2]
    attempt.shared /= run.script.module
    save = attempt.folder / "run"
    signum = attempt.rng.choice((signal.SIGINT, signal.SIGTERM))
    result = interrupt(run, attempt, save, signum)
    if result.status:  # otherwise the run had already finished
        expect(result.status == 128 + signum, f"expected status {128 + signum}", result)
        expect(
            result.errors == [f"stopped by {signum.name}"],
            "expected one line on standard error",
            result,
        )
    if (save / "checkpoint.pt").exists():
        load(save / "checkpoint.pt")
    resume_and_compare(run, attempt, save)


def prepare_both(attempt: Attempt) -> None:
    shared = attempt.shared
    for run in (CIFAR_RUN, TRAINING_RUN):
        attempt.shared = shared / run.script.module
        attempt.shared.mkdir()
        prepare(run, attempt)


def interrupt(run: SmallRun, attempt: Attempt, save: Path, signum: signal.Signals) -> ProcessResult:
    """Start or resume a run and send it a signal, in a third of the cases while it saves."""
    in_save = attempt.rng.random() < 1 / 3
    fraction = attempt.rng.random()
    size = (attempt.shared / "reference" / "checkpoint.pt").stat().st_size

    def before():
        run.before()
        if in_save:
            signal_in_save(run, signum, number, moment, round(fraction * size))

    number = attempt.rng.randint(1, run.saves)
    moment = attempt.rng.choice(MOMENTS)
    child = attempt.start(run.script, run.argv(attempt, save), before)
    if not in_save:
        send_at(child, save, signum, fraction * duration_s(attempt))
    return child.wait(60)


def send_at(child: Child, save: Path, signum: int, delay_s: float) -> None:
    """Send a signal `delay_s` after the run has locked its folder and handles signals."""
    while not (save / "lock").exists() and not child.has_ended():
        time.sleep(POLL_S)
    time.sleep(delay_s)
    child.send(signum)


def signal_in_save(run: SmallRun, signum: int, number: int, moment: str, byte: int) -> None:
    """Make this process send itself a signal during save number `number`."""
    checkpoint = run.script.folder.checkpoint
    original, saves = checkpoint.write_atomically, iter(range(1, number + 1))
    send, rename = partial(os.kill, os.getpid(), signum), os.replace

    def send_and_rename(source, target):
        if moment == "before renaming":
            send()
        rename(source, target)
        if moment == "after renaming":
            send()

    def write_atomically(path: Path, write: Callable) -> None:
        if next(saves, None) != number:
            return original(path, write)
        if moment == "while writing":
            return original(path, lambda file: write(TriggeringFile(file, byte, send)))
        with mock.patch.object(os, "replace", send_and_rename):
            return original(path, write)

    checkpoint.write_atomically = write_atomically


class TriggeringFile:
    """A file that calls `action` after `count` bytes have been written."""

    def __init__(self, file, count: int, action: Callable[[], None]):
        self._file = file
        self._left = count
        self._action = action

    def write(self, data) -> int:
        data = memoryview(data).cast("B")
        if self._left is not None and len(data) >= self._left:
            self._file.write(data[: self._left])
            self._file.flush()
            data = data[self._left :]
            self._left = None
            self._action()
        elif self._left is not None:
            self._left -= len(data)
        self._file.write(data)
        return len(data)

    def __getattr__(self, name: str):
        return getattr(self._file, name)


SAME = "weights, momentum and log (except times) equal an uninterrupted run's, bit for bit"
FAULTS = [
    Fault(
        "kill-cifar",
        "SIGKILL of wrn_DKS/main.py, in a third of the cases while it saves; `--resume auto`",
        60,
        SAME,
        partial(killed, CIFAR_RUN),
        partial(prepare, CIFAR_RUN),
    ),
    Fault(
        "kill-imagenet",
        "SIGKILL of imagenet/train.py, within epochs too; `--resume auto`",
        30,
        SAME,
        partial(killed, TRAINING_RUN),
        partial(prepare, TRAINING_RUN),
    ),
    Fault(
        "stop",
        "SIGTERM or SIGINT, in a third of the cases while the run saves; `--resume auto`",
        20,
        f"exit status 143 or 130, intact checkpoint; {SAME}",
        stopped,
        prepare_both,
    ),
]
