"""Memory and open files of a run of 1,000 small epochs."""

import os
import re
import statistics
import time
from pathlib import Path
from typing import NamedTuple

import training

from torture.attempts import Attempt, Fault, expect, expect_success
from torture.runs import use_small_network
from torture.scripts import CIFAR, TRAINING

EPOCHS = 1000
SETTLED = 50  # epochs after which memory and open files must not grow
# The allocator alone grew by 0.1 to 0.3 MB. A leak of 1.1 kB per epoch, which is less than a log
# record and far less than a batch, would exceed this.
TOLERANCE_KB = 1024


class Sample(NamedTuple):
    """Resources that a process holds after an epoch."""

    epoch: int
    resident_kb: int
    open_files: int


def long_run(attempt: Attempt) -> None:
    """Train 1,000 epochs on a few images; sample the resources of the process meanwhile."""
    root = training.write_data(attempt.folder / "data")
    save = attempt.folder / "run"
    if attempt.index % 2:
        argv = training.command_line(root, save, "--epochs", str(EPOCHS), "--ema", "0.9")
        child = attempt.start(TRAINING, argv, use_small_network)
    else:
        argv = f"--dataset folder --image-size 8 --depth 10 --width 0.0625 --epochs {EPOCHS}"
        argv += f" --epoch_step [{EPOCHS // 2}] --lr 0.001 --dataroot {root} --save {save}"
        child = attempt.start(CIFAR, argv.split())
    samples = []
    while not child.has_ended():
        samples += sample(child.pid, save)
        time.sleep(0.2)
    expect_success(child.wait(1))
    settled = [each for each in samples if each.epoch >= SETTLED]
    expect(len(settled) >= 20, "too few samples", len(settled))
    memory = growth([each.resident_kb for each in settled])
    expect(memory < TOLERANCE_KB, "resident memory grew", f"{memory:.0f} kB")
    files = growth([each.open_files for each in settled])
    expect(files < 1, "open files grew", files)


def sample(pid: int, save: Path) -> list[Sample]:
    """Return a sample of a process; empty if it has ended or has no log yet."""
    try:
        epoch = next(path for path in save.glob("log.*")).read_text().count("\n")
        status = Path(f"/proc/{pid}/status").read_text()
        files = len(os.listdir(f"/proc/{pid}/fd"))
        return [Sample(epoch, int(re.search(r"VmRSS:\s+(\d+)", status)[1]), files)]
    except (StopIteration, OSError, TypeError):
        return []


def growth(values: list[int]) -> float:
    """Return the median of the last fifth of the values minus that of the first."""
    fifth = len(values) // 5
    return statistics.median(values[-fifth:]) - statistics.median(values[:fifth])


FAULTS = [
    Fault(
        "long-run",
        "run of 1,000 small epochs of each training script",
        2,
        "resident memory (within 1 MiB) and open files constant after the first 50 epochs",
        long_run,
        limit_s=600,
    ),
]
