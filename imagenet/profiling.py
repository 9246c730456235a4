"""What a training step makes of its machine: share of the peak, where time goes, memory."""

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

from command_line import DTYPES
from timing import Row, Work, compare, timed

Make = Callable[[], tuple[nn.Module, Work]]  # gives a network and a step that trains it


def step_row(
    what: str,
    dtype: str,
    sides: tuple[Make, Make],
    operations: int,
    rounds: int,
    device: torch.device,
) -> Row:
    """Compare two training steps, ours and the opponent's, and say what ours makes of the machine.

    Args:
        sides: functions of a module's top level, or `partial`s of them: memory is measured in
            processes of its own.
        operations: of a step, as `step_operations` counts them.
    """
    (_, ours), (_, theirs) = (make() for make in sides)
    ours_s, theirs_s = compare(ours, theirs, rounds, device)
    rate, peak = operations / median(ours_s), peak_rate(DTYPES[dtype], device)
    shares = {"peak": rate / peak, **time_by_kind(ours, device)}
    del ours, theirs
    memory = [peak_memory(make, device) for make in sides]
    remark = f"peak {peak / 1e9:,.0f} Gop/s"
    if None not in memory:
        remark += f"; memory {memory[0] / memory[1]:.2f} of the released's"
    return Row(what, dtype, ours_s, theirs_s, remark, shares)


def peak_rate(dtype: torch.dtype, device: torch.device) -> float:
    """Operations a second of the fastest matrix product: of square ones of several sizes."""
    rates, before = [], torch.get_float32_matmul_precision()
    if device.type == "cuda":
        torch.set_float32_matmul_precision("high")  # TF32, as its convolutions have by default
    for size in (8192, 16384) if device.type == "cuda" else (1024, 2048, 4096):
        a, b = torch.randn(2, size, size, device=device, dtype=dtype)
        torch.mm(a, b)
        rates += [2 * size**3 / timed(lambda a=a, b=b: torch.mm(a, b), device) for _ in range(3)]
    torch.set_float32_matmul_precision(before)
    return max(rates)


def step_operations(build: Callable[[], nn.Module], images: tuple[int, ...]) -> int:
    """Operations of convolutions and matrix products, forward and backward, two a multiply-add.

    Counted on the meta device, so that it takes neither memory nor time.

    Args:
        build: makes a network that returns a tuple of logits.
        images: shape of a batch, (B, 3, H, W).
    """
    counter = FlopCounterMode(display=False)
    with torch.device("meta"), counter:
        sum(each.sum() for each in build().train()(torch.empty(images))).backward()
    return counter.get_total_flops()


KINDS = {  # parts of the names of PyTorch's operators
    "convolutions": ("aten::mkldnn_convolution", "aten::convolution", "aten::cudnn_convolution"),
    "normalisation": ("batch_norm",),
}


def time_by_kind(step: Work, device: torch.device) -> dict[str, float]:
    """The shares of a training step's time, by PyTorch's profiler, that kinds of operators take.

    `optimizer` is all inside its step; `other` are activations, additions, copies, the loss, the
    last layers and the time between operators.
    """
    activities = [ProfilerActivity.CPU]
    on_gpu = device.type == "cuda"
    if on_gpu:
        activities.append(ProfilerActivity.CUDA)
    with profile(activities=activities) as profiled:
        timed(step, device)
    return shares_by_kind(profiled.key_averages(), on_gpu)


def shares_by_kind(events: Iterable[FunctionEventAvg], on_gpu: bool) -> dict[str, float]:
    """The same from the profiler's events.

    A GPU's kernels are events of their own, which make up the whole. Their time stands with the
    operators that started them too, from which the kinds are taken.
    """
    times = dict.fromkeys([*KINDS, "optimizer"], 0.0)
    whole = 0.0
    for event in events:
        own = event.self_device_time_total if on_gpu else event.self_cpu_time_total
        is_operator = event.device_type == DeviceType.CPU
        if is_operator != on_gpu and (is_operator or not event.is_user_annotation):
            whole += own
        if not is_operator:
            continue
        if event.key.startswith("Optimizer.step"):
            times["optimizer"] += event.device_time_total if on_gpu else event.cpu_time_total
        for kind, names in KINDS.items():
            if any(name in event.key for name in names):
                times[kind] += own
    shares = {kind: value / whole for kind, value in times.items()}
    return shares | {"other": 1 - sum(shares.values())}


def peak_memory(make: Make, device: torch.device) -> int | None:
    """Bytes that two steps take at most, above weights, gradients and momentum.

    Measured in a process of its own: resident memory, or what PyTorch allocates on a GPU.

    Args:
        make: a function of a module's top level, or a `partial` of one: it goes to that process.

    Returns:
        None where the system doesn't tell.
    """
    if device.type != "cuda" and peak_resident() is None:
        return None
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(measure_memory, (make, device, torch.get_num_threads()))


def measure_memory(make: Make, device: torch.device, threads: int) -> int:
    torch.set_num_threads(threads)
    model, step = make()
    on_gpu = device.type == "cuda"
    peak = partial(torch.cuda.max_memory_allocated, device) if on_gpu else peak_resident
    before = peak()
    for _ in range(2):
        step()
    weights = sum(p.numel() * p.element_size() for p in model.parameters())
    return peak() - before - 2 * weights  # as large as gradients, as momentum


def peak_resident() -> int | None:
    """The most memory, in bytes, that this process has had resident; None where Linux isn't."""
    status = Path("/proc/self/status")
    if not status.exists():
        return None
    line = next(line for line in status.read_text().splitlines() if line.startswith("VmHWM"))
    return int(line.split()[1]) * 1024
