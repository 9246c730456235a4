"""Distributed training: devices and collectives.

Every function also works in a single process without a process group.
"""

import contextlib
import os
import time
from collections.abc import Callable, Iterator
from datetime import timedelta

import torch
import torch.distributed as dist
from torch import Tensor, nn

from .command_line import UserError, one_line, plural
from .process_group import process_group
from .signals import check_signals

POLL_S = 0.05
NO_TIMEOUT = timedelta(days=365)


@contextlib.contextmanager
def distributed_context(device: str) -> Iterator[torch.device]:
    """Select the device and, under torchrun, initialize the process group for the block.

    See `process_group`.

    Args:
        device: `auto` (a GPU if available, otherwise the CPU), `cpu`, `cuda`, `cuda:1`, …
            Under torchrun, `auto` and `cuda` select the GPU of the local rank.

    Yields:
        The device of this process.

    Raises:
        UserError: the device is not available, all processes of a node would share one GPU, other
            machines cannot connect to one of them, or another process of the run failed.
    """
    chosen = select_device(device)
    if chosen.type == "cuda":
        torch.cuda.set_device(chosen)
    try:
        with process_group(chosen):
            yield chosen
    except RuntimeError as error:
        if not is_peer_failure(error):
            raise
        raise UserError(
            "lost the connection to another process of this run; look for its own error message "
            f"({one_line(error, 150)})"
        ) from error


def is_peer_failure(error: RuntimeError) -> bool:
    """Return whether a collective failed because another process is gone."""
    return isinstance(error, dist.DistError) or "gloo" in str(error)


def select_device(device: str) -> torch.device:
    """Return the device of this process and check that it is available.

    Args:
        device: see `distributed_context`.

    Raises:
        UserError: the device is not available, or all processes of a node would share one GPU.
    """
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    if device.startswith("cuda:") and int(os.environ.get("LOCAL_WORLD_SIZE", 1)) > 1:
        raise UserError(
            f"--device {device}: several processes would share one GPU; use --device cuda"
        )
    try:
        chosen = torch.device(device)
        if device == "cuda":
            chosen = torch.device("cuda", int(os.environ.get("LOCAL_RANK", 0)))
        torch.empty(1, device=chosen)
    except (RuntimeError, AssertionError) as error:
        gpus = torch.cuda.device_count()
        remedy = "--device cpu, or at most one process per GPU" if gpus else "--device cpu"
        raise UserError(
            f"--device {device}: not available on this machine, where PyTorch finds "
            f"{plural(gpus, 'GPU')}; use {remedy}"
        ) from error
    return chosen


def rank() -> int:
    return dist.get_rank() if dist.is_initialized() else 0


def local_rank() -> int:
    """Return the rank of this process among those of its machine; without torchrun, its rank."""
    return int(os.environ.get("LOCAL_RANK", rank()))


def world_size() -> int:
    return dist.get_world_size() if dist.is_initialized() else 1


def describe_devices(device: torch.device) -> str:
    """Return the text `device cpu` or, under torchrun, such as `8 processes on cuda:0 to cuda:7`.

    Args:
        device: of this process.
    """
    if not dist.is_initialized():
        return f"device {device}"
    per_machine = int(os.environ.get("LOCAL_WORLD_SIZE", world_size()))
    names = str(device)
    if device.type == "cuda" and per_machine > 1:
        names = f"cuda:0 to cuda:{per_machine - 1}"
    machines = world_size() // per_machine
    where = f" of {machines} machines" if machines > 1 else ""
    return f"{plural(world_size(), 'process')} on {names}{where}"


def sum_over_processes(values: Tensor) -> Tensor:
    """Return the elementwise sum of `values` over all processes, without modifying `values`."""
    if not dist.is_initialized():
        return values
    total = values.clone()
    dist.all_reduce(total)
    return total


def gather_objects(value: object) -> list:
    """Return the values of all processes, which can be pickled, in the order of their ranks."""
    values = [value] * world_size()
    if dist.is_initialized():
        dist.all_gather_object(values, value)
    return values


def barrier() -> None:
    """Wait until all processes have reached this call."""
    if dist.is_initialized():
        dist.barrier()


def once_per_machine(work: Callable[[], None]) -> None:
    """Call `work` in the first process of each machine. All processes wait until it is done.

    It may take days, after which other collectives would have failed.

    Raises:
        RuntimeError: a process is gone, such as one whose `work` has failed.
    """
    group = dist.new_group(backend="gloo", timeout=NO_TIMEOUT) if dist.is_initialized() else None
    if local_rank() == 0:
        work()
    if group:
        arrival = dist.barrier(group, async_op=True)
        while not arrival.is_completed():  # signals would not interrupt `wait`
            check_signals()
            time.sleep(POLL_S)
        arrival.wait()


def print_once(text: str) -> None:
    """Print a line on process 0 only."""
    if rank() == 0:
        print(text, flush=True)


def broadcast_buffers(model: nn.Module) -> None:
    """Copy the buffers (batch-norm running statistics) of process 0 to all processes."""
    if dist.is_initialized():
        for buffer in model.buffers():
            dist.broadcast(buffer, 0)


def shard(count: int) -> slice:
    """Return this process's contiguous part of `count` items; part sizes differ by at most 1."""
    each, left = divmod(count, world_size())
    start = rank() * each + min(rank(), left)
    return slice(start, start + each + (rank() < left))
