"""Exponential moving average of a model's weights."""

import copy

import torch
from torch import nn


class ModelEma:
    """A copy of a model with averaged weights: average <- decay * average + (1 - decay) * weight.

    The running statistics of batch normalization are averaged as well, because those of the
    original model do not fit the averaged weights.

    Args:
        model: the model to follow; the average starts at its current weights.
        decay: in [0, 1); 0 copies the weights.
    """

    def __init__(self, model: nn.Module, decay: float):
        self.model = copy.deepcopy(model).eval().requires_grad_(False)
        self._decay = decay
        # Listed once, because the tensors of both models are only ever changed in place.
        pairs = list(
            zip(self.model.state_dict().values(), model.state_dict().values(), strict=True)
        )
        self._averaged = [pair for pair in pairs if pair[0].is_floating_point()]
        self._copied = [pair for pair in pairs if not pair[0].is_floating_point()]  # counters

    @torch.no_grad()
    def update(self) -> None:
        """Update the average with the model's weights, after a step."""
        averages, weights = map(list, zip(*self._averaged, strict=True))
        torch._foreach_lerp_(averages, weights, 1 - self._decay)
        for average, value in self._copied:
            average.copy_(value)
