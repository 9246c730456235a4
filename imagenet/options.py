"""Command-line options of `main.py`."""

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torchvision

from common.command_line import (
    DTYPES,
    ArgumentParser,
    UserError,
    bounded_number,
    require_writable_file,
)
from presets import RESIZES
from resnet import NETWORKS
from shared_flags import add_batch_size, add_device, add_val_labels, add_workers


@dataclass(frozen=True)
class Config:
    """Every option of `main.py`, under the name of its flag."""

    data: Path | None
    val_labels: Path | None
    resize: str
    image_size: int  # pixels
    skip_unreadable: bool
    workers: int  # per process
    arch: str
    model_path: Path | None
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


def parse(argv: Sequence[str] | None = None) -> Config:
    """Parse and check the command line.

    Args:
        argv: arguments; those of this process if None.

    Raises:
        UserError: an argument is unknown or invalid, or arguments contradict each other.
    """
    values = vars(build_parser().parse_args(argv))
    config = Config(**values | {"predict": tuple(values["predict"] or ())})
    check_model(config)
    check_task(config)
    if config.json:
        require_writable_file("--json", config.json)
        if config.model_path and config.json.resolve() == config.model_path.resolve():
            raise UserError(
                f"--json {config.json}: would overwrite the checkpoint; choose another name"
            )
    return config


def check_model(config: Config) -> None:
    """Raise `UserError` for an unknown network, or unless there is one source of weights."""
    known = torchvision.models.list_models(module=torchvision.models)
    if config.arch not in NETWORKS and config.arch not in known:
        raise UserError(
            f"-a {config.arch}: expected {', '.join(NETWORKS)}, or the name of another torchvision "
            "classifier, such as resnet34"
        )
    sources = (config.model_path, config.pretrained, config.torchvision_weights)
    given = sum(map(bool, sources)) + (config.download_only and not config.pretrained)
    if given != 1:
        raise UserError(
            f"{'several sources of' if given else 'no'} weights; expected one of "
            "--model_path FILE, --pretrained, --torchvision-weights NAME and --download-only"
        )
    if config.branches and not config.model_path:
        raise UserError("--branches: requires a checkpoint with branches; give --model_path FILE")


def check_task(config: Config) -> None:
    """Raise `UserError` unless the task is either evaluation, prediction or a download."""
    if not config.predict and not config.download_only:
        if config.data is None:
            raise UserError("no data; give the folder that contains val/, or --predict IMAGE …")
        return
    task = "--download-only" if config.download_only else "--predict"
    conflicts = {
        "the data folder": config.data,
        "--val-labels": config.val_labels,
        "--json": config.json,
        "--branches": config.branches,
        "--skip-unreadable": config.skip_unreadable,
        "--predict": config.predict and config.download_only,
    }
    for name, value in conflicts.items():
        if value:
            raise UserError(f"{task} does not evaluate; leave out {name}")


def build_parser() -> argparse.ArgumentParser:
    """Build the parser of `main.py`."""
    parser = ArgumentParser(
        prog="main.py",
        description="Evaluate a network on the ImageNet validation set, or classify images. "
        "Flags may be spelled with hyphens or underscores.",
    )
    add_data_flags(parser.add_argument_group("data"))
    add_model_flags(parser.add_argument_group("model"))
    add_run_flags(parser.add_argument_group("run"))
    add_output_flags(parser.add_argument_group("output"))
    return parser


def add_data_flags(group) -> None:
    group.add_argument(
        "data", metavar="DATA", type=Path, nargs="?", help="folder that contains val/"
    )
    add_val_labels(group)
    group.add_argument(
        "--resize",
        choices=RESIZES,
        default="square",
        help="resize before the center crop: to a square, ignoring the aspect ratio, as in the "
        "released code; or the shorter side, as is common",
    )
    group.add_argument(
        "--image-size",
        metavar="PIXELS",
        type=bounded_number(int, 8),
        default=224,
        help="side of the center crop in pixels; images are resized to 256/224 of it first",
    )
    group.add_argument(
        "--skip-unreadable",
        action="store_true",
        help="skip and count images that cannot be read instead of stopping at the first",
    )
    add_workers(group, most=4)


def add_model_flags(group) -> None:
    group.add_argument(
        "-a",
        "--arch",
        metavar="NAME",
        default="resnet18",
        help=f"network: {', '.join(NETWORKS)}, or another torchvision classifier",
    )
    group.add_argument("--model_path", metavar="FILE", type=Path, help="checkpoint to load")
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


def add_run_flags(group) -> None:
    add_device(group)
    group.add_argument(
        "--dtype",
        choices=DTYPES,
        default="float32",
        help="data type of convolutions and matrix products",
    )
    add_batch_size(group)


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
