"""What depends on the generation of a GPU: the faster memory format, and what float32 means."""

import os

import torch

AMPERE = (8, 0)  # compute capability of the first GPUs with TF32 and bfloat16 tensor cores
VOLTA = (7, 0)  # of the first ones with float16 tensor cores


def compute_capability(device: torch.device) -> tuple[int, int] | None:
    """Return the compute capability of an NVIDIA GPU, such as (8, 0); None for other devices."""
    is_nvidia = device.type == "cuda" and torch.version.cuda is not None  # not an AMD GPU
    return torch.cuda.get_device_capability(device) if is_nvidia else None


def prefers_channels_last(dtype: torch.dtype, capability: tuple[int, int] | None) -> bool:
    """Return whether convolutions in this dtype are faster in channels last.

    cuDNN's kernels for channels last use tensor cores. On a GPU without them for this dtype, they
    are slower than those for NCHW: on a V100, a step in float32 took 2.76 s instead of 1.68 s
    (pytorch/pytorch#44943).
    """
    return capability is None or capability >= (VOLTA if dtype == torch.float16 else AMPERE)


def uses_tf32(dtype: torch.dtype, capability: tuple[int, int] | None) -> bool:
    """Return whether convolutions round float32 inputs to TF32, PyTorch's default since Ampere."""
    return (
        dtype == torch.float32
        and capability is not None
        and capability >= AMPERE
        and torch.backends.cudnn.allow_tf32
        and os.environ.get("NVIDIA_TF32_OVERRIDE") != "0"
    )


def describe_dtype(dtype: str, device: torch.device) -> str:
    """Return the text `dtype float32`, with a note if convolutions compute in TF32."""
    if uses_tf32(getattr(torch, dtype), compute_capability(device)):
        return f"dtype {dtype} (convolutions in TF32; NVIDIA_TF32_OVERRIDE=0 turns it off)"
    return f"dtype {dtype}"
