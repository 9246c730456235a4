"""A small training run of each folder, and a bit-for-bit comparison of runs."""

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import torch
import training

from torture.attempts import Attempt, expect, expect_success
from torture.scripts import CIFAR, IMAGENET, TRAINING, Script

# Log keys that depend on the clock, the machine or the folder.
VOLATILE_KEYS = {
    "train_time", "test_time", "train_images_per_s", "times", "peak_memory_mib", "resume", "save",
    "options",
}  # fmt: skip


class SmallRun(NamedTuple):
    """A training run that takes seconds."""

    script: Script
    saves: int  # number of checkpoints that it saves
    log: str
    argv: Callable[[Attempt, Path], list[str]]  # to start or resume it in a folder
    before: Callable[[], None]


def cifar_argv(attempt: Attempt, save: Path) -> list[str]:
    argv = "--dataset digits --depth 10 --width 0.25 --batch_size 256 --epochs 4 --epoch_step [3]"
    return [*argv.split(), "--save", str(save), "--resume", "auto"]


def training_argv(attempt: Attempt, save: Path) -> list[str]:
    flags = "--epochs 3 --ema 0.9 --checkpoint-minutes 0 --resume auto".split()
    workers = str(attempt.index % 2)
    return training.command_line(attempt.shared / "images", save, *flags, "-j", workers)


def use_small_network() -> None:
    """Make train.py train a tiny network instead of a ResNet."""
    IMAGENET.train.build = training.TinyNetwork


CIFAR_RUN = SmallRun(CIFAR, 4, "log.txt", cifar_argv, lambda: None)
TRAINING_RUN = SmallRun(
    TRAINING, 3 * (training.STEPS + 1), "log.jsonl", training_argv, use_small_network
)


def prepare(run: SmallRun, attempt: Attempt) -> None:
    """Write an uninterrupted run and its duration to `attempt.shared`."""
    training.write_data(attempt.shared / "images")
    start = time.monotonic()
    argv = run.argv(attempt, attempt.shared / "reference")
    expect_success(attempt.run(run.script, argv, run.before, limit_s=120))
    (attempt.shared / "seconds").write_text(str(time.monotonic() - start))


def duration_s(attempt: Attempt) -> float:
    """Return the duration of the uninterrupted run."""
    return float((attempt.shared / "seconds").read_text())


def resume_and_compare(run: SmallRun, attempt: Attempt, save: Path) -> None:
    """Resume the run in `save`; expect the result of the uninterrupted run."""
    expect_success(attempt.run(run.script, run.argv(attempt, save), run.before))
    expect_same_run(run, save, attempt.shared / "reference")


def expect_same_run(run: SmallRun, save: Path, reference: Path) -> None:
    """Expect equal checkpoints, equal logs except for times, and no temporary files."""
    actual, expected = (load(folder / "checkpoint.pt") for folder in (save, reference))
    actual["options"] = expected["options"] = None
    difference = first_difference(actual, expected)
    expect(not difference, f"{save}: the checkpoint differs in {difference}")
    actual, expected = (log_records(folder / run.log) for folder in (save, reference))
    expect(
        actual == expected,
        f"{save}: the log differs; it has {len(actual)} records, expected {len(expected)}",
    )
    leftovers = [path.name for path in save.iterdir() if path.suffix == ".tmp"]
    expect(not leftovers, f"{save}: temporary files left behind: {leftovers}")


def load(path: Path) -> dict:
    return torch.load(path, map_location="cpu", weights_only=True)


def first_difference(actual: object, expected: object, location: str = "") -> str:
    """Return the keys of the first difference of two nested values; empty if they are equal."""
    if isinstance(actual, torch.Tensor) and isinstance(expected, torch.Tensor):
        equal = actual.dtype == expected.dtype and torch.equal(actual, expected)
    elif isinstance(actual, dict) and isinstance(expected, dict) and list(actual) == list(expected):
        differences = (
            first_difference(actual[key], expected[key], f"{location}/{key}") for key in actual
        )
        return next(filter(None, differences), "")
    elif isinstance(actual, list) and isinstance(expected, list):
        return first_difference(dict(enumerate(actual)), dict(enumerate(expected)), location)
    else:
        equal = type(actual) is type(expected) and actual == expected
    return "" if equal else location or "its type"


def log_records(log: Path) -> list[dict]:
    """Read a log without its volatile keys."""
    lines = [line.removeprefix("json_stats: ") for line in log.read_text().splitlines()]
    return [
        {key: value for key, value in json.loads(line).items() if key not in VOLATILE_KEYS}
        for line in lines
    ]
