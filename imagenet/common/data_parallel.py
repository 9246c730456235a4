"""DistributedDataParallel, such that a resumed run computes the same as an uninterrupted one."""

import torch
import torch.distributed as dist
from torch import Tensor, nn

from .distributed import world_size


def wrap_ddp(model: nn.Module, device: torch.device) -> nn.Module:
    """Wrap the model in DistributedDataParallel if there is a process group.

    In training, batch norm then uses the statistics of each process's part of the batch. The
    running statistics are those of process 0.
    """
    if not dist.is_initialized():
        return model
    ids = [device.index] if device.type == "cuda" else None
    parallel = nn.parallel.DistributedDataParallel(model, device_ids=ids)
    sort_buckets(parallel, device)
    return parallel


def sort_buckets(parallel: nn.parallel.DistributedDataParallel, device: torch.device) -> None:
    """Make DistributedDataParallel arrange its buckets before the first training step.

    After its first backward pass, it puts the gradients into other buckets, in which three or more
    processes add them in another order. The first step of a resumed run would therefore round
    differently from the same step of an uninterrupted run. This function runs that first pass and
    drops its gradients. In evaluation mode, it changes no running statistics and draws no random
    numbers.
    """
    training = parallel.training
    parallel.eval()
    images = torch.zeros(1, 3, 32, 32, device=device)
    sum(logits.sum() for logits in parallel(images)).backward()
    parallel.zero_grad(set_to_none=True)
    parallel.train(training)


def scale_for_ddp(loss: Tensor, fraction: float) -> Tensor:
    """Scale this process's loss so that DDP's mean over processes is the whole batch's loss.

    Args:
        loss: mean over the images of this process.
        fraction: of the whole batch's images that this process has.
    """
    return loss * (fraction * world_size())
