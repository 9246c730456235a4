"""The released configuration, and a table that compares its speed with this code's.

The released configuration is eager, in float32 and NCHW, has a loss of two nested loops, and reads
it back at every step.
"""

import argparse
import io
import time
from collections.abc import Callable, Sequence
from contextlib import redirect_stdout
from functools import partial
from pathlib import Path
from statistics import median
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from common.command_line import one_line
from common.distributed import describe_device, select_device
from common.engine import Trainer
from common.evaluation import Batch
from common.logs import peak_memory_mib

Work = Callable[[], object]


class Setup(NamedTuple):
    """Where and how the rows of the table are measured."""

    device: torch.device
    rounds: int  # pairs of runs per row
    data: Path


def main(rows: dict[str, Callable[[Setup], None]]) -> None:
    """Print the rows that the command line names, by default all. Each calls `compare`."""
    parser = argparse.ArgumentParser(description="Compare with the released configuration.")
    parser.add_argument("--row", nargs="+", choices=rows, default=rows, help="only these rows")
    parser.add_argument("--rounds", type=int, default=5, help="pairs of runs per row (default: 5)")
    parser.add_argument("--device", default="auto", help="cpu, cuda or cuda:N")
    parser.add_argument("--data", type=Path, default=".", help="folder with val/, for imagenet.py")
    options = parser.parse_args()
    torch.backends.cudnn.benchmark = True  # as in main.py
    setup = Setup(select_device(options.device), options.rounds, options.data)
    print(f"{describe_device(setup.device)}, PyTorch {torch.__version__}\n")
    print("| what | images/s | released | released / ours |\n|---|---|---|---|")
    for name in rows:
        if name in options.row:
            rows[name](setup)


def compare(what: str, images: int, ours: Work, released: Work, setup: Setup) -> None:
    """Time two sides, which take turns going first, after a warm-up; print a row of the table.

    `released / ours` is the time of the released configuration, or another reference, divided by
    ours: the median over pairs of runs, the lowest and the highest.
    """
    seconds: dict[Work, list[float]] = {ours: [], released: []}
    ours(), released()
    for index in range(setup.rounds):
        for side in (released, ours) if index % 2 else (ours, released):
            seconds[side].append(timed(side, setup.device))
    rates = [f"{images / median(each):,.0f}" for each in seconds.values()]
    ratios = sorted(a / b for a, b in zip(seconds[released], seconds[ours], strict=True))
    ratio = f"{median(ratios):.2f} ({ratios[0]:.2f}–{ratios[-1]:.2f})"
    print(f"| {' | '.join((what, *rates, ratio))} |", flush=True)


def timed(work: Work, device: torch.device) -> float:
    """Return the seconds that one call takes, including the work it starts on the device."""
    wait = partial(torch.cuda.synchronize, device) if device.type == "cuda" else lambda: None
    wait()
    start = time.perf_counter()
    work()
    wait()
    return time.perf_counter() - start


def step_costs(step: Work, device: torch.device) -> dict[str, float]:
    """Time steps after a warm-up: on a GPU for a second, on a CPU one.

    Return the `ms` of a step, the `host_ms` after which the host goes on, the fraction of time that
    the device is `busy` by a profile, and the peak memory in `gib`, on a CPU that of the process.
    """
    is_gpu = device.type == "cuda"
    for _ in range(5 if is_gpu else 1):
        step()
    count = int(is_gpu / timed(step, device)) + 1
    if is_gpu:
        torch.cuda.reset_peak_memory_stats()
    ms = 1000 * timed(lambda: [step() for _ in range(count)], device) / count
    host: list[float] = []
    for _ in range(3):  # one at a time: a full queue would make the host wait
        timed(lambda: host.append(timed(step, torch.device("cpu"))), device)
    gib = peak_memory_mib(device) / 1024  # without that of the profiler
    with torch.profiler.profile() as profiler:
        timed(step, device)
    kind = f"self_{'device' if is_gpu else 'cpu'}_time_total"  # microseconds
    busy = sum(getattr(each, kind) for each in profiler.key_averages()) / 1000 / ms
    return {"ms": ms, "host_ms": 1000 * min(host), "gib": gib, "busy": busy}


def training_steps(make_run: Callable[..., tuple], name: str, words: str, setup: Setup) -> None:
    """Compare training steps in two dtypes; the released code uses float32.

    `make_run` is that of `cifar.py` or `imagenet.py`, and `words` are options for it.
    """
    for dtype in ("float32", "bfloat16"):
        with redirect_stdout(io.StringIO()):  # what the network costs
            trainer, batches = make_run(f"{words} --dtype {dtype}", setup.device, 1)
            released = released_step(make_run(words, setup.device, 1)[0])
        batch = next(batches)
        sides = partial(trainer.train_step, batch), partial(released, batch)
        compare(f"training step, {name}, {dtype}", batch.total, *sides, setup)


def released_step(trainer: Trainer) -> Callable[[Batch], float]:
    """Return a function that trains the network of a trainer one step in the released way."""
    model = trainer.model.to(memory_format=torch.contiguous_format)
    trainer.optimizer.state.clear()  # frees memory, which is measured
    optimizer = torch.optim.SGD(model.parameters(), 0.01, 0.9, weight_decay=1e-4)

    def step(batch: Batch) -> float:
        loss = released_loss(model(batch.images.contiguous()), batch.labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        return loss.item()

    return step


def released_loss(logits: Sequence[Tensor], labels: Tensor) -> Tensor:
    """Sum the cross-entropy of each classifier and the divergence of each ordered pair."""
    total = sum(F.cross_entropy(each, labels) for each in logits)
    for i, student in enumerate(logits):
        for j, teacher in enumerate(logits):
            if i != j:
                p = F.softmax(teacher, dim=1).detach() + 1e-8
                q = F.softmax(student, dim=1) + 1e-8
                total = total + (p * (p.log() - q.log())).sum() / len(labels)
    return total


def random_images(count: int, side: int) -> Tensor:
    """Return smooth images, (count, 3, side, side) uint8, the same ones in each call."""
    coarse = torch.rand(count, 3, 4, 4, generator=torch.Generator().manual_seed(1))
    return (F.interpolate(coarse, (side, side), mode="bicubic").clamp(0, 1) * 255).byte()


class Check(NamedTuple):
    """What a check of `gpu.py` found."""

    name: str
    result: str
    limit: str = "–"
    passed: bool | None = None  # None: there is no limit, or this machine can't show it
    values: dict | list = []  # numbers, for the JSON file


def attempt(name: str, limit: str, work: Callable[..., tuple], *arguments: object) -> Check:
    """Return what `work` finds: the result, whether it passes, and values. An error fails."""
    try:
        result, passed, *values = work(*arguments)
    except Exception as error:
        return Check(name, f"{type(error).__name__}: {one_line(error, 200)}", limit, False)
    return Check(name, result, limit, passed, *values)
