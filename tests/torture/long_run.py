"""Memory and open files of a run of a thousand small epochs."""

import os
import re
import statistics
import time
from pathlib import Path
from typing import NamedTuple

import training

from torture.attempts import Attempt, Fault, expect, expect_done
from torture.runs import use_small_network
from torture.scripts import CIFAR, TRAINING

EPOCHS = 1000
SETTLED = 50  # epochs after which nothing may grow
# The allocator's own rise was 0.1 to 0.3 MB. A leak of 1.1 kB an epoch, less than the record of
# an epoch in the log and far less than a batch, would come to as much as this.
TOLERANCE_KB = 1024


class Sample(NamedTuple):
    """What a process held after some epochs."""

    epoch: int
    resident_kb: int
    open_files: int


def long_run(attempt: Attempt) -> None:
    """Train a thousand epochs on some images, and look at the process now and then."""
    root = training.write_data(attempt.folder / "data")
    save = attempt.folder / "run"
    if attempt.index % 2:
        words = training.command_line(root, save, "--epochs", str(EPOCHS), "--ema", "0.9")
        child = attempt.start(TRAINING, words, use_small_network)
    else:
        words = f"--dataset folder --image-size 8 --depth 10 --width 0.0625 --epochs {EPOCHS}"
        words += f" --epoch_step [{EPOCHS // 2}] --lr 0.001 --dataroot {root} --save {save}"
        child = attempt.start(CIFAR, words.split())
    samples = []
    while not child.ended():
        samples += look(child.pid, save)
        time.sleep(0.2)
    expect_done(child.wait(1))
    settled = [sample for sample in samples if sample.epoch >= SETTLED]
    expect(len(settled) >= 20, "too few samples", len(settled))
    growth = rise([sample.resident_kb for sample in settled])
    expect(growth < TOLERANCE_KB, "resident memory grew", f"{growth:.0f} kB")
    files = rise([sample.open_files for sample in settled])
    expect(files < 1, "open files grew", files)


def look(pid: int, save: Path) -> list[Sample]:
    """A sample of a process, unless it has just ended or has no log yet."""
    try:
        epoch = next(path for path in save.glob("log.*")).read_text().count("\n")
        status = Path(f"/proc/{pid}/status").read_text()
        files = len(os.listdir(f"/proc/{pid}/fd"))
        return [Sample(epoch, int(re.search(r"VmRSS:\s+(\d+)", status)[1]), files)]
    except (StopIteration, OSError, TypeError):
        return []


def rise(values: list[int]) -> float:
    """From the median of the first fifth to that of the last."""
    fifth = len(values) // 5
    return statistics.median(values[-fifth:]) - statistics.median(values[:fifth])


FAULTS = [
    Fault(
        "long-run",
        "a run of 1,000 small epochs, of each training script",
        2,
        "resident memory (within 1 MiB) and open files flat after the first 50 epochs",
        long_run,
        limit_s=600,
    ),
]
