"""Flags that `main.py` and `train.py` have in common."""

import os
from pathlib import Path

from common.command_line import bounded_number


def add_val_labels(group) -> None:
    group.add_argument(
        "--val-labels",
        metavar="FILE",
        type=Path,
        help="label file for a val/ without class folders: Kaggle's LOC_val_solution.csv, or "
        "lines 'filename wnid'",
    )


def add_workers(group, most: int) -> None:
    """Add the flag with a default of one worker per CPU core, `most` at most."""
    group.add_argument(
        "-j",
        "--workers",
        metavar="N",
        type=bounded_number(int, 0, 1024),
        default=min(most, os.cpu_count() or 1),
        help="data loading workers per process; 0 loads in the main process",
    )


def add_batch_size(group) -> None:
    group.add_argument(
        "-b",
        "--batch-size",
        metavar="N",
        type=bounded_number(int, 1),
        default=256,
        help="total batch size over all processes",
    )


def add_device(group) -> None:
    group.add_argument(
        "--device", default="auto", help="auto (a GPU if available), cpu, cuda, cuda:1, …"
    )
