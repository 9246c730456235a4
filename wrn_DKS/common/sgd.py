"""SGD with momentum, with a fused kernel where the device has one."""

import torch
from torch import nn


def make_sgd(model: nn.Module, lr: float, momentum: float, weight_decay: float) -> torch.optim.SGD:
    """Create the optimizer with momentum buffers of zero.

    Args:
        model: already on its device and in its memory format.
        lr: learning rate.
        momentum: 0 for none.
        weight_decay: applied to every trainable tensor, including batch-norm parameters and
            biases, as in the released code.
    """
    device = next(model.parameters()).device
    optimizer = torch.optim.SGD(
        model.parameters(),
        lr,
        momentum,
        weight_decay=weight_decay,
        fused=device.type in ("cpu", "cuda"),
    )
    clear_momentum(optimizer)
    return optimizer


def clear_momentum(optimizer: torch.optim.SGD) -> None:
    """Set every momentum buffer to zero, which is equivalent to having none before the first step.

    If they were missing, the fused kernel would create them uninitialized in the first step, and
    they would stay so if the float16 gradient scaler skips that step, as it often does.
    """
    for group in optimizer.param_groups:
        if group["momentum"]:
            for parameter in group["params"]:
                optimizer.state[parameter]["momentum_buffer"] = torch.zeros_like(parameter)
