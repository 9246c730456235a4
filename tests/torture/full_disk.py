"""A disk that fills up, stood for by a limit on the size of files."""

import resource
from functools import partial

from torture.attempts import Attempt, Fault, expect, expect_refused
from torture.interrupted import prepare_both
from torture.runs import CIFAR_RUN, TRAINING_RUN, SmallRun, finish, load


def full(attempt: Attempt) -> None:
    """No file can grow beyond a random size, from a random save on."""
    run: SmallRun = (CIFAR_RUN, TRAINING_RUN)[attempt.index % 2]
    attempt.shared /= run.script.module
    save = attempt.folder / "run"
    checkpoint = save / "checkpoint.pt"
    size = (attempt.shared / "reference" / checkpoint.name).stat().st_size
    number, limit = attempt.draws.randint(1, run.saves), attempt.draws.randrange(size)
    ended = attempt.run(run.script, run.words(attempt, save), partial(fill, run, number, limit))
    whole = ["the previous one is whole"] if number > 1 else []
    expect_refused(ended, "can't be saved", "free some space", *whole)
    expect(checkpoint.exists() == (number > 1), "the previous checkpoint", ended)
    if number > 1:
        load(checkpoint)
    expect(not list(save.glob("*.tmp")), "half a file was left behind", ended)
    finish(run, attempt, save)


def fill(run: SmallRun, number: int, limit: int) -> None:
    """Make this process's files full at `limit` bytes during its save of that number."""
    run.before()
    checkpoint = run.script.folder.checkpoint
    whole, saves = checkpoint.write_atomically, iter(range(1, number + 1))

    def write_atomically(*arguments):
        if next(saves, None) == number:
            hard = resource.getrlimit(resource.RLIMIT_FSIZE)[1]
            resource.setrlimit(resource.RLIMIT_FSIZE, (limit, hard))
        whole(*arguments)

    checkpoint.write_atomically = write_atomically


def full_for_all(attempt: Attempt) -> None:
    """From the start no file can grow beyond some size: log and events of TensorBoard too."""
    run: SmallRun = (CIFAR_RUN, TRAINING_RUN)[attempt.index % 2]
    attempt.shared /= run.script.module
    save = attempt.folder / "run"
    limit = attempt.draws.randrange(6000)

    def before() -> None:
        run.before()
        hard = resource.getrlimit(resource.RLIMIT_FSIZE)[1]
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, hard))

    ended = attempt.run(run.script, run.words(attempt, save), before)
    expect_refused(ended)
    finish(run, attempt, save)


FAULTS = [
    Fault(
        "disk-full",
        "the disk full at a random byte of a save",
        20,
        "one line, the previous checkpoint loads; with space, resumed to the same weights",
        full,
        prepare_both,
    ),
    Fault(
        "disk-full-log",
        "the disk full for every file, log and TensorBoard's events too",
        10,
        "one line; with space, resumed to the same weights",
        full_for_all,
        prepare_both,
    ),
]
