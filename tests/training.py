"""A small training run that the tests of `imagenet/train.py` share."""

import json
from pathlib import Path

import torch
from synthetic import write_folders
from torch import Tensor, nn

STEPS = 4  # an epoch of `write_data` in batches of 4, the last of which has 1 image


class TinyNetwork(nn.Module):
    """Stands for a ResNet with branches where only the training around it matters."""

    def __init__(self, arch: str, branches: bool = True, num_classes: int = 1000):
        super().__init__()
        self.features = nn.Sequential(nn.Conv2d(3, 8, 5, 4), nn.BatchNorm2d(8), nn.ReLU())
        self.fc = nn.Linear(8, num_classes)
        self.branches = nn.ModuleList(nn.Linear(8, num_classes) for _ in range(2 * branches))

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        pooled = self.features(images).mean((2, 3))
        return self.fc(pooled), *(branch(pooled) for branch in self.branches)


def write_data(root: Path) -> Path:
    """13 images of 3 classes to train on, 5 to validate with."""
    write_folders(root, {"cat": 5, "dog": 4, "eel": 4}, "train")
    return write_folders(root, {"cat": 2, "dog": 2, "eel": 1}, "val")


def command_line(data: Path, save: Path, *more: str) -> list[str]:
    """A run of 2 epochs on the CPU with no process besides it; later flags replace these."""
    flags = "-a resnet18 --image-size 40 -b 4 --epochs 2 --lr 0.02 -j 0 --device cpu"
    return [str(data), "--save", str(save), *flags.split(), *more]


def records(save: Path) -> list[dict]:
    """The log without what the clock decides."""
    lines = [json.loads(line) for line in (save / "log.jsonl").read_text().splitlines()]
    return [{key: value for key, value in line.items() if key != "times"} for line in lines]


def checkpoint(save: Path) -> dict:
    return torch.load(save / "checkpoint.pt", weights_only=True)


def assert_same_run(save: Path, reference: Path) -> None:
    """Two runs have the same log, weights, averages and momentum, to the last bit."""
    assert records(save) == records(reference)
    own, other = checkpoint(save), checkpoint(reference)
    for part in ("model", "ema"):
        assert own[part].keys() == other[part].keys()
        for name, value in own[part].items():
            assert torch.equal(value, other[part][name]), name
    own, other = own["optimizer"]["state"], other["optimizer"]["state"]
    for index, buffers in own.items():
        assert torch.equal(buffers["momentum_buffer"], other[index]["momentum_buffer"])
