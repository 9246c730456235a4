"""Command line and main loop that both benchmark scripts share."""

import argparse
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch

from benchmarks.timing import Row, show
from common.command_line import ArgumentParser, bounded_number, require_writable_file
from common.distributed import select_device

MEASURED_DTYPES = ("float32", "bfloat16")  # of this code; the released code uses float32
RELEASED_WORKERS = 4  # the released code's default


@dataclass(frozen=True)
class BenchmarkSetup:
    """Where and how the rows are measured."""

    device: torch.device
    rounds: int  # pairs of runs per row
    data: Path | None = None  # folder of images, for the rows that need one
    workers: int = min(RELEASED_WORKERS, os.cpu_count())  # processes that load images


Benchmark = Callable[[BenchmarkSetup], Iterator[Row]]


def build_parser(prog: str, benchmarks: Mapping[str, Benchmark]) -> ArgumentParser:
    """Return a parser with the flags of both scripts."""
    parser = ArgumentParser(
        prog=prog, description="Compare this code with the released configuration."
    )
    parser.add_argument(
        "--row", choices=benchmarks, action="append", help="measure only this row; repeatable"
    )
    parser.add_argument(
        "--rounds", type=bounded_number(int, 1), default=5, help="pairs of runs per row"
    )
    parser.add_argument("--device", default="auto", help="cpu, cuda or cuda:N; auto: a GPU if any")
    parser.add_argument("--json", type=Path, help="file for all measured times")
    return parser


def run_benchmarks(
    benchmarks: Iterable[Benchmark], options: argparse.Namespace, data: Path | None
) -> None:
    """Measure and print the rows.

    Args:
        benchmarks: of the rows, in order.
        options: parsed by `build_parser`.
        data: folder of images.

    Raises:
        UserError: the device is not available, or --json cannot be written.
    """
    if options.json:
        require_writable_file("--json", options.json)
    setup = BenchmarkSetup(select_device(options.device), options.rounds, data)
    torch.backends.cudnn.benchmark = True  # as in main.py
    rows = (row for benchmark in benchmarks for row in benchmark(setup))
    show(rows, setup.device, options.json)
