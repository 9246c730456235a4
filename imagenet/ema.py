"""The exponential moving average of a network's weights."""

import copy

import torch
from torch import nn


class ModelEma:
    """A copy of a network whose weights follow the original's: w <- decay w + (1 - decay) own.

    The running statistics of batch normalisation are averaged too, since the averaged weights
    need statistics of their own.

    Args:
        model: the network to follow; the average starts from its present weights.
        decay: from 0 (no averaging) to below 1.
    """

    def __init__(self, model: nn.Module, decay: float):
        self.model = copy.deepcopy(model).eval().requires_grad_(False)
        self._decay = decay
        # Both networks' tensors are only ever changed in place, so that they can be listed once.
        pairs = list(
            zip(self.model.state_dict().values(), model.state_dict().values(), strict=True)
        )
        self._averaged = [pair for pair in pairs if pair[0].is_floating_point()]
        self._copied = [pair for pair in pairs if not pair[0].is_floating_point()]  # counts

    @torch.no_grad()
    def update(self) -> None:
        """Take the network's weights, after a step, into the average."""
        averages, weights = map(list, zip(*self._averaged, strict=True))
        torch._foreach_lerp_(averages, weights, 1 - self._decay)
        for average, value in self._copied:
            average.copy_(value)
