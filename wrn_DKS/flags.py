"""The flags of `main.py`. The defaults are the recipe of the released code."""

import argparse
import json
from pathlib import Path

from common.command_line import DTYPES, ArgumentParser, bounded_number
from data import IMAGE_SIZES
from synergy import DIRECTIONS, METHODS


def build_parser() -> argparse.ArgumentParser:
    """Return the parser. Flags of the released code keep their spelling."""
    parser = ArgumentParser(
        prog="main.py",
        description="Train a wide residual network with deeply-supervised knowledge synergy, or "
        "evaluate one. Hyphens and underscores in flags are interchangeable.",
    )
    add_data_flags(parser.add_argument_group("data"))
    add_model_flags(parser.add_argument_group("model"))
    add_method_flags(parser.add_argument_group("method"))
    add_optimization_flags(parser.add_argument_group("optimization"))
    add_run_flags(parser.add_argument_group("run"))
    add_output_flags(parser.add_argument_group("output"))
    return parser


def add_data_flags(group) -> None:
    group.add_argument("--dataset", choices=IMAGE_SIZES, default="CIFAR100", help="dataset")
    group.add_argument(
        "--dataroot",
        metavar="DIR",
        type=Path,
        default=Path("data"),
        help="folder of the CIFAR files, which are downloaded if missing; for --dataset folder, "
        "a folder with train/CLASS/ and test/CLASS/ or val/CLASS/",
    )
    group.add_argument(
        "--image-size",
        metavar="PIXELS",
        type=bounded_number(int, 8, 1024),
        help="side to which the images of --dataset folder are resized (default: 32)",
    )
    group.add_argument(
        "--nthread",
        metavar="N",
        type=bounded_number(int, 1, 256),
        default=4,
        help="number of threads that decode the images of --dataset folder",
    )


def add_model_flags(group) -> None:
    group.add_argument(
        "--depth",
        metavar="N",
        type=bounded_number(int, 1, 1206),
        default=28,
        help="number of layers, 6n + 4",
    )
    group.add_argument(
        "--width",
        metavar="X",
        type=bounded_number(float, 0, 64),
        default=10.0,
        help="multiplier of the 16, 32 and 64 channels of the three groups",
    )
    group.add_argument(
        "--dropout", action="store_true", help="use dropout with probability 0.3 in each block"
    )


def add_method_flags(group) -> None:
    group.add_argument(
        "--method",
        choices=METHODS,
        default="dks",
        help="baseline: no branches; ds: deep supervision of the branches by the labels; "
        "dks: deep supervision and the synergy loss",
    )
    group.add_argument(
        "--direction",
        choices=DIRECTIONS,
        default="bidirectional",
        help="direction of knowledge transfer in dks; top-down: from deep to shallow classifiers",
    )
    group.add_argument(
        "--aux-weight",
        metavar="X",
        type=bounded_number(float, 0),
        default=1.0,
        help="weight of the branches' cross-entropy losses",
    )
    group.add_argument(
        "--synergy-weight",
        metavar="X",
        type=bounded_number(float, 0),
        default=1.0,
        help="weight of the synergy loss",
    )


def add_optimization_flags(group) -> None:
    group.add_argument(
        "--epochs",
        metavar="N",
        type=bounded_number(int, 1),
        default=200,
        help="number of epochs",
    )
    group.add_argument(
        "--batch_size",
        metavar="N",
        type=bounded_number(int, 1),
        default=128,
        help="total batch size over all processes",
    )
    group.add_argument(
        "--lr",
        metavar="X",
        type=bounded_number(float, 0),
        default=0.1,
        help="initial learning rate",
    )
    group.add_argument(
        "--epoch_step",
        metavar="EPOCHS",
        type=milestones,
        default="[60,120,160]",
        help="epochs (1-based) at whose start the learning rate is decayed",
    )
    group.add_argument(
        "--lr_decay_ratio",
        metavar="X",
        type=bounded_number(float, 0),
        default=0.2,
        help="learning-rate decay factor at each milestone",
    )
    group.add_argument(
        "--weight_decay",
        metavar="X",
        type=bounded_number(float, 0),
        default=5e-4,
        help="weight decay of all trainable parameters",
    )


def add_run_flags(group) -> None:
    group.add_argument(
        "--seed", metavar="N", type=bounded_number(int, 0, 2**62), default=1, help="random seed"
    )
    group.add_argument(
        "--dtype",
        choices=DTYPES,
        default="float32",
        help="dtype of the forward pass under autocast; parameters are float32",
    )
    group.add_argument(
        "--device",
        default="auto",
        help="cpu, cuda or cuda:N; auto: a GPU if available, otherwise the CPU",
    )
    group.add_argument(
        "--gpu_id", metavar="N", type=bounded_number(int, 0), help="same as --device cuda:N"
    )
    group.add_argument(
        "--ngpu",
        metavar="N",
        type=bounded_number(int, 1),
        default=1,
        help="number of GPUs; for more than 1, use torchrun instead",
    )
    group.add_argument(
        "--test_every",
        metavar="N",
        type=bounded_number(int, 1),
        default=1,
        help="test every N epochs and after the last one",
    )
    group.add_argument(
        "--resume",
        metavar="FILE",
        default="",
        help="checkpoint to resume from; auto: the one in --save, if it exists",
    )
    group.add_argument(
        "--evaluate",
        action="store_true",
        help="evaluate the checkpoint --resume FILE instead of training",
    )


def add_output_flags(group) -> None:
    group.add_argument(
        "--save",
        metavar="DIR",
        type=Path,
        help="folder for the log, the checkpoint and TensorBoard events (default: the folder of "
        "--resume FILE, otherwise a new folder in ./logs)",
    )
    group.add_argument(
        "--export",
        metavar="FILE",
        type=Path,
        help="save the backbone, without branches, to this file at the end",
    )


def milestones(text: str) -> tuple[int, ...]:
    """Parse a JSON list of epochs, such as `[60,120,160]`, as an argparse type."""
    try:
        values = json.loads(text)
        if not isinstance(values, list) or any(type(v) is not int or v < 1 for v in values):
            raise ValueError
    except ValueError:
        raise argparse.ArgumentTypeError(
            f"expected a list of epochs such as '[60,120,160]', got {text!r}"
        ) from None
    return tuple(values)
