"""The command line of `main.py`: its flags, and what they become."""

import argparse
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torchvision

from common.command_line import DTYPES, Parser, UserError, bounded_number, require_writable_file
from presets import RESIZES
from resnet import NETWORKS


@dataclass(frozen=True)
class Config:
    """What to evaluate, on what, and how."""

    data: Path | None
    val_labels: Path | None
    resize: str
    image_size: int  # pixels
    skip_unreadable: bool
    workers: int  # for each process of the run
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
    """Read the command line, the process's own if `argv` is None.

    Raises:
        UserError: a flag is unknown or wrong, or flags contradict each other.
    """
    values = vars(build_parser().parse_args(argv))
    config = Config(**values | {"predict": tuple(values["predict"])})
    check_network(config)
    check_task(config)
    if config.json:
        require_writable_file("--json", config.json)
        if config.model_path and config.json.resolve() == config.model_path.resolve():
            raise UserError(f"--json {config.json}: the checkpoint itself; choose another name")
    return config


def check_network(config: Config) -> None:
    """Refuse an unknown network, or one with no weights or with two kinds."""
    known = torchvision.models.list_models(module=torchvision.models)
    if config.arch not in NETWORKS and config.arch not in known:
        raise UserError(
            f"-a {config.arch}: expected one of {', '.join(NETWORKS)}, or the name of another "
            "classifier in torchvision, such as resnet34"
        )
    sources = (config.model_path, config.pretrained, config.torchvision_weights)
    given = sum(map(bool, sources)) + (config.download_only and not config.pretrained)
    if given != 1:
        raise UserError(
            f"{'several kinds of' if given else 'no'} weights given; expected one of "
            "--model_path FILE, --pretrained, --torchvision-weights NAME and --download-only"
        )
    if config.branches and not config.model_path:
        raise UserError("--branches: only checkpoints given as --model_path have them")


def check_task(config: Config) -> None:
    """Refuse what is none of an evaluation, a prediction and a download, or several of them."""
    if not config.predict and not config.download_only:
        if config.data is None:
            raise UserError("no data: give the folder that contains val/, or --predict IMAGE …")
        return
    task = "--download-only" if config.download_only else "--predict"
    others = {
        "a data folder": config.data,
        "--val-labels": config.val_labels,
        "--json": config.json,
        "--branches": config.branches,
        "--skip-unreadable": config.skip_unreadable,
        "--predict": config.predict and config.download_only,
    }
    for name, value in others.items():
        if value:
            raise UserError(f"{task} evaluates nothing; leave out {name}")


def build_parser() -> argparse.ArgumentParser:
    parser = Parser(
        prog="main.py",
        description="Evaluate a network on ImageNet's validation set, or classify images. "
        "Hyphens and underscores in flags are the same.",
    )
    add_data_flags(parser.add_argument_group("data"))
    add_model_flags(parser.add_argument_group("model"))
    add_run_flags(parser.add_argument_group("run"))
    add_output_flags(parser.add_argument_group("output"))
    return parser


def add_data_flags(group) -> None:
    group.add_argument("data", metavar="DATA", type=Path, nargs="?", help="folder with val/ in it")
    group.add_argument(
        "--val-labels",
        metavar="FILE",
        type=Path,
        help="classes of the images of a val/ without class folders: Kaggle's "
        "LOC_val_solution.csv, or lines 'filename wnid'",
    )
    group.add_argument(
        "--resize",
        choices=RESIZES,
        default="square",
        help="before the crop: to a square, aspect ratio given up, as the released code does; "
        "or the shorter side to that size, as is common",
    )
    group.add_argument(
        "--image-size",
        metavar="PIXELS",
        type=bounded_number(int, 8),
        default=224,
        help="side of the centre crop in pixels; resized to 256/224 of it before",
    )
    group.add_argument(
        "--skip-unreadable",
        action="store_true",
        help="leave out images that can't be read, and count them; otherwise the first one ends "
        "the run",
    )
    group.add_argument(
        "-j",
        "--workers",
        metavar="N",
        type=bounded_number(int, 0, 1024),
        default=min(4, os.cpu_count() or 1),
        help="processes that read images, for each process of the run; 0: none besides it",
    )


def add_model_flags(group) -> None:
    group.add_argument(
        "-a",
        "--arch",
        metavar="NAME",
        default="resnet18",
        help=f"network: {', '.join(NETWORKS)}, or another classifier's name in torchvision",
    )
    group.add_argument("--model_path", metavar="FILE", type=Path, help="checkpoint to evaluate")
    group.add_argument(
        "--pretrained",
        action="store_true",
        help="evaluate the weights that the paper's authors released, downloaded once",
    )
    group.add_argument(
        "--torchvision-weights", metavar="NAME", help="evaluate torchvision's, as IMAGENET1K_V1"
    )
    group.add_argument(
        "--branches",
        action="store_true",
        help="report the auxiliary branches of the checkpoint too, and the averaged probabilities",
    )
    group.add_argument(
        "--download-only", action="store_true", help="fetch the released weights and end there"
    )


def add_run_flags(group) -> None:
    group.add_argument(
        "--device", default="auto", help="auto (a GPU where there is one), cpu, cuda, cuda:1, …"
    )
    group.add_argument(
        "--dtype",
        choices=DTYPES,
        default="float32",
        help="of convolutions and matrix products",
    )
    group.add_argument(
        "-b",
        "--batch-size",
        metavar="N",
        type=bounded_number(int, 1),
        default=256,
        help="images in a batch, over all processes",
    )


def add_output_flags(group) -> None:
    group.add_argument(
        "-p",
        "--print-freq",
        metavar="N",
        type=bounded_number(int, 1),
        default=10,
        help="batches between refreshes of the progress bar",
    )
    group.add_argument("--json", metavar="FILE", type=Path, help="write the result there too")
    group.add_argument(
        "--predict",
        metavar="IMAGE",
        type=Path,
        nargs="+",
        default=[],
        help="print the five likeliest classes of these images instead",
    )
