"""Command-line options of `main.py`. Does not import torch."""

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from common.command_line import ArgumentParser, UserError, bounded_number, require_writable_file
from common.flag_groups import add_device_flags
from common.run_folder import refuse_overwriting
from export_path import check_export, weights_path
from shared_flags import (
    ARCHS,
    add_batch_size,
    add_data,
    add_export,
    add_skip_unreadable,
    add_workers,
    resolve_aliases,
)


@dataclass(frozen=True)
class Config:
    """Every option of `main.py`, under the name of its flag."""

    data: Path | None
    val_labels: Path | None
    resize: str
    image_size: int | None  # pixels; None: that of training, otherwise 224
    skip_unreadable: bool
    workers: int  # per process
    arch: str | None  # None: that of the checkpoint, otherwise resnet18
    model_path: Path | None  # a file, or the folder of a run or export
    pretrained: bool
    torchvision_weights: str | None
    branches: bool
    download_only: bool
    device: str
    dtype: str
    batch_size: int  # images, over all processes
    print_freq: int  # batches
    json: Path | None
    predict: tuple[Path, ...]
    export: Path | None


def parse(argv: Sequence[str] | None = None) -> Config:
    """Parse and check the command line.

    Args:
        argv: arguments; those of this process if None.

    Raises:
        UserError: an argument is unknown or invalid, or arguments contradict each other.
    """
    values = resolve_aliases(vars(build_parser().parse_args(argv)), "main.py")
    config = Config(**values | {"predict": tuple(values["predict"] or ())})
    check_weights(config)
    check_task(config)
    weights = config.model_path and weights_path(config.model_path)
    inputs = (weights, config.val_labels, *config.predict)
    if config.json:
        require_writable_file("--json", config.json)
        refuse_overwriting("--json", config.json, inputs)
    if config.export:
        refuse_overwriting("--export", config.export, inputs)
        check_export(config.export)
    return config


def check_weights(config: Config) -> None:
    """Raise `UserError` unless there is one source of weights."""
    sources = (config.model_path, config.pretrained, config.torchvision_weights)
    given = sum(map(bool, sources)) + (config.download_only and not config.pretrained)
    if given != 1:
        raise UserError(
            f"{'several sources of' if given else 'no'} weights; expected one of "
            "--model_path FILE, --pretrained, --torchvision-weights NAME or --download-only"
        )
    if config.branches and not config.model_path:
        raise UserError("--branches: requires a checkpoint with branches; give --model_path FILE")


def check_task(config: Config) -> None:
    """Raise `UserError` unless the task is one of evaluation, prediction, export and download."""
    tasks = ["--download-only"] if config.download_only else []
    tasks += ["--export"] if config.export else []
    tasks += ["--predict"] if config.predict else []
    if not tasks:
        if config.data is None:
            raise UserError("no data; give the folder that contains val/, or --predict IMAGE …")
        return
    task, *others = tasks
    conflicts = {
        "the data folder": config.data,
        "--val-labels": config.val_labels,
        "--json": config.json if task != "--predict" else None,
        "--branches": config.branches,
        "--skip-unreadable": config.skip_unreadable,
        f"--resize {config.resize}": config.resize != "square" and task == "--export",
        **dict.fromkeys(others, True),
    }
    for name, value in conflicts.items():
        if value:
            raise UserError(f"{task} does not evaluate; leave out {name}")


def build_parser() -> argparse.ArgumentParser:
    """Build the parser of `main.py`."""
    parser = ArgumentParser(
        prog="main.py",
        description="Evaluate a network on the ImageNet validation set, classify images, or export "
        "a backbone. Flags may be spelled with hyphens or underscores.",
    )
    add_data_flags(parser.add_argument_group("data"))
    add_model_flags(parser.add_argument_group("model"))
    run = parser.add_argument_group("run")
    add_device_flags(run)
    add_batch_size(run)
    add_output_flags(parser.add_argument_group("output"))
    return parser


def add_data_flags(group) -> None:
    add_data(group, "val/ or test/")
    group.add_argument(
        "--resize",
        choices=("square", "shorter-side"),
        default="square",
        help="resize before the center crop: to a square, ignoring the aspect ratio, as in the "
        "released code; or the shorter side, as is common",
    )
    group.add_argument(
        "--image-size",
        metavar="PIXELS",
        type=bounded_number(int, 8),
        help="side of the center crop in pixels; images are resized to 256/224 of it first "
        "(default: that of training if the checkpoint names it, otherwise 224)",
    )
    add_skip_unreadable(group, "images")
    add_workers(group, most=4)


def add_model_flags(group) -> None:
    group.add_argument(
        "-a",
        "--arch",
        metavar="NAME",
        help=f"network: {', '.join(ARCHS)}, or another torchvision classifier (default: that of "
        f"the checkpoint if it names it, otherwise {ARCHS[0]})",
    )
    group.add_argument(
        "--model_path",
        metavar="FILE",
        type=Path,
        help="checkpoint to load, the --save folder of a run, or an exported file or folder",
    )
    group.add_argument(
        "--pretrained",
        action="store_true",
        help="use the weights released by the paper's authors, downloaded on first use",
    )
    group.add_argument(
        "--torchvision-weights",
        metavar="NAME",
        help="use torchvision's weights of this name, such as IMAGENET1K_V1",
    )
    group.add_argument(
        "--branches",
        action="store_true",
        help="also evaluate the checkpoint's auxiliary branches and the ensemble of all "
        "classifiers",
    )
    group.add_argument(
        "--download-only", action="store_true", help="download the released weights and exit"
    )


def add_output_flags(group) -> None:
    group.add_argument(
        "-p",
        "--print-freq",
        metavar="N",
        type=bounded_number(int, 1),
        default=10,
        help="batches between updates of the progress bar",
    )
    group.add_argument(
        "--json", metavar="FILE", type=Path, help="also write the results to this file"
    )
    group.add_argument(
        "--predict",
        metavar="IMAGE",
        type=Path,
        nargs="+",
        help="print the five most likely classes of these images instead of evaluating",
    )
    add_export(group, "instead of evaluating")
