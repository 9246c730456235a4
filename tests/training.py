"""A small training run shared by the tests of `imagenet/train.py`."""

import json
import sys
from pathlib import Path

import pytest
import torch
from synthetic import write_folders
from torch import Tensor, nn

STEPS = 4  # per epoch of `write_data` in batches of 4, the last of which has one image


class TinyNetwork(nn.Module):
    """A replacement for a ResNet with branches in tests that need only the training code."""

    def __init__(self, arch: str, branches: bool = True, num_classes: int = 1000):
        super().__init__()
        self.features = nn.Sequential(nn.Conv2d(3, 8, 5, 4), nn.BatchNorm2d(8), nn.ReLU())
        self.fc = nn.Linear(8, num_classes)
        self.branches = nn.ModuleList(nn.Linear(8, num_classes) for _ in range(2 * branches))

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        pooled = self.features(images).mean((2, 3))
        return self.fc(pooled), *(branch(pooled) for branch in self.branches)


def write_data(root: Path) -> Path:
    """Write 13 training and 5 validation images of 3 classes; return `root`."""
    write_folders(root, {"cat": 5, "dog": 4, "eel": 4}, "train")
    return write_folders(root, {"cat": 2, "dog": 2, "eel": 1}, "val")


def command_line(data: Path, save: Path, *more: str) -> list[str]:
    """Return the arguments of a run of 2 epochs on the CPU; `more` overrides them.

    The milestones are given, so that they do not depend on the number of epochs.
    """
    flags = "-a resnet18 --image-size 40 -b 4 --epochs 2 --lr 0.02 --lr-milestones 30,60,90 -j 0"
    flags += " --device cpu"
    return [str(data), "--save", str(save), *flags.split(), *more]


def run_train(imagenet, argv: list[str]) -> int:
    """Run train.py on `TinyNetwork` in this process; return its exit status."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(imagenet.train, "build", TinyNetwork)
        # Exceptions from DataLoader workers are unpickled by the name of their module.
        for name in ("common", "common.command_line"):
            patch.setitem(sys.modules, name, imagenet.imported[name])
        return imagenet.train.main(argv)


def error_of(main, capsys, argv: list[str]) -> str:
    """Run a command line that must fail with a one-line error; return that line."""
    capsys.readouterr()
    assert main(argv) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and error.startswith("error: ")
    return error


def log_records(save: Path) -> list[dict]:
    """Read the log of a run, without times and options, in which two equal runs may differ."""
    lines = [json.loads(line) for line in (save / "log.jsonl").read_text().splitlines()]
    unequal = ("times", "options")
    return [{key: value for key, value in line.items() if key not in unequal} for line in lines]


def load_checkpoint(save: Path) -> dict:
    return torch.load(save / "checkpoint.pt", weights_only=True)


def assert_same_run(save: Path, reference: Path) -> None:
    """Assert that two runs have the same log, weights, averages and momentum, bit for bit."""
    assert log_records(save) == log_records(reference)
    actual, expected = load_checkpoint(save), load_checkpoint(reference)
    for part in ("model", "ema"):
        assert actual[part].keys() == expected[part].keys()
        for name, value in actual[part].items():
            assert torch.equal(value, expected[part][name]), name
    states = expected["optimizer"]["state"]
    for index, state in actual["optimizer"]["state"].items():
        assert torch.equal(state["momentum_buffer"], states[index]["momentum_buffer"])
