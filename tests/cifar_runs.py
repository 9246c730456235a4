"""Small runs of wrn_DKS/main.py: their options, logs and weights."""

import json
from pathlib import Path

import torch
from torch import Tensor

SMALL_CIFAR_RUN = "--dataset digits --depth 10 --width 0.25 --batch_size 256".split()
# Keys of the log that may differ between two runs with the same results.
VARYING = {
    "train_time", "test_time", "train_images_per_s", "peak_memory_mib", "resume", "save", "epochs"
}  # fmt: skip


def records(folder: Path) -> list[dict]:
    """Read the log of a run."""
    lines = (folder / "log.txt").read_text().splitlines()
    assert all(line.startswith("json_stats: ") for line in lines)
    return [json.loads(line.removeprefix("json_stats: ")) for line in lines]


def results(folder: Path) -> list[dict]:
    """Read the log of a run without the keys that vary between equal runs."""
    return [{k: v for k, v in record.items() if k not in VARYING} for record in records(folder)]


def weights(folder: Path) -> dict[str, Tensor]:
    """Load the weights of a run."""
    return torch.load(folder / "checkpoint.pt", weights_only=True)["model"]


def assert_same_weights(folder: Path, expected: Path) -> None:
    """Assert that two runs have the same weights, bit for bit."""
    actual = weights(folder)
    assert all(torch.equal(actual[name], value) for name, value in weights(expected).items())


def assert_same_run(folder: Path, expected: Path) -> None:
    """Assert that two runs have the same log and the same weights, bit for bit."""
    assert results(folder) == results(expected)
    assert_same_weights(folder, expected)
