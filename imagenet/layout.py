"""The memory format of images and weights: the one in which convolutions are faster."""

import torch

from common.gpu import compute_capability, prefers_channels_last


def memory_format(image_size: int, device: torch.device, dtype: torch.dtype) -> torch.memory_format:
    """Return the faster memory format: channels last, except for small images on a CPU.

    On GPUs, it depends on the dtype; see `prefers_channels_last`.

    The last feature maps of small images have 2x2 pixels or fewer, for which oneDNN's
    channels-last kernels take twice as long as its NCHW kernels (torch 2.15, 1,024 channels).
    """
    small = device.type == "cpu" and image_size <= 64
    preferred = prefers_channels_last(dtype, compute_capability(device))
    return torch.channels_last if preferred and not small else torch.contiguous_format
