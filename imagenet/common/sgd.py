"""SGD with momentum, in one kernel for all parameters where the device has such."""

import torch
from torch import nn


def make_sgd(model: nn.Module, lr: float, momentum: float, weight_decay: float) -> torch.optim.SGD:
    """The optimizer of a model that is on its device, in its layout; momentum starts at zero.

    Args:
        weight_decay: on every trainable tensor, BN's and biases too, as in the released code.
    """
    device = next(model.parameters()).device
    optimizer = torch.optim.SGD(
        model.parameters(),
        lr,
        momentum,
        weight_decay=weight_decay,
        fused=device.type in ("cpu", "cuda"),  # one kernel, not one for each tensor and term
    )
    clear_momentum(optimizer)
    return optimizer


def clear_momentum(optimizer: torch.optim.SGD) -> None:
    """Set every momentum buffer to zero, from which the first step goes as it does without one.

    Left out, they would be made by that step, by the fused kernel without a value; and if
    float16's gradient scaler skips it, as it often does the first, they would stay so.
    """
    for group in optimizer.param_groups:
        if group["momentum"]:
            for parameter in group["params"]:
                optimizer.state[parameter]["momentum_buffer"] = torch.zeros_like(parameter)
