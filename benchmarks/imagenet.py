"""Compare imagenet/ with the released configuration, side by side on this machine.

    python benchmarks/imagenet.py IMAGENET          all rows; IMAGENET contains val/<WordNet id>/
    python benchmarks/imagenet.py --row resnet18    a training step, which needs no images
    python benchmarks/imagenet.py --json speed.json IMAGENET

`released / ours` is the time of the released configuration divided by ours: the median over pairs
of runs, the lowest and the highest. The networks have random weights.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

# The repository's folder, and the script folder that is measured.
sys.path.insert(0, str(Path(__file__).parents[1]))
sys.path.insert(0, str(Path(__file__).parents[1] / "imagenet"))

from benchmarks import imagenet_parts as parts
from benchmarks.imagenet_pipeline import pipeline
from benchmarks.runner import build_parser, run_benchmarks
from common.command_line import UserError, exit_status

ROWS = {
    "evaluation": parts.evaluation,
    "pipeline": pipeline,
    "resnet18": parts.training_step,
    "inference": parts.inference,
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line and return the exit status."""
    return exit_status(lambda: benchmark(parse(argv)))


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = build_parser("benchmarks/imagenet.py", ROWS)
    parser.add_argument("data", nargs="?", type=Path, metavar="IMAGENET", help="contains val/")
    options = parser.parse_args(argv)
    options.row = options.row or list(ROWS)
    needy = [name for name in ("evaluation", "pipeline") if name in options.row]
    if options.data is None and needy:
        raise UserError(f"--row {needy[0]} needs IMAGENET, a folder that contains val/")
    return options


def benchmark(options: argparse.Namespace) -> None:
    run_benchmarks([ROWS[name] for name in options.row], options, options.data)


if __name__ == "__main__":
    sys.exit(main())
