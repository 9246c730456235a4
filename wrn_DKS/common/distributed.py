"""Where a run computes: the device, the processes of torchrun, and what they exchange.

Every function also works in a single process without a process group.
"""

import contextlib
import os
import sys
import time
import uuid
import warnings
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor, nn

from .command_line import UserError, one_line, plural


class Compute(NamedTuple):
    """How forward passes are computed."""

    device: torch.device
    dtype: torch.dtype = torch.float32  # of convolutions and matrix products, under autocast
    memory_format: torch.memory_format = torch.channels_last

    def forward(self, model: nn.Module, images: Tensor) -> tuple[Tensor, ...]:
        """Return the model's logits."""
        images = images.contiguous(memory_format=self.memory_format)
        with torch.autocast(self.device.type, self.dtype, enabled=self.dtype != torch.float32):
            return model(images)

    def place(self, model: nn.Module) -> nn.Module:
        """Move a model to the device, in the memory format."""
        return model.to(self.device, memory_format=self.memory_format)

    def __str__(self) -> str:
        """Describe the device and dtype for the first lines of a run."""
        dtype = str(self.dtype).removeprefix("torch.")
        tf32 = torch.backends.cudnn.allow_tf32 and os.environ.get("NVIDIA_TF32_OVERRIDE") != "0"
        if self.dtype == torch.float32 and tf32 and has_tensor_cores(self.device, self.dtype):
            dtype += " (convolutions in TF32; NVIDIA_TF32_OVERRIDE=0 turns it off)"
        processes = f"{world_size()} processes, each on " if world_size() > 1 else ""
        return f"{processes}{describe_device(self.device)}, {dtype}, torch {torch.__version__}"


def make_compute(device: torch.device, dtype: str, channels_last_on_cpu: bool) -> Compute:
    """Choose the memory format in which convolutions are faster.

    On a GPU without tensor cores for this dtype, cuDNN's kernels for channels last are slower than
    those for NCHW (pytorch/pytorch#44943). On a CPU it depends on the network.
    """
    kind = getattr(torch, dtype)
    faster = channels_last_on_cpu if device.type == "cpu" else has_tensor_cores(device, kind)
    return Compute(device, kind, torch.channels_last if faster else torch.contiguous_format)


def has_tensor_cores(device: torch.device, dtype: torch.dtype) -> bool:
    """Return whether a GPU has tensor cores for a dtype: since Volta for float16, else Ampere."""
    first = 7 if dtype == torch.float16 else 8
    return device.type == "cuda" and torch.cuda.get_device_capability(device) >= (first, 0)


def describe_device(device: torch.device) -> str:
    if device.type != "cuda":
        return f"{device} ({plural(torch.get_num_threads(), 'thread')})"
    about = torch.cuda.get_device_properties(device)
    memory, driver = f"{about.total_memory / 2**30:.0f} GiB", Path("/sys/module/nvidia/version")
    driver = f"driver {driver.read_text().strip()}, " if driver.is_file() else ""
    return f"{device} ({about.name}, {memory}, {driver}CUDA {torch.version.cuda})"


def available_cores() -> int:
    """Return the number of CPU cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def select_device(name: str) -> torch.device:
    """Return the device of this process, after running a kernel on it.

    `name` is `auto`, `cpu`, `cuda` or `cuda:N`. Under torchrun, `auto` and `cuda` select the GPU of
    the local rank. Raises `UserError` if there is no such device, or it does not work.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() or Path("/dev/nvidia0").exists() else "cpu"
    kind = name.partition(":")[0]
    if kind not in ("cpu", "cuda"):
        raise UserError(f"--device {name}: expected cpu, cuda or cuda:N")
    if name != kind and int(os.environ.get("LOCAL_WORLD_SIZE", 1)) > 1:
        raise UserError(f"--device {name}: several processes would share it; use --device {kind}")
    try:
        device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", 0)))
        device = device if name == "cuda" else torch.device(name)
        if device.type == "cuda":
            torch.cuda.set_device(device)
        (torch.ones(1, device=device) + 1).item()  # a kernel: allocating alone is not enough
    except (RuntimeError, AssertionError) as error:
        raise UserError(
            f"--device {name} can't be used ({one_line(error, 200)}); PyTorch finds "
            f"{plural(torch.cuda.device_count(), 'GPU')}: install a driver for torch "
            f"{torch.__version__}, start at most one process per GPU, or use --device cpu"
        ) from error
    return device


@contextlib.contextmanager
def process_group(device_name: str) -> Iterator[torch.device]:
    """Select the device, which is yielded, and under torchrun initialize the process group.

    The group is not destroyed, because that waits for processes that may have failed: end the
    process with `run_script`.
    """
    # Tries all algorithms for each new shape: that of full batches and of a partial last one.
    torch.backends.cudnn.benchmark = True
    if "RANK" not in os.environ or "WORLD_SIZE" not in os.environ:
        name = "SLURM_NTASKS" if "SLURM_PROCID" in os.environ else "OMPI_COMM_WORLD_SIZE"
        if (tasks := os.environ.get(name, "1")) != "1":
            raise UserError(f"{name} is {tasks}: start one task per node, which runs torchrun")
        yield select_device(device_name)
        return
    device = select_device(device_name)
    gpu = device if device.type == "cuda" else None
    try:
        store, own, count = next(dist.rendezvous("env://"))
        store, backend = fresh_store(store, own, count), "nccl" if gpu else "gloo"
        dist.init_process_group(backend, store=store, rank=own, world_size=count, device_id=gpu)
    except (ValueError, KeyError, dist.DistNetworkError) as error:
        advice = "start with torchrun, or unset them"
        if isinstance(error, dist.DistNetworkError):
            advice = "free the port in MASTER_PORT, or look for the error of another process above"
        problem = f"but no process group starts ({one_line(error, 150)})"
        raise UserError(f"RANK and WORLD_SIZE are set, {problem}; {advice}") from error
    yield device
    dist.barrier()  # no process leaves another one in its work


def fresh_store(store: dist.Store, rank: int, world_size: int) -> dist.Store:
    """Return a view of torchrun's store that no earlier start of the processes has used.

    torchrun keeps its store, and the addresses of exited processes in it, when it restarts them
    (PyTorch 2.14). So rank 0 chooses a prefix and tells it each process, under a token of its own.
    """
    token = prefix = uuid.uuid4().hex
    if rank > 0:
        store.set(f"token {rank}", token)
        prefix = store.get(f"prefix for {token}").decode()  # waits until it is set
        store.add(f"{prefix} received", 1)
    while rank == 0 and store.add(f"{prefix} received", 0) < world_size - 1:
        for key in [f"token {other}" for other in range(1, world_size)]:
            if store.check([key]):  # its value may be of a process that has exited
                store.set(f"prefix for {store.get(key).decode()}", prefix)
        time.sleep(0.05)
    return dist.PrefixStore(prefix, store)


def rank() -> int:
    return dist.get_rank() if dist.is_initialized() else 0


def world_size() -> int:
    return dist.get_world_size() if dist.is_initialized() else 1


def barrier() -> None:
    """Wait until all processes have reached this call."""
    if dist.is_initialized():
        dist.barrier()


@contextlib.contextmanager
def first_on_node() -> Iterator[bool]:
    """Run the block in the first process of each node, then in the others.

    Yields whether this process is the first, which may download or build what the others find.
    """
    first = int(os.environ.get("LOCAL_RANK", rank())) == 0
    group = None
    if dist.is_initialized():  # a group of its own, because the work may take hours
        group = dist.new_group(backend="gloo", timeout=timedelta(days=1))
    if group and not first:
        dist.barrier(group)
    yield first
    if group and first:
        dist.barrier(group)


def print_once(text: str) -> None:
    """Print a line on rank 0 only. Output that can't be written is lost: it never ends a run."""
    if rank() == 0:
        try:
            print(text, flush=True)
        except OSError:  # the reader of a pipe has ended, or the disk is full
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def gather(value: object) -> list:
    """Return the values of all processes, which can be pickled, in the order of their ranks."""
    values = [value] * world_size()
    if dist.is_initialized():
        dist.all_gather_object(values, value)
    return values


def shard(count: int) -> slice:
    """Return this process's contiguous part of `count` images; part sizes differ by at most 1.

    If there are fewer images than processes, it is a `UserError`.
    """
    if count < world_size():
        problem = f"{plural(count, 'image')} for {world_size()} processes"
        raise UserError(f"{problem}; use fewer processes, or a larger -b if it is a batch")
    each, left = divmod(count, world_size())
    start = rank() * each + min(rank(), left)
    return slice(start, start + each + (rank() < left))


def steps_per_epoch(images: int, batch_size: int) -> int:
    """Return the number of batches, without a last one that has not an image for each process."""
    shard(min(images, batch_size))  # checks that there are enough
    steps, left = -(-images // batch_size), images % batch_size
    if 0 < left < world_size():
        steps -= 1
        print_once(f"the last {plural(left, 'image')} of an epoch are left out")
    return steps


def broadcast_buffers(model: nn.Module) -> None:
    """Copy the buffers (batch-norm running statistics) of rank 0 to all processes."""
    if dist.is_initialized():
        for buffer in model.buffers():
            dist.broadcast(buffer, 0)


def wrap_ddp(model: nn.Module, device: torch.device) -> nn.Module:
    """Wrap the model in DistributedDataParallel if there is a process group.

    After its first backward pass, DistributedDataParallel puts the gradients into other buckets, in
    which three or more processes add them in another order. So that the first step of a resumed run
    rounds like that of an uninterrupted one, that pass is run here, and its gradients are dropped.
    In evaluation mode, it changes no running statistics and draws no random numbers.
    """
    if not dist.is_initialized():
        return model
    with warnings.catch_warnings(action="ignore", category=FutureWarning):  # of an option's name
        parallel = nn.parallel.DistributedDataParallel(
            model,
            device_ids=[device.index] if device.type == "cuda" else None,
            broadcast_buffers=False,  # each process keeps its own; those of rank 0 are saved
            gradient_as_bucket_view=True,
        )
    parallel.eval()
    sum(logits.sum() for logits in parallel(torch.zeros(1, 3, 64, 64, device=device))).backward()
    parallel.zero_grad(set_to_none=True)
    return parallel.train()
