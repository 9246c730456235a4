"""Batch normalization with several processes: synchronized, or warned about."""

import contextlib
from collections.abc import Iterator

import torch
from torch import nn

from .command_line import UserError, plural
from .distributed import print_once, world_size

FEW_IMAGES = 16


def synchronize_batch_norms(model: nn.Module, device: torch.device) -> nn.Module:
    """Make batch norm use the statistics of the whole batch instead of this process's part.

    The names of parameters and buffers stay the same. A single process needs no change.

    Raises:
        UserError: the device is not a GPU, the only device that SyncBatchNorm runs on.
    """
    if device.type != "cuda":
        raise UserError(
            f"--sync-bn: SyncBatchNorm runs on GPUs only, not on {device}; leave out --sync-bn"
        )
    return nn.SyncBatchNorm.convert_sync_batchnorm(model) if world_size() > 1 else model


@contextlib.contextmanager
def keep_buffers(model: nn.Module) -> Iterator[None]:
    """Restore the buffers after the block, such as the running statistics of a placeholder image.

    With SyncBatchNorm, the image still enters the statistics that normalize the other images.
    """
    before = [buffer.clone() for buffer in model.buffers()]
    yield
    for buffer, value in zip(model.buffers(), before, strict=True):
        buffer.copy_(value)


def warn_of_few_images(batch_size: int, micro_batches: int, synchronized: bool) -> None:
    """Print a warning if a batch is split into parts that are small for batch norm.

    Args:
        batch_size: of the whole batch.
        micro_batches: parts of the batch of a process.
        synchronized: whether batch norm uses the images of all processes.
    """
    images = batch_size // (micro_batches * (1 if synchronized else world_size()))
    if images < min(FEW_IMAGES, batch_size):
        print_once(
            f"warning: batch norm sees {plural(images, 'image')} at a time, and below "
            f"{FEW_IMAGES} its statistics are inaccurate; increase -b and --lr in proportion, use "
            "fewer processes, or add --sync-bn"
        )
