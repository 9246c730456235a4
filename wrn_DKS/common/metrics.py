"""Metrics: top-k counts, sums over an epoch and over processes, and the cost of a network."""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from .distributed import sum_over_processes


def topk_correct(logits: Tensor, labels: Tensor, k: int = 1) -> Tensor:
    """Count the labels (B,) that are among the top k of the logits (B, K): an int64 scalar.

    Of labels that are probabilities of the classes, (B, K), the most probable class counts.
    """
    if labels.dim() == 2:
        labels = labels.argmax(-1)
    best = logits.topk(min(k, logits.shape[-1]), dim=-1).indices
    return (best == labels.unsqueeze(-1)).sum()


class MetricSums:
    """Named running sums, kept on the device so that adding to them does not synchronize."""

    def __init__(self, device: torch.device):
        self._device = device
        self._sums: dict[str, Tensor] = {}

    def add(self, **values: Tensor | float) -> None:
        """Add each value to the sum of that name; its shape must be the same in every call."""
        for name, value in values.items():
            if not isinstance(value, Tensor):
                value = torch.full((), value, device=self._device)  # no copy from the host
            value = value.detach().to(self._device)  # sums from a checkpoint are on the CPU
            if self._device.type != "mps":  # MPS has no float64
                value = value.double()
            self._sums[name] = self._sums[name] + value if name in self._sums else value

    def totals(self, all_processes: bool = True) -> dict[str, Tensor]:
        """Return the sums on the CPU.

        Args:
            all_processes: sum over all processes, which must call this method together;
                otherwise return the sums of this process.
        """
        if not self._sums:
            return {}
        flat = torch.cat([value.reshape(-1) for value in self._sums.values()])
        flat = (sum_over_processes(flat) if all_processes else flat).cpu()
        pieces = flat.split([value.numel() for value in self._sums.values()])
        return {
            name: piece.view(value.shape)
            for (name, value), piece in zip(self._sums.items(), pieces, strict=True)
        }


class Cost(NamedTuple):
    """The cost of a network: its size, and the work per image."""

    parameters: int  # trainable
    multiply_adds: int  # of convolutions and linear layers in one forward pass

    def __str__(self) -> str:
        return f"{self.parameters:,} parameters, {self.multiply_adds:,} multiply-adds per image"


def cost(build: Callable[[], nn.Module], image_size: int) -> Cost:
    """Count the parameters and multiply-adds of a network without allocating it.

    Args:
        build: returns the network. It is called on the meta device, which uses neither memory
            nor random numbers.
        image_size: side in pixels of the (3, image_size, image_size) image.
    """
    with torch.device("meta"), torch.no_grad():
        model = build().eval()
        counter = FlopCounterMode(display=False)
        with counter:
            model(torch.empty(1, 3, image_size, image_size))
    return Cost(sum(p.numel() for p in model.parameters()), counter.get_total_flops() // 2)
