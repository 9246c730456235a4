"""Synthetic images, datasets and checkpoints for tests."""

import pickle
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn


def write_image(path: Path, seed: int = 0, size: tuple[int, int] = (40, 30)) -> Path:
    """Write an image of random pixels; `size` is (width, height), the suffix sets the format."""
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path)
    return path


def write_folders(root: Path, counts: dict[str, int], split: str = "val") -> Path:
    """Write `counts[name]` images to `root/split/name` for each class; return `root`."""
    for seed, (name, count) in enumerate(counts.items()):
        for i in range(count):
            write_image(root / split / name / f"{name}_{i}.png", 100 * seed + i)
    return root


def write_cifar100(folder: Path, count: int) -> dict[str, np.ndarray]:
    """Write `count` random images per split in CIFAR-100's file format; return their pixels."""
    folder.mkdir(parents=True)
    pixels = {}
    for seed, part in enumerate(("train", "test")):
        pixels[part] = np.random.default_rng(seed).integers(0, 256, (count, 3072), dtype=np.uint8)
        labels = [(7 * i + seed) % 100 for i in range(count)]
        coarse = [19 - label // 5 for label in labels]
        record = {"data": pixels[part], "fine_labels": labels, "coarse_labels": coarse}
        (folder / part).write_bytes(pickle.dumps(record))
    names = {"fine_label_names": [f"class {i:03}" for i in range(100)]}
    names["coarse_label_names"] = [f"superclass {i:02}" for i in range(20)]
    (folder / "meta").write_bytes(pickle.dumps(names))
    return pixels


def set_constant_ranking(layer: nn.Linear, classes: Sequence[int]) -> None:
    """Make a linear layer rank these classes first, in this order, for every input."""
    with torch.no_grad():
        layer.weight.zero_()
        layer.bias.fill_(-30.0)
        for rank, index in enumerate(classes):
            layer.bias[index] = 5.0 - rank


def save_weights(path: Path, state: dict[str, Tensor], **extra) -> Path:
    """Save a state dict, alone or, if there are `extra` keys, under `model` beside them."""
    torch.save({"model": state, **extra} if extra else state, path)
    return path
