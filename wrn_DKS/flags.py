"""The flags of `main.py`, with the recipe of the released code. Does not import torch."""

import argparse
import json
from pathlib import Path

from common.command_line import ArgumentParser, bounded_number
from common.flag_groups import (
    add_device_flags,
    add_method_flags,
    add_prediction_flags,
    add_regularization_flags,
    add_training_flags,
)

# The same as in `data`, which would take seconds to import: sides in pixels.
IMAGE_SIZES = {"CIFAR100": 32, "CIFAR10": 32, "digits": 8, "folder": 32}


def build_parser() -> argparse.ArgumentParser:
    """Return the parser. Flags of the released code keep their spelling."""
    parser = ArgumentParser(
        prog="main.py",
        description="Train a wide residual network with deeply-supervised knowledge synergy, "
        "evaluate one, or classify images. Hyphens and underscores in flags are interchangeable.",
    )
    add_data_flags(parser.add_argument_group("data"))
    add_model_flags(parser.add_argument_group("model"))
    add_method_flags(parser.add_argument_group("method"))
    add_regularization_flags(parser.add_argument_group("regularization"))
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
        "-j",
        "--workers",
        "--nthread",
        dest="nthread",
        metavar="N",
        type=bounded_number(int, 1, 256),
        default=4,
        help="number of threads that decode the images of --dataset folder",
    )


def add_model_flags(group) -> None:
    group.add_argument(
        "--arch",
        choices=("wrn", "resnet"),
        default="wrn",
        help="wide residual network, or the CIFAR ResNet of He et al. with the recipe for it",
    )
    group.add_argument(
        "--depth",
        metavar="N",
        type=bounded_number(int, 1, 1206),
        help="number of layers: 6n + 4 (default: 28), or 6n + 2 of a resnet (default: 32)",
    )
    group.add_argument(
        "--width",
        metavar="X",
        type=bounded_number(float, 0, 64),
        help="multiplier of the 16, 32 and 64 channels of the three groups (default: 10); a "
        "resnet has width 1",
    )
    group.add_argument(
        "--dropout", action="store_true", help="use dropout with probability 0.3 in each block"
    )


def add_optimization_flags(group) -> None:
    group.add_argument(
        "--epochs",
        metavar="N",
        type=bounded_number(int, 1),
        help="number of epochs (default: 200; resnet: 164)",
    )
    group.add_argument(
        "-b",
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
    add_milestone_flags(group.add_mutually_exclusive_group())
    group.add_argument(
        "--lr_decay_ratio",
        "--lr-factor",
        metavar="X",
        type=bounded_number(float, 0),
        help="learning-rate decay factor at each milestone (default: 0.2; resnet: 0.1)",
    )
    group.add_argument(
        "--weight_decay",
        metavar="X",
        type=bounded_number(float, 0),
        help="weight decay of all trainable parameters (default: 5e-4; resnet: 1e-4)",
    )


def add_milestone_flags(group) -> None:
    group.add_argument(
        "--epoch_step",
        metavar="EPOCHS",
        type=start_epochs,
        help="epochs (1-based) at whose start the learning rate is decayed (default: at 30, 60 and "
        "80 percent of the epochs, which is [60,120,160] of 200; resnet: at 50 and 75 percent, "
        "[82,123] of 164)",
    )
    group.add_argument(
        "--lr-milestones",
        "--milestones",
        dest="epoch_step",
        metavar="EPOCHS",
        type=finished_epochs,
        default=argparse.SUPPRESS,
        help="the same as numbers of finished epochs after which it is decayed: 59,119,159",
    )


def add_run_flags(group) -> None:
    group.add_argument(
        "--seed", metavar="N", type=bounded_number(int, 0, 2**62), default=1, help="random seed"
    )
    add_device_flags(group)
    add_training_flags(group)
    group.add_argument(
        "--test_every",
        metavar="N",
        type=bounded_number(int, 1),
        default=1,
        help="test every N epochs and after the last one",
    )
    checkpoint = group.add_mutually_exclusive_group()
    checkpoint.add_argument(
        "--resume",
        metavar="FILE",
        default="",
        help="checkpoint to resume from, or the folder of its run; auto: the one in --save, if it "
        "exists",
    )
    checkpoint.add_argument(
        "--model_path",
        dest="resume",
        metavar="FILE",
        default=argparse.SUPPRESS,
        help="the same, for --evaluate and --predict",
    )
    group.add_argument(
        "--evaluate",
        action="store_true",
        help="evaluate the checkpoint --resume FILE on the test images instead of training",
    )
    add_prediction_flags(group)


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
        help="save the backbone, without branches, to this file at the end; with --resume FILE of "
        "a finished run, at once",
    )


def start_epochs(text: str) -> tuple[int, ...]:
    """Parse a JSON list of epochs, such as `[60,120,160]`, as an argparse type.

    As in the released code, an epoch that is given twice counts once.
    """
    try:
        values = json.loads(text)
        if not isinstance(values, list) or any(type(v) is not int or v < 1 for v in values):
            raise ValueError
    except ValueError:
        raise argparse.ArgumentTypeError(
            f"expected a list of epochs such as '[60,120,160]', got {text!r}"
        ) from None
    return tuple(dict.fromkeys(values))


def finished_epochs(text: str) -> tuple[int, ...]:
    """Parse `59,119,159`, as an argparse type; return the epochs after these, (60, 120, 160)."""
    words = [word.strip() for word in text.strip("[]").split(",") if word.strip()]
    if not all(word.isascii() and word.isdecimal() for word in words):
        raise argparse.ArgumentTypeError(f"expected epochs such as 59,119,159, got {text!r}")
    return tuple(dict.fromkeys(int(word) + 1 for word in words))
