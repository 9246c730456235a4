"""Time two sides in turns; print ratios and their range as Markdown, write times as JSON."""

import json
import os
import platform
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from statistics import median

import torch

Work = Callable[[], object]


@dataclass(frozen=True)
class Row:
    """One comparison of this code with the released one, which always computes in float32."""

    what: str
    dtype: str  # of our side
    ours_s: list[float]
    released_s: list[float]
    remarks: str = ""
    shares: Mapping[str, float] = field(default_factory=dict)  # of the training step, from 0 to 1

    @property
    def ratios(self) -> list[float]:
        """Time of the released code divided by ours for each pair, sorted."""
        return sorted(b / a for a, b in zip(self.ours_s, self.released_s, strict=True))


def compare(
    ours: Work,
    released: Work,
    rounds: int,
    device: torch.device,
    clock: Callable[[], float] = time.perf_counter,
) -> tuple[list[float], list[float]]:
    """Return the seconds of each side per round, after a warm-up; sides take turns going first."""
    seconds: dict[Work, list[float]] = {ours: [], released: []}
    ours(), released()
    for index in range(rounds):
        for side in (released, ours) if index % 2 else (ours, released):
            seconds[side].append(timed(side, device, clock))
    return seconds[ours], seconds[released]


def timed(
    work: Work, device: torch.device, clock: Callable[[], float] = time.perf_counter
) -> float:
    """Return the seconds that one call takes, including the work it starts on the device."""
    wait = partial(torch.cuda.synchronize, device) if device.type == "cuda" else lambda: None
    wait()
    start = clock()
    work()
    wait()
    return clock() - start


def show(rows: Iterable[Row], device: torch.device, json_file: Path | None) -> None:
    """Print the rows as they arrive, then the shares of training steps; write the JSON file."""
    done = []
    print(
        f"{machine(device)}\n\n| what | dtype | released / ours | pairs | |\n|---|---|---|---|---|"
    )
    for row in rows:
        done.append(row)
        low, middle, high = row.ratios[0], median(row.ratios), row.ratios[-1]
        cells = (row.what, row.dtype, f"{middle:.2f} ({low:.2f}–{high:.2f})", len(row.ratios))
        print(f"| {' | '.join(map(str, cells))} | {row.remarks} |", flush=True)
        if json_file:
            write(json_file, done, device)
    steps = [row for row in done if row.shares]
    if steps:
        names = list(steps[0].shares)
        print(f"\n| shares | dtype | {' | '.join(names)} |\n{'|---' * (2 + len(names))}|")
    for row in steps:
        cells = " | ".join(f"{100 * value:.1f} %" for value in row.shares.values())
        print(f"| {row.what} | {row.dtype} | {cells} |")


def write(path: Path, rows: Iterable[Row], device: torch.device) -> None:
    records = [
        {
            "what": row.what,
            "dtype": row.dtype,
            "ratio": median(row.ratios),
            "ours_s": row.ours_s,
            "released_s": row.released_s,
            "remarks": row.remarks,
            "shares": dict(row.shares),
        }
        for row in rows
    ]
    path.write_text(json.dumps({"machine": machine(device), "rows": records}, indent=1) + "\n")


def machine(device: torch.device) -> str:
    """Return one line about the machine."""
    versions = f"PyTorch {torch.__version__}, Python {platform.python_version()}"
    if device.type == "cuda":
        return f"{torch.cuda.get_device_name(device)}, {versions}"
    return (
        f"{cpu_name()} ({torch.backends.cpu.get_cpu_capability()}), {torch.get_num_threads()} "
        f"threads on {os.cpu_count()} cores, {versions}"
    )


def cpu_name() -> str:
    """Return the CPU's name on Linux, else the architecture."""
    info = Path("/proc/cpuinfo").read_text() if Path("/proc/cpuinfo").exists() else ""
    names = [line.partition(":")[2] for line in info.splitlines() if line.startswith("model name")]
    return names[0].strip() if names else platform.machine()
