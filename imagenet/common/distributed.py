"""One process or many: start-up from torchrun's variables, sums over processes, shards.

Every function also works, and does next to nothing, where there is one process.
"""

import contextlib
import os
import time
import uuid
from collections.abc import Iterator

import torch
import torch.distributed as dist
from torch import Tensor, nn

from .command_line import UserError, one_line


@contextlib.contextmanager
def distributed_context(device: str) -> Iterator[torch.device]:
    """Join the processes that torchrun started, if it did, and leave them at the end.

    Args:
        device: `auto` (a GPU where there is one, else the CPU), `cpu`, `cuda`, `cuda:1`, …
            Under torchrun, `auto` and `cuda` give each process the GPU of its local rank.

    Yields:
        This process's device.

    Raises:
        UserError: there is no such device, or all processes of a machine would have the same GPU.
    """
    chosen = select_device(device)
    if chosen.type == "cuda":
        torch.cuda.set_device(chosen)
    if "WORLD_SIZE" in os.environ and "RANK" in os.environ:
        store, own_rank, count = next(dist.rendezvous("env://"))
        if "TORCHELASTIC_RUN_ID" in os.environ:
            store = fresh_store_prefix(store, own_rank, count)
        backend = "nccl" if chosen.type == "cuda" else "gloo"
        dist.init_process_group(backend, store=store, rank=own_rank, world_size=count)
    try:
        yield chosen
    except RuntimeError as error:
        if not dist.is_initialized() or not is_peer_failure(error):
            raise
        raise UserError(
            "another process of this run has ended, and its own message says why, or they can't "
            f"reach each other ({one_line(error, 150)})"
        ) from error
    finally:
        if dist.is_initialized():
            dist.destroy_process_group()


def fresh_store_prefix(store: dist.Store, own_rank: int, count: int) -> dist.Store:
    """A part of torchrun's store that all processes know and none of an earlier start has used.

    torchrun (of PyTorch 2.14) keeps its store when it restarts a run's processes, and in it the
    addresses of those that have ended. So process 0 names a new part to every process that knows
    a word which only one that is alive can know.
    """
    word = uuid.uuid4().hex
    if own_rank != 0:
        store.set(f"word of {own_rank}", word)
        part = store.get(f"part for {word}").decode()  # waits for it
        store.set(f"{part} is known to {own_rank}", "")
        return dist.PrefixStore(part, store)
    part, missing = word, list(range(1, count))
    while missing:
        for other in missing:
            if store.check([f"word of {other}"]):  # it may be one of a process that has ended
                store.set(f"part for {store.get(f'word of {other}').decode()}", part)
        time.sleep(0.02)
        missing = [other for other in missing if not store.check([f"{part} is known to {other}"])]
    return dist.PrefixStore(part, store)


def is_peer_failure(error: RuntimeError) -> bool:
    """Whether the error comes from a collective whose other side is gone."""
    return isinstance(error, dist.DistError) or "gloo" in str(error)


def select_device(device: str) -> torch.device:
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    if device.startswith("cuda:") and int(os.environ.get("LOCAL_WORLD_SIZE", 1)) > 1:
        raise UserError(f"--device {device}: one GPU for several processes; give --device cuda")
    try:
        chosen = torch.device(device)
        if device == "cuda":
            chosen = torch.device("cuda", int(os.environ.get("LOCAL_RANK", 0)))
        torch.empty(1, device=chosen)
    except (RuntimeError, AssertionError) as error:
        gpus = torch.cuda.device_count()
        raise UserError(
            f"--device {device}: not to be had on this machine, where PyTorch sees {gpus} GPU(s); "
            "use another number, --device cpu, or as many processes as there are GPUs"
        ) from error
    return chosen


def rank() -> int:
    return dist.get_rank() if dist.is_initialized() else 0


def world_size() -> int:
    return dist.get_world_size() if dist.is_initialized() else 1


def sum_over_processes(values: Tensor) -> Tensor:
    """The sum of every process's `values`, elementwise; the argument stays as it was."""
    if not dist.is_initialized():
        return values
    total = values.clone()
    dist.all_reduce(total)
    return total


def barrier() -> None:
    """Wait until every process is here."""
    if dist.is_initialized():
        dist.barrier()


@contextlib.contextmanager
def main_process_first() -> Iterator[None]:
    """Let process 0 run the block before the others: to download, to claim a folder."""
    if rank() != 0:
        barrier()
    yield
    if rank() == 0:
        barrier()


def print_once(text: str) -> None:
    """Print a line from process 0 alone."""
    if rank() == 0:
        print(text, flush=True)


def broadcast_buffers(model: nn.Module) -> None:
    """Give every process the buffers (BN's running statistics) of process 0."""
    if dist.is_initialized():
        for buffer in model.buffers():
            dist.broadcast(buffer, 0)


def shard(count: int) -> slice:
    """This process's contiguous share of `count` things, at most one more than any other's."""
    each, left = divmod(count, world_size())
    start = rank() * each + min(rank(), left)
    return slice(start, start + each + (rank() < left))


def data_parallel(model: nn.Module, device: torch.device) -> nn.Module:
    """`model`, inside DistributedDataParallel where there are several processes.

    As usual there, batch normalisation uses each process's own share of the batch in training,
    and the running statistics are those of process 0.
    """
    if not dist.is_initialized():
        return model
    ids = [device.index] if device.type == "cuda" else None
    return nn.parallel.DistributedDataParallel(model, device_ids=ids)
