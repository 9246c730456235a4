"""Numbers made by running the paper's released code on a small network, WRN-16-1.

`data/wrn-16-1-formula.npz` holds what the released code computed, on a CPU, from parameters and
inputs that the formula of `noise` gives, so that they need not be stored.
"""

from pathlib import Path

import numpy as np
import torch
from torch import Tensor

FILE = Path(__file__).with_name("data") / "wrn-16-1-formula.npz"
BATCH = (8, 3, 32, 32)


def noise(count: int, key: int) -> np.ndarray:
    """About normal pseudo-random numbers, float64 (count,)."""
    i = np.arange(1, count + 1)
    total = np.zeros(count)
    for q in range(4):
        wave = np.abs(np.sin(i * 12.9898 + 78.233 * (key + 1) + 37.719 * q) * 43758.5453)
        total += wave - np.floor(wave)
    return (total - 2) * np.sqrt(3)


def parameters(file: np.lib.npyio.NpzFile) -> dict[str, Tensor]:
    """The released code's flat parameters, in its order, running statistics included."""
    flat = {}
    for j, (name, shape) in enumerate(zip(file["names"], file["shapes"], strict=True)):
        shape = tuple(int(size) for size in str(shape).split(","))
        values = _values(str(name), shape, noise(int(np.prod(shape)), j))
        flat[str(name)] = torch.from_numpy(values.reshape(shape).astype(np.float32))
    return flat


def _values(name: str, shape: tuple[int, ...], drawn: np.ndarray) -> np.ndarray:
    if name.endswith("running_mean"):
        return np.zeros_like(drawn)
    if name.endswith("running_var"):
        return np.ones_like(drawn)
    if len(shape) > 1:
        return drawn * np.sqrt(2 / np.prod(shape[1:]))
    return 0.5 + 0.25 * np.abs(drawn) if "bn" in name and "weight" in name else 0.1 * drawn


def inputs() -> tuple[Tensor, Tensor]:
    """A batch: images (8, 3, 32, 32) float32, labels (8,)."""
    images = noise(int(np.prod(BATCH)), 1000).reshape(BATCH).astype(np.float32)
    return torch.from_numpy(images), torch.arange(8) * 13 % 100


def trajectory_inputs() -> tuple[Tensor, Tensor]:
    """Ten batches: images (10, 8, 3, 32, 32) float32, labels (10, 8)."""
    shape = (10, *BATCH)
    images = noise(int(np.prod(shape)), 2000).reshape(shape).astype(np.float32)
    return torch.from_numpy(images), (torch.arange(80) * 37 % 100).view(10, 8)
