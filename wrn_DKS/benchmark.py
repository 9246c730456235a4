"""Measure this code against the released configuration, side by side, on this machine.

    python benchmark.py                                  every row but those that take long
    python benchmark.py --row wrn-28-10 --json speed.json
    python benchmark.py --row folder --dataroot PATH     epochs over a folder of images

`released / ours` says how many times as long the released configuration takes: the median over
pairs of runs, the lowest and the highest.
"""

import argparse
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import torch

import benchmark_epochs as epochs
import benchmark_parts as parts
from command_line import Parser, Refused, exit_status, number, require_file_name
from distributed import choose_device
from timing import show

ROWS = {
    "wrn-28-10": partial(parts.training_step, 28, 10, 32),
    "wrn-16-2": partial(parts.training_step, 16, 2, 128),
    "digits": epochs.digits,
    "folder": epochs.folder,
    "data": parts.data,
    "loss": parts.loss,
    "inference": parts.inference,
    "wrn-28-10-batch-128": partial(parts.training_step, 28, 10, 128),
}
ON_REQUEST = ("folder", "wrn-28-10-batch-128")


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit status."""
    return exit_status(lambda: benchmark(parse(argv)))


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = Parser(prog="benchmark.py", description="Measure this code against the released one.")
    parser.add_argument(
        "--row", choices=ROWS, action="append", help="measure only this; may be repeated"
    )
    parser.add_argument("--rounds", type=number(int, 1), default=5, help="pairs of runs for a row")
    parser.add_argument("--dataroot", type=Path, help="folder of images, for --row folder")
    parser.add_argument("--device", default="auto", help="cpu, cuda, cuda:N; auto: a GPU if any")
    parser.add_argument("--json", type=Path, help="file to write every time to that was taken")
    options = parser.parse_args(argv)
    if options.json:
        require_file_name("--json", options.json)
    if "folder" in (options.row or ()) and not options.dataroot:
        raise Refused("--row folder needs --dataroot, a folder with train/ and test/ or val/")
    return options


def benchmark(options: argparse.Namespace) -> None:
    """Measure the rows that were asked for and print them."""
    place = parts.Place(choose_device(options.device), options.rounds, options.dataroot)
    torch.backends.cudnn.benchmark = True  # as main.py does
    names = options.row or [name for name in ROWS if name not in ON_REQUEST]
    show((row for name in names for row in ROWS[name](place)), place.device, options.json)


if __name__ == "__main__":
    sys.exit(main())
