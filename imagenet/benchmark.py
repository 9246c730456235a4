"""Measure this code against the released configuration, side by side, on this machine.

    python benchmark.py IMAGENET          every row; IMAGENET contains val/<WordNet id>/
    python benchmark.py --row resnet18    a training step, which needs no images
    python benchmark.py --json speed.json IMAGENET

`released / ours` says how many times as long the released configuration takes: the median over
pairs of runs, the lowest and the highest. The networks have random weights.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import torch

import benchmark_parts as parts
from command_line import Parser, Refused, exit_status, number, require_file_name
from distributed import choose_device
from timing import show

ROWS = {
    "evaluation": parts.evaluation,
    "resnet18": parts.training_step,
    "inference": parts.inference,
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit status."""
    return exit_status(lambda: benchmark(parse(argv)))


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = Parser(prog="benchmark.py", description="Measure this code against the released one.")
    parser.add_argument("data", nargs="?", type=Path, metavar="IMAGENET", help="contains val/")
    parser.add_argument(
        "--row", choices=ROWS, action="append", help="measure only this; may be repeated"
    )
    parser.add_argument("--rounds", type=number(int, 1), default=5, help="pairs of runs for a row")
    parser.add_argument("--device", default="auto", help="cpu, cuda, cuda:N; auto: a GPU if any")
    parser.add_argument("--json", type=Path, help="file to write every time to that was taken")
    options = parser.parse_args(argv)
    if options.json:
        require_file_name("--json", options.json)
    if options.data is None and "evaluation" in (options.row or ["evaluation"]):
        raise Refused("the row `evaluation` needs IMAGENET, a folder that contains val/")
    return options


def benchmark(options: argparse.Namespace) -> None:
    """Measure the rows that were asked for and print them."""
    place = parts.Place(choose_device(options.device), options.rounds, options.data)
    torch.backends.cudnn.benchmark = True
    names = options.row or ROWS
    show((row for name in names for row in ROWS[name](place)), place.device, options.json)


if __name__ == "__main__":
    sys.exit(main())
