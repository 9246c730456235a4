"""A full disk, simulated by a limit on the file size."""

import resource
from functools import partial

from torture.attempts import Attempt, Fault, expect, expect_user_error
from torture.interrupted import prepare_both
from torture.runs import CIFAR_RUN, TRAINING_RUN, SmallRun, load, resume_and_compare


def full(attempt: Attempt) -> None:
    """Limit the file size to a random number of bytes from a random save on."""
    run: SmallRun = (CIFAR_RUN, TRAINING_RUN)[attempt.index % 2]
    attempt.shared /= run.script.module
    save = attempt.folder / "run"
    checkpoint = save / "checkpoint.pt"
    size = (attempt.shared / "reference" / checkpoint.name).stat().st_size
    number, limit = attempt.rng.randint(1, run.saves), attempt.rng.randrange(size)
    result = attempt.run(
        run.script, run.argv(attempt, save), partial(limit_file_size, run, number, limit)
    )
    intact = ["the previous version is intact"] if number > 1 else []
    expect_user_error(result, "can't be saved", "free some space", *intact)
    expect(checkpoint.exists() == (number > 1), "expected the previous checkpoint", result)
    if number > 1:
        load(checkpoint)
    expect(not list(save.glob("*.tmp")), "a partial file was left behind", result)
    resume_and_compare(run, attempt, save)


def limit_file_size(run: SmallRun, number: int, limit: int) -> None:
    """Limit this process's files to `limit` bytes from save number `number` on."""
    run.before()
    checkpoint = run.script.folder.checkpoint
    original, saves = checkpoint.write_atomically, iter(range(1, number + 1))

    def write_atomically(*arguments):
        if next(saves, None) == number:
            hard = resource.getrlimit(resource.RLIMIT_FSIZE)[1]
            resource.setrlimit(resource.RLIMIT_FSIZE, (limit, hard))
        original(*arguments)

    checkpoint.write_atomically = write_atomically


def full_from_the_start(attempt: Attempt) -> None:
    """Limit the size of all files, log and TensorBoard events included, from the start."""
    run: SmallRun = (CIFAR_RUN, TRAINING_RUN)[attempt.index % 2]
    attempt.shared /= run.script.module
    save = attempt.folder / "run"
    limit = attempt.rng.randrange(6000)

    def before() -> None:
        run.before()
        hard = resource.getrlimit(resource.RLIMIT_FSIZE)[1]
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, hard))

    result = attempt.run(run.script, run.argv(attempt, save), before)
    expect_user_error(result)
    resume_and_compare(run, attempt, save)


FAULTS = [
    Fault(
        "disk-full",
        "disk full at a random byte of a save",
        20,
        "one-line error; the previous checkpoint loads; resumed with free space, the run ends with "
        "the same weights",
        full,
        prepare_both,
    ),
    Fault(
        "disk-full-log",
        "disk full for all files, log and TensorBoard events included",
        10,
        "one-line error; resumed with free space, the run ends with the same weights",
        full_from_the_start,
        prepare_both,
    ),
]
