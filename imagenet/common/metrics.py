"""What is measured: errors, means over an epoch, and what a network costs."""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from .distributed import sum_over_processes


def topk_correct(logits: Tensor, labels: Tensor, k: int = 1) -> Tensor:
    """How many of the labels (B,) are among the k largest of their logits (B, K): int64 scalar."""
    best = logits.topk(min(k, logits.shape[-1]), dim=-1).indices
    return (best == labels.unsqueeze(-1)).sum()


class MetricSums:
    """Named running sums, kept on the device so that adding to them waits for nothing."""

    def __init__(self, device: torch.device):
        self._device = device
        self._sums: dict[str, Tensor] = {}

    def add(self, **values: Tensor | float) -> None:
        """Add scalars, or tensors of a shape that stays, to the sums of their names."""
        for name, value in values.items():
            if not isinstance(value, Tensor):
                value = torch.full((), value, device=self._device)  # no copy from the host
            value = value.detach().to(self._device)  # sums from a checkpoint are on the CPU
            if self._device.type != "mps":  # which has no float64
                value = value.double()
            self._sums[name] = self._sums[name] + value if name in self._sums else value

    def totals(self, all_processes: bool = True) -> dict[str, Tensor]:
        """The sums over all processes, who must call it together, or this one's; on the CPU."""
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
    """The size of a network: trainable parameters, and multiply-adds for one image."""

    parameters: int
    multiply_adds: int  # of convolutions and linear layers, forward

    def __str__(self) -> str:
        return f"{self.parameters:,} parameters, {self.multiply_adds:,} multiply-adds an image"


def cost(build: Callable[[], nn.Module], image_size: int) -> Cost:
    """The cost of the network that `build` makes, for one (3, image_size, image_size) image.

    It is built on the meta device, so that it takes neither memory nor random numbers.
    """
    with torch.device("meta"), torch.no_grad():
        model = build().eval()
        counter = FlopCounterMode(display=False)
        with counter:
            model(torch.empty(1, 3, image_size, image_size))
    return Cost(sum(p.numel() for p in model.parameters()), counter.get_total_flops() // 2)
