"""The memory format of images and weights: the one in which convolutions are faster."""

import torch
from torch import nn

from common.gpu import compute_capability, prefers_channels_last


def memory_format(
    model: nn.Module, device: torch.device, dtype: torch.dtype
) -> torch.memory_format:
    """Return channels last, which is faster, unless the network is too narrow for it.

    On GPUs, it depends on the dtype; see `prefers_channels_last`.

    In oneDNN, the backward pass of a strided 1x1 convolution in channels last writes out of bounds
    if there are fewer channels than floats in a vector register (up to 16). With torch 2.14 on a
    CPU with AVX2, networks narrower than WRN-d-0.5 crashed.
    """
    narrow = any(
        conv.kernel_size == (1, 1) and conv.in_channels < 16
        for conv in model.modules()
        if isinstance(conv, nn.Conv2d)
    )
    preferred = prefers_channels_last(dtype, compute_capability(device))
    return torch.channels_last if preferred and not narrow else torch.contiguous_format
