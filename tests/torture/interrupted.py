"""Runs that are killed or told to stop, at random moments and while they save."""

import os
import signal
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from unittest import mock

from torture.attempts import Attempt, Fault, expect
from torture.children import POLL_S, Child, Ended
from torture.runs import CIFAR_RUN, TRAINING_RUN, SmallRun, finish, load, prepare, seconds

MOMENTS = ("written", "before renaming", "after renaming")


def killed(run: SmallRun, attempt: Attempt) -> None:
    """Killed once or more, then resumed."""
    save = attempt.folder / "run"
    while True:
        ended = interrupt(run, attempt, save, signal.SIGKILL)
        expect(ended.status in (0, -signal.SIGKILL), "expected to be killed", ended)
        if ended.status == 0 or attempt.draws.random() < 0.6:
            break
    finish(run, attempt, save)


def stopped(attempt: Attempt) -> None:
    """Told to stop, then resumed."""
    run = (CIFAR_RUN, TRAINING_RUN)[attempt.index % 2]
    attempt.shared /= run.script.module  # where each has its reference
    save = attempt.folder / "run"
    signum = attempt.draws.choice((signal.SIGINT, signal.SIGTERM))
    ended = interrupt(run, attempt, save, signum)
    if ended.status:  # else it came when all was done
        expect(ended.status == 128 + signum, f"expected status {128 + signum}", ended)
        expect(ended.errors == [f"stopped by {signum.name}"], "expected one line", ended)
    if (save / "checkpoint.pt").exists():
        load(save / "checkpoint.pt")
    finish(run, attempt, save)


def prepare_both(attempt: Attempt) -> None:
    shared = attempt.shared
    for run in (CIFAR_RUN, TRAINING_RUN):
        attempt.shared = shared / run.script.module
        attempt.shared.mkdir()
        prepare(run, attempt)


def interrupt(run: SmallRun, attempt: Attempt, save: Path, signum: signal.Signals) -> Ended:
    """Start or go on with a run and send it a signal: a third of them while it saves."""
    in_save = attempt.draws.random() < 1 / 3
    share = attempt.draws.random()
    size = (attempt.shared / "reference" / "checkpoint.pt").stat().st_size

    def before():
        run.before()
        if in_save:
            signal_in_save(run, signum, number, moment, round(share * size))

    number = attempt.draws.randint(1, run.saves)
    moment = attempt.draws.choice(MOMENTS)
    child = attempt.start(run.script, run.words(attempt, save), before)
    if not in_save:
        send_at(child, save, signum, share * seconds(attempt))
    return child.wait(60)


def send_at(child: Child, save: Path, signum: int, delay_s: float) -> None:
    """Send the signal so long after the run has taken its folder: it handles signals then."""
    while not (save / "lock").exists() and not child.ended():
        time.sleep(POLL_S)
    time.sleep(delay_s)
    child.send(signum)


def signal_in_save(run: SmallRun, signum: int, number: int, moment: str, byte: int) -> None:
    """Make this process send itself a signal in the save of that number."""
    checkpoint = run.script.folder.checkpoint
    whole, saves = checkpoint.write_atomically, iter(range(1, number + 1))
    send, rename = partial(os.kill, os.getpid(), signum), os.replace

    def renaming(source, target):
        if moment == "before renaming":
            send()
        rename(source, target)
        if moment == "after renaming":
            send()

    def write_atomically(path: Path, write: Callable) -> None:
        if next(saves, None) != number:
            return whole(path, write)
        if moment == "written":
            return whole(path, lambda file: write(Watched(file, byte, send)))
        with mock.patch.object(os, "replace", renaming):
            return whole(path, write)

    checkpoint.write_atomically = write_atomically


class Watched:
    """A file that calls `action` once so many bytes are written."""

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


SAME = "weights, momentum and log (times apart) are those of a run never stopped, to the last bit"
FAULTS = [
    Fault(
        "kill-cifar",
        "SIGKILL of a run of wrn_DKS/main.py, a third of them while it saves; `--resume auto`",
        60,
        SAME,
        partial(killed, CIFAR_RUN),
        partial(prepare, CIFAR_RUN),
    ),
    Fault(
        "kill-imagenet",
        "SIGKILL of a run of imagenet/train.py, within epochs too; `--resume auto`",
        30,
        SAME,
        partial(killed, TRAINING_RUN),
        partial(prepare, TRAINING_RUN),
    ),
    Fault(
        "stop",
        "SIGTERM or SIGINT, a third of them while it saves; `--resume auto`",
        20,
        f"status 143 or 130, the checkpoint whole; {SAME}",
        stopped,
        prepare_both,
    ),
]
