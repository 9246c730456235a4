"""Command-line flags of `train.py`. Does not import torch."""

import argparse
from pathlib import Path

from common.command_line import ArgumentParser, bounded_number
from common.flag_groups import (
    add_device_flags,
    add_method_flags,
    add_regularization_flags,
    add_training_flags,
)
from schedule import LR_SCHEDULES
from shared_flags import (
    ARCHS,
    add_batch_size,
    add_data,
    add_export,
    add_skip_unreadable,
    add_workers,
)

# argparse types
FRACTION = bounded_number(float, 0, 1)
NON_NEGATIVE = bounded_number(float, 0)
POSITIVE_INT = bounded_number(int, 1)


def build_parser() -> argparse.ArgumentParser:
    """Build the parser of `train.py`."""
    parser = ArgumentParser(
        prog="train.py",
        description="Train a ResNet with deeply-supervised knowledge synergy on a folder of "
        "images. Flags may be spelled with hyphens or underscores.",
    )
    add_data_flags(parser.add_argument_group("data"))
    add_model_flags(parser.add_argument_group("model and method"))
    add_regularization_flags(parser.add_argument_group("regularization"))
    add_optimization_flags(parser.add_argument_group("optimization"))
    add_schedule_flags(parser.add_argument_group("learning rate"))
    add_run_flags(parser.add_argument_group("run"))
    add_output_flags(parser.add_argument_group("output"))
    return parser


def add_data_flags(group) -> None:
    add_data(group, "train/<class>/ and val/<class>/, or test/<class>/")
    group.add_argument(
        "--image-size",
        metavar="PIXELS",
        # From 33 pixels on, the last stage has 2x2 positions; batch normalization of a single
        # image fails at 1x1.
        type=bounded_number(int, 33, 4096),
        default=224,
        help="side of the crop in pixels; images are resized to 256/224 of it first",
    )
    group.add_argument(
        "--augmentation",
        choices=("crop", "resized-crop"),
        help="crop: resize to a square and take a random crop; resized-crop: crop a random area "
        "and aspect ratio, then resize; both flip at random (default: resized-crop for resnet152, "
        "otherwise crop)",
    )
    add_skip_unreadable(group, "training images")
    group.add_argument(
        "--cache",
        metavar="DIR",
        type=Path,
        help="folder for the decoded and resized images: made if it is not there, at 0.2 MB an "
        "image of 224 pixels; training then reads them instead of the files, without workers",
    )
    add_workers(group, most=8)
    group.add_argument(
        "--prefetch",
        metavar="N",
        type=bounded_number(int, 1, 1024),
        default=4,
        help="batches prefetched per worker, or from the cache",
    )


def add_model_flags(group) -> None:
    group.add_argument("-a", "--arch", choices=ARCHS, default=ARCHS[0], help="network")
    group.add_argument(
        "--init",
        metavar="FILE|NAME",
        default="",
        help="start the backbone from these weights: a checkpoint, an exported file or folder, the "
        "folder of a run, or the name of torchvision's weights, such as IMAGENET1K_V1; a "
        "classifier of other classes and the branches start at random (default: all random)",
    )
    add_method_flags(group)


def add_optimization_flags(group) -> None:
    group.add_argument(
        "--epochs", metavar="N", type=POSITIVE_INT, default=100, help="number of epochs"
    )
    add_batch_size(group)
    group.add_argument(
        "--grad-accumulation",
        metavar="N",
        type=POSITIVE_INT,
        default=1,
        help="micro-batches per step and process; more need less memory",
    )
    group.add_argument("--momentum", type=FRACTION, default=0.9, help="momentum of SGD")
    group.add_argument(
        "--weight-decay",
        metavar="W",
        type=NON_NEGATIVE,
        default=1e-4,
        help="weight decay of all parameters",
    )
    group.add_argument(
        "--ema",
        metavar="DECAY",
        type=bounded_number(float, 0, 0.999999),
        default=0.0,
        help="decay per step, such as 0.9999, of an exponential moving average of the weights, "
        "which is evaluated too and exported (default: 0, no average, as in the paper)",
    )


def add_schedule_flags(group) -> None:
    group.add_argument("--lr", type=NON_NEGATIVE, default=0.1, help="initial learning rate")
    group.add_argument(
        "--lr-schedule",
        choices=LR_SCHEDULES,
        default="step",
        help="step: decay at the milestones, as in the paper; cosine: half a cosine down to 0",
    )
    milestones = group.add_mutually_exclusive_group()
    milestones.add_argument(
        "--lr-milestones",
        "--milestones",
        metavar="EPOCHS",
        dest="milestones",
        type=epoch_list,
        help="finished epochs after which the rate is decayed (default: 30, 60, 90 %% of --epochs)",
    )
    milestones.add_argument(
        "--epoch_step",
        metavar="EPOCHS",
        type=epoch_list,
        help="the same as epochs, counted from 1, at whose start it is decayed: [31,61,91]",
    )
    group.add_argument(
        "--lr-factor",
        "--lr_decay_ratio",
        metavar="FACTOR",
        type=FRACTION,
        default=0.1,
        help="learning-rate decay factor at each milestone",
    )
    group.add_argument(
        "--warmup-epochs",
        metavar="N",
        type=NON_NEGATIVE,
        default=0.0,
        help="epochs of linear learning-rate warmup (default: 0, as in the paper)",
    )


def add_run_flags(group) -> None:
    group.add_argument("--seed", type=bounded_number(int, 0, 2**62), default=1, help="random seed")
    add_device_flags(group)
    add_training_flags(group)
    group.add_argument(
        "--resume",
        metavar="FILE",
        default="",
        help="checkpoint, or folder of a run, to resume from; auto: that in --save, if any",
    )


def add_output_flags(group) -> None:
    group.add_argument(
        "--save",
        metavar="DIR",
        type=Path,
        help="output folder (default: the folder of --resume FILE, otherwise a new one in logs/)",
    )
    group.add_argument(
        "--checkpoint-minutes",
        metavar="MINUTES",
        type=NON_NEGATIVE,
        default=15.0,
        help="minutes between checkpoints within an epoch; 0 saves after every step",
    )
    group.add_argument(
        "--log-interval",
        metavar="STEPS",
        type=POSITIVE_INT,
        default=50,
        help="steps between checks of the loss, each of which waits for the device",
    )
    add_export(group, "at the end")


def epoch_list(text: str) -> tuple[int, ...]:
    """Parse `30,60,90` or `[30,60,90]`, an argparse type; an empty string means none.

    An epoch that is given twice counts once.
    """
    words = [word.strip() for word in text.strip("[] ").split(",") if word.strip()]
    if not all(word.isdecimal() for word in words):
        raise argparse.ArgumentTypeError(f"expected epochs such as 30,60,90, got {text!r}")
    return tuple(dict.fromkeys(map(int, words)))
