"""The flags of `main.py`; their defaults are the released code's recipe."""

import argparse
import json
from pathlib import Path

from common.command_line import DTYPES, Parser, bounded_number
from data import IMAGE_SIZES
from synergy import DIRECTIONS, METHODS


def build_parser() -> argparse.ArgumentParser:
    """Every flag, in groups; released flags keep their spelling."""
    parser = Parser(
        prog="main.py",
        description="Train WRN with deeply-supervised knowledge synergy. In every flag a hyphen "
        "may stand for an underscore, and the other way round.",
    )
    add_data_and_model(parser)
    add_method_and_optimization(parser)
    add_run_and_output(parser)
    return parser


def add_data_and_model(parser: argparse.ArgumentParser) -> None:
    data = parser.add_argument_group("data")
    data.add_argument("--dataset", choices=IMAGE_SIZES, default="CIFAR100", help="data set")
    data.add_argument(
        "--dataroot",
        type=Path,
        default=Path("data"),
        help="folder of CIFAR's files (downloaded there when absent), or for --dataset folder "
        "one with train/<class>/ and test/<class>/ or val/<class>/",
    )
    data.add_argument(
        "--image-size",
        type=bounded_number(int, 8, 1024),
        help="side in pixels to which the images of a folder are resized (32 if not given)",
    )
    data.add_argument(
        "--nthread",
        type=bounded_number(int, 1, 256),
        default=4,
        help="threads that decode a folder",
    )
    model = parser.add_argument_group("model")
    model.add_argument(
        "--depth", type=bounded_number(int, 1, 1206), default=28, help="6n + 4 layers"
    )
    model.add_argument(
        "--width",
        type=bounded_number(float, 0, 64),
        default=10.0,
        help="factor on 16/32/64 channels",
    )
    model.add_argument(
        "--dropout", action="store_true", help="drop 30 %% of activations inside the blocks"
    )


def add_method_and_optimization(parser: argparse.ArgumentParser) -> None:
    method = parser.add_argument_group("method")
    method.add_argument(
        "--method",
        choices=METHODS,
        default="dks",
        help="no branches; branches that learn from the labels; branches and the synergy loss",
    )
    method.add_argument(
        "--direction", choices=DIRECTIONS, default="bidirectional", help="who teaches in dks"
    )
    weight = bounded_number(float, 0)
    method.add_argument(
        "--aux-weight", type=weight, default=1.0, help="weight of the branches' cross-entropies"
    )
    method.add_argument(
        "--synergy-weight", type=weight, default=1.0, help="weight of the synergy loss"
    )
    optimization = parser.add_argument_group("optimization")
    optimization.add_argument(
        "--epochs", type=bounded_number(int, 1), default=200, help="epochs in all"
    )
    optimization.add_argument(
        "--batch_size",
        type=bounded_number(int, 1),
        default=128,
        help="images a step, over all processes",
    )
    optimization.add_argument(
        "--lr", type=bounded_number(float, 0), default=0.1, help="learning rate"
    )
    optimization.add_argument(
        "--epoch_step",
        type=milestones,
        default="[60,120,160]",
        help="epochs, counted from 1, at whose start the learning rate falls",
    )
    optimization.add_argument(
        "--lr_decay_ratio",
        type=bounded_number(float, 0),
        default=0.2,
        help="factor by which it falls",
    )
    optimization.add_argument(
        "--weight_decay",
        type=bounded_number(float, 0),
        default=5e-4,
        help="on every trainable tensor",
    )


def add_run_and_output(parser: argparse.ArgumentParser) -> None:
    run = parser.add_argument_group("run")
    run.add_argument(
        "--seed", type=bounded_number(int, 0, 2**62), default=1, help="of all random numbers"
    )
    run.add_argument(
        "--dtype", choices=DTYPES, default="float32", help="what the network computes in"
    )
    run.add_argument("--device", default="auto", help="cpu, cuda, cuda:N; auto: a GPU if any")
    run.add_argument("--gpu_id", type=bounded_number(int, 0), help="the same as --device cuda:N")
    run.add_argument(
        "--ngpu",
        type=bounded_number(int, 1),
        default=1,
        help="more than 1 tells how to use torchrun",
    )
    run.add_argument(
        "--test_every",
        type=bounded_number(int, 1),
        default=1,
        help="epochs from one test to the next; the last epoch is always tested",
    )
    run.add_argument(
        "--resume",
        default="",
        help="checkpoint to start from; auto: the one in --save if there is one",
    )
    run.add_argument(
        "--evaluate", action="store_true", help="print the errors of --resume FILE and end"
    )
    output = parser.add_argument_group("output")
    output.add_argument(
        "--save",
        type=Path,
        help="folder of log, checkpoint and TensorBoard events (a new one below ./logs if not "
        "given; with --resume FILE, the file's)",
    )
    output.add_argument(
        "--export", type=Path, help="file to which the backbone alone is saved at the end"
    )


def milestones(text: str) -> tuple[int, ...]:
    """The argparse type of `[60,120,160]`."""
    try:
        values = json.loads(text)
        if not isinstance(values, list) or any(type(v) is not int or v < 1 for v in values):
            raise ValueError
    except ValueError:
        raise argparse.ArgumentTypeError(
            f"expected a list of epochs such as '[60,120,160]', got {text!r}"
        ) from None
    return tuple(values)
