"""How a training step uses its machine: fraction of the peak rate, time by kind, memory."""

import multiprocessing
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path
from statistics import median

import torch
from torch import nn
from torch.autograd import DeviceType
from torch.autograd.profiler_util import FunctionEventAvg
from torch.profiler import ProfilerActivity, profile
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.timing import Row, Work, compare, timed

MakeStep = Callable[[], tuple[nn.Module, Work]]  # returns a network and a step that trains it


def step_row(
    what: str,
    dtype: str,
    sides: tuple[MakeStep, MakeStep],
    operations: int,
    rounds: int,
    device: torch.device,
) -> Row:
    """Compare our training step with the released one, and profile ours.

    Args:
        sides: ours and the released one. They must be picklable, module-level functions or
            `partial`s of them, because memory is measured in separate processes.
        operations: of a step, as counted by `step_operations`.
    """
    (_, ours), (_, released) = (make() for make in sides)
    ours_s, released_s = compare(ours, released, rounds, device)
    rate, peak = operations / median(ours_s), peak_rate(getattr(torch, dtype), device)
    shares = {"peak": rate / peak, **time_by_kind(ours, device)}
    del ours, released
    memory = [peak_memory(make, device) for make in sides]
    remarks = f"peak {peak / 1e9:,.0f} Gop/s"
    if None not in memory:
        remarks += f"; memory {memory[0] / memory[1]:.2f} of the released code's"
    return Row(what, dtype, ours_s, released_s, remarks, shares)


def peak_rate(dtype: torch.dtype, device: torch.device) -> float:
    """Return the operations per second of the fastest of several square matrix products."""
    rates, before = [], torch.get_float32_matmul_precision()
    if device.type == "cuda":
        torch.set_float32_matmul_precision("high")  # TF32, the default of convolutions
    for size in (8192, 16384) if device.type == "cuda" else (1024, 2048, 4096):
        a, b = torch.randn(2, size, size, device=device, dtype=dtype)
        torch.mm(a, b)
        rates += [2 * size**3 / timed(lambda a=a, b=b: torch.mm(a, b), device) for _ in range(3)]
    torch.set_float32_matmul_precision(before)
    return max(rates)


def step_operations(build: Callable[[], nn.Module], images: tuple[int, ...]) -> int:
    """Count the operations of convolutions and matrix products, forward and backward.

    A multiply-add is two operations. The network is built on the meta device, which takes neither
    memory nor time.

    Args:
        build: returns a network that returns a tuple of logits.
        images: shape of a batch, (B, 3, H, W).
    """
    counter = FlopCounterMode(display=False)
    with torch.device("meta"), counter:
        sum(each.sum() for each in build().train()(torch.empty(images))).backward()
    return counter.get_total_flops()


KINDS = {  # substrings of the names of PyTorch's operators
    "convolutions": ("aten::mkldnn_convolution", "aten::convolution", "aten::cudnn_convolution"),
    "normalization": ("batch_norm",),
}


def time_by_kind(step: Work, device: torch.device) -> dict[str, float]:
    """Return the shares of a step's time that kinds of operators take, by PyTorch's profiler.

    `optimizer` is everything inside its step. `other` is activations, additions, copies, the loss,
    the linear layers and the time between operators.
    """
    activities = [ProfilerActivity.CPU]
    on_gpu = device.type == "cuda"
    if on_gpu:
        activities.append(ProfilerActivity.CUDA)
    with profile(activities=activities) as profiled:
        timed(step, device)
    return shares_by_kind(profiled.key_averages(), on_gpu)


def shares_by_kind(events: Iterable[FunctionEventAvg], on_gpu: bool) -> dict[str, float]:
    """Return the shares from the profiler's events.

    On a GPU, the total is the time of the kernels, which are events of their own. Operators also
    carry the time of the kernels they launched; the kinds are taken from operators.
    """
    times = dict.fromkeys([*KINDS, "optimizer"], 0.0)
    total = 0.0
    for event in events:
        own = event.self_device_time_total if on_gpu else event.self_cpu_time_total
        is_operator = event.device_type == DeviceType.CPU
        if is_operator != on_gpu and (is_operator or not event.is_user_annotation):
            total += own
        if not is_operator:
            continue
        if event.key.startswith("Optimizer.step"):
            times["optimizer"] += event.device_time_total if on_gpu else event.cpu_time_total
        for kind, names in KINDS.items():
            if any(name in event.key for name in names):
                times[kind] += own
    shares = {kind: value / total for kind, value in times.items()}
    return shares | {"other": 1 - sum(shares.values())}


def peak_memory(make: MakeStep, device: torch.device) -> int | None:
    """Return the peak memory in bytes of two steps, without weights, gradients and momentum.

    Measured in a separate process: resident memory, or what PyTorch allocates on a GPU.

    Args:
        make: picklable: a module-level function or a `partial` of one.

    Returns:
        None if the system does not report memory.
    """
    if device.type != "cuda" and peak_resident() is None:
        return None
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(measure_memory, (make, device, torch.get_num_threads()))


def measure_memory(make: MakeStep, device: torch.device, threads: int) -> int:
    """Measure in this process what `peak_memory` returns."""
    torch.set_num_threads(threads)
    on_gpu = device.type == "cuda"
    peak = partial(torch.cuda.max_memory_allocated, device) if on_gpu else peak_resident
    before = peak()  # ahead of everything that a side allocates: ours makes its momentum at once
    model, step = make()
    for _ in range(2):
        step()
    weights = sum(p.numel() * p.element_size() for p in model.parameters())
    return peak() - before - 3 * weights  # themselves, gradients and momentum


def peak_resident() -> int | None:
    """Return the peak resident memory of this process in bytes; None if this is not Linux."""
    status = Path("/proc/self/status")
    if not status.exists():
        return None
    line = next(line for line in status.read_text().splitlines() if line.startswith("VmHWM"))
    return int(line.split()[1]) * 1024
