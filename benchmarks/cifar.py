"""Compare wrn_DKS/ with the released configuration, side by side on this machine.

    python benchmarks/cifar.py                                  all rows except the slow ones
    python benchmarks/cifar.py --row wrn-28-10 --json speed.json
    python benchmarks/cifar.py --row folder --dataroot PATH     epochs on a folder of images

`released / ours` is the time of the released configuration divided by ours: the median over pairs
of runs, the lowest and the highest.
"""

import argparse
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path

# The repository's folder, and the script folder that is measured.
sys.path.insert(0, str(Path(__file__).parents[1]))
sys.path.insert(0, str(Path(__file__).parents[1] / "wrn_DKS"))

from benchmarks import cifar_epochs as epochs
from benchmarks import cifar_parts as parts
from benchmarks.runner import build_parser, run_benchmarks
from common.command_line import UserError, exit_status

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
    """Run the command line and return the exit status."""
    return exit_status(lambda: benchmark(parse(argv)))


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = build_parser("benchmarks/cifar.py", ROWS)
    parser.add_argument("--dataroot", type=Path, help="folder of images, for --row folder")
    options = parser.parse_args(argv)
    options.row = options.row or [name for name in ROWS if name not in ON_REQUEST]
    if "folder" in options.row and not options.dataroot:
        raise UserError("--row folder needs --dataroot, a folder with train/ and test/ or val/")
    return options


def benchmark(options: argparse.Namespace) -> None:
    run_benchmarks([ROWS[name] for name in options.row], options, options.dataroot)


if __name__ == "__main__":
    sys.exit(main())
