"""A small training run of each side, and whether two runs ended the same to the last bit."""

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import torch
import training

from torture.attempts import Attempt, expect, expect_done
from torture.scripts import CIFAR, IMAGENET, TRAINING, Script

# What the clock and the machine decide, and the options that say where a run lies.
TIMES = {
    "train_time", "test_time", "train_images_per_s", "times", "peak_memory_mib", "resume", "save"
}  # fmt: skip


class SmallRun(NamedTuple):
    """A run that takes seconds and saves `saves` checkpoints."""

    script: Script
    saves: int
    log: str
    words: Callable[[Attempt, Path], list[str]]  # to start it in a folder or to go on with it
    before: Callable[[], None]


def cifar_words(attempt: Attempt, save: Path) -> list[str]:
    words = "--dataset digits --depth 10 --width 0.25 --batch_size 256 --epochs 4 --epoch_step [3]"
    return [*words.split(), "--save", str(save), "--resume", "auto"]


def training_words(attempt: Attempt, save: Path) -> list[str]:
    flags = "--epochs 3 --ema 0.9 --checkpoint-minutes 0 --resume auto".split()
    workers = str(attempt.index % 2)
    return training.command_line(attempt.shared / "images", save, *flags, "-j", workers)


def use_small_network() -> None:
    """Let train.py train a network of two layers in place of a ResNet."""
    IMAGENET.train.build = training.TinyNetwork


CIFAR_RUN = SmallRun(CIFAR, 4, "log.txt", cifar_words, lambda: None)
TRAINING_RUN = SmallRun(
    TRAINING, 3 * (training.STEPS + 1), "log.jsonl", training_words, use_small_network
)


def prepare(run: SmallRun, attempt: Attempt) -> None:
    """A run that nothing disturbs, in `attempt.shared`, and how long it takes."""
    training.write_data(attempt.shared / "images")
    start = time.monotonic()
    words = run.words(attempt, attempt.shared / "reference")
    expect_done(attempt.run(run.script, words, run.before, limit_s=120))
    (attempt.shared / "seconds").write_text(str(time.monotonic() - start))


def seconds(attempt: Attempt) -> float:
    """How long the undisturbed run took."""
    return float((attempt.shared / "seconds").read_text())


def finish(run: SmallRun, attempt: Attempt, save: Path) -> None:
    """Go on with the run in `save` to its end, which must be the undisturbed run's."""
    expect_done(attempt.run(run.script, run.words(attempt, save), run.before))
    expect_same_run(run, save, attempt.shared / "reference")


def expect_same_run(run: SmallRun, save: Path, reference: Path) -> None:
    """The same checkpoint to the last bit, the same log apart from times."""
    own, other = (load(folder / "checkpoint.pt") for folder in (save, reference))
    own["options"] = other["options"] = None
    difference = first_difference(own, other)
    expect(not difference, f"{save}: the checkpoint differs in {difference}")
    own, other = (records(folder / run.log) for folder in (save, reference))
    expect(own == other, f"{save}: the log differs, {len(own)} records for {len(other)}")
    left = [path.name for path in save.iterdir() if path.suffix == ".tmp"]
    expect(not left, f"{save}: left behind {left}")


def load(path: Path) -> dict:
    return torch.load(path, map_location="cpu", weights_only=True)


def first_difference(one: object, other: object, place: str = "") -> str:
    """Where two nested values differ, by their keys; empty if they don't."""
    if isinstance(one, torch.Tensor) and isinstance(other, torch.Tensor):
        same = one.dtype == other.dtype and torch.equal(one, other)
    elif isinstance(one, dict) and isinstance(other, dict) and list(one) == list(other):
        found = (first_difference(one[key], other[key], f"{place}/{key}") for key in one)
        return next(filter(None, found), "")
    elif isinstance(one, list) and isinstance(other, list):
        return first_difference(dict(enumerate(one)), dict(enumerate(other)), place)
    else:
        same = type(one) is type(other) and one == other
    return "" if same else place or "its kind"


def records(log: Path) -> list[dict]:
    lines = [line.removeprefix("json_stats: ") for line in log.read_text().splitlines()]
    return [
        {key: value for key, value in json.loads(line).items() if key not in TIMES}
        for line in lines
    ]
