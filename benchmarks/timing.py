"""Time two sides in turns, and print the ratios of their times as Markdown."""

import os
import platform
import shutil
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from statistics import median
from typing import NamedTuple

import torch

from common.command_line import UserError, build_parser, choice, number, one_line
from common.distributed import available_cores, describe_device, select_device
from common.options import run_flag

DTYPES = ("float32", "bfloat16")  # of this code; the released code uses float32
Work = Callable[[], object]
Clock = Callable[[], float]


@dataclass(frozen=True)
class Row:
    """One comparison of this code with the released one, or another reference."""

    what: str
    dtype: str  # of our side
    ours_s: list[float]
    released_s: list[float]
    remarks: str = ""


class Check(NamedTuple):
    """What a check of `gpu.py` found."""

    name: str
    result: str
    limit: str = "–"
    passed: bool | None = None  # None: there is no limit, or this machine can't show it
    values: dict | list = []  # numbers, for the JSON file


def attempt(name: str, limit: str, work: Callable[[], tuple]) -> Check:
    """Return what `work` finds: the result, whether it passes, and values. An error fails."""
    try:
        result, passed, *values = work()
    except Exception as error:
        return Check(name, f"{type(error).__name__}: {one_line(error, 200)}", limit, False)
    return Check(name, result, limit, passed, *values)


@dataclass(frozen=True)
class Setup:
    """Where and how the rows are measured."""

    device: torch.device
    rounds: int  # pairs of runs per row
    data: Path | None = None  # folder of images

    @property
    def workers(self) -> int:
        """The processes that load images: the released code's default, with a core for each."""
        return min(4, os.cpu_count())


Benchmark = Callable[[Setup], Iterator[Row]]


def main(
    script: str,
    rows: dict[str, Benchmark],
    need_data: Sequence[str],
    argv: Sequence[str] | None = None,
) -> None:
    """Measure and print the rows that the command line names, by default all that can be.

    Args:
        script: name of the script.
        rows: by name, in order.
        need_data: names of rows that need a folder of images.
        argv: the command line; None: that of the process.
    """

    @dataclass(frozen=True)
    class Options:
        row: Sequence[str] = run_flag(
            (), choice(*rows), "only these rows: " + ", ".join(rows), nargs="+"
        )
        rounds: int = run_flag(5, number(int, 1), "pairs of runs per row")
        device: str = run_flag("auto", str, "cpu, cuda or cuda:N", metavar="DEVICE")
        data: Path | None = run_flag(None, Path, "folder of images: " + ", ".join(need_data))

    parser = build_parser(Options, script, "Compare this code with the released configuration.")
    options = Options(**parser.parse_given(argv))
    chosen = options.row or [name for name in rows if options.data or name not in need_data]
    for name in set(need_data).intersection(chosen):
        if options.data is None:
            raise UserError(f"--row {name}: needs --data, a folder of images")
    torch.backends.cudnn.benchmark = True  # as in main.py
    setup = Setup(select_device(options.device), options.rounds, options.data)
    show((row for name in chosen for row in rows[name](setup)), setup.device)


def compare(
    ours: Work, released: Work, setup: Setup, clock: Clock = time.perf_counter, factor: int = 1
) -> tuple[list[float], list[float]]:
    """Return the seconds of each side per round, after a warm-up; sides take turns going first."""
    seconds: dict[Work, list[float]] = {ours: [], released: []}
    ours(), released()
    for index in range(setup.rounds * factor):
        for side in (released, ours) if index % 2 else (ours, released):
            seconds[side].append(timed(side, setup.device, clock))
    return seconds[ours], seconds[released]


def timed(work: Work, device: torch.device, clock: Clock = time.perf_counter) -> float:
    """Return the seconds that one call takes, including the work it starts on the device."""
    wait = partial(torch.cuda.synchronize, device) if device.type == "cuda" else lambda: None
    wait()
    start = clock()
    work()
    wait()
    return clock() - start


def show(rows: Iterable[Row], device: torch.device) -> None:
    """Print the rows as they arrive."""
    print(
        f"{machine(device)}\n\n| what | dtype | released / ours | pairs | |\n|---|---|---|---|---|"
    )
    for row in rows:
        pairs = zip(row.released_s, row.ours_s, strict=True)
        ratios = sorted(released / ours for released, ours in pairs)
        ratio = f"{median(ratios):.2f} ({ratios[0]:.2f}–{ratios[-1]:.2f})"
        cells = (row.what, row.dtype, ratio, len(ratios), row.remarks)
        print(f"| {' | '.join(map(str, cells))} |", flush=True)


def machine(device: torch.device) -> str:
    """Return one line about the machine."""
    versions = f"PyTorch {torch.__version__}, Python {platform.python_version()}"
    if device.type == "cuda":
        return f"{torch.cuda.get_device_name(device)}, {versions}"
    info = Path("/proc/cpuinfo").read_text() if Path("/proc/cpuinfo").exists() else ""
    lines = [line for line in info.splitlines() if line.startswith("model name")]
    name = lines[0].partition(":")[2].strip() if lines else platform.machine()
    threads = f"{torch.get_num_threads()} threads on {os.cpu_count()} cores"
    return f"{name} ({torch.backends.cpu.get_cpu_capability()}), {threads}, {versions}"


def facts(device: torch.device) -> Iterator[Check]:
    """Yield what one should know about the machine, and what would fail later."""
    cores, gpus = available_cores(), torch.cuda.device_count()
    versions = f"Python {platform.python_version()}, PyTorch {torch.__version__}"
    if device.type == "cuda":
        about = torch.cuda.get_device_properties(device)
        # Kernels of a smaller minor version run too.
        usable = {f"sm_{about.major}{minor}" for minor in range(about.minor + 1)}
        found = bool(usable.intersection(torch.cuda.get_arch_list()))
        name = f"{gpus} × {describe_device(device)}, capability {about.major}.{about.minor}"
        yield Check("GPU", name, "PyTorch has kernels", found)
        source = torch.empty(2**28, dtype=torch.uint8, pin_memory=True)
        copy = partial(source.to(device).copy_, source, non_blocking=True)
        seconds = min(timed(copy, device) for _ in range(5))
        yield Check("copies from pinned memory", f"{2**28 / 1e9 / seconds:.1f} GB/s")
        nccl = ".".join(map(str, torch.cuda.nccl.version()))
        versions += f", cuDNN {torch.backends.cudnn.version()}, NCCL {nccl}"
    yield Check("versions", versions)
    yield Check("CPU cores", f"{cores}, {cores / max(1, gpus):g} for each GPU")
    free = shutil.disk_usage("/dev/shm").free / 2**30
    yield Check("/dev/shm, for data-loading workers", f"{free:.1f} GiB free", "1 GiB", free >= 1)
    compiler = shutil.which(os.environ.get("CC", "gcc"))
    yield Check("C compiler, for --compile", compiler or "none", "one", compiler is not None)
