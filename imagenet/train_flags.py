"""The flags of `train.py`, in groups."""

import argparse
import os
from pathlib import Path

from common.command_line import DTYPES, Parser, bounded_number
from presets import AUGMENTATIONS
from resnet import NETWORKS
from schedule import LR_SCHEDULES
from synergy import DIRECTIONS, METHODS


def build_parser() -> argparse.ArgumentParser:
    """Every flag, in groups."""
    parser = Parser(
        prog="train.py",
        description="Train a ResNet with deeply-supervised knowledge synergy on a folder of "
        "images. Hyphens and underscores in flags are the same.",
    )
    add_data_flags(parser.add_argument_group("data"))
    add_model_flags(parser.add_argument_group("model and method"))
    add_optimization_flags(parser.add_argument_group("optimization"))
    add_schedule_flags(parser.add_argument_group("learning rate"))
    add_run_flags(parser.add_argument_group("run"))
    add_output_flags(parser.add_argument_group("output"))
    return parser


def add_data_flags(group) -> None:
    group.add_argument(
        "data",
        metavar="DATA",
        type=Path,
        help="folder with train/<class>/ and val/<class>/, of any classes",
    )
    group.add_argument(
        "--val-labels",
        metavar="FILE",
        type=Path,
        help="classes of the images of a val/ without class folders, as for main.py",
    )
    group.add_argument(
        "--image-size",
        metavar="PIXELS",
        # At 33 the last stage has 2x2 positions; at 1x1, one image is no batch to normalise.
        type=bounded_number(int, 33, 4096),
        default=224,
        help="side of the crop in pixels; resized to 256/224 of it before",
    )
    group.add_argument(
        "--augmentation",
        choices=AUGMENTATIONS,
        default=None,
        help="crop: resize to a square, crop at random; resized-crop: crop a part of random size "
        "and shape, resize it. Both flip. (None: resized-crop for resnet152, crop for the others)",
    )
    group.add_argument(
        "-j",
        "--workers",
        metavar="N",
        type=bounded_number(int, 0, 1024),
        default=min(8, os.cpu_count() or 1),
        help="processes that read images, for each process of the run; 0: none besides it",
    )
    group.add_argument(
        "--prefetch",
        metavar="N",
        type=bounded_number(int, 1, 1024),
        default=4,
        help="batches that each of these prepares ahead",
    )


def add_model_flags(group) -> None:
    group.add_argument("-a", "--arch", choices=NETWORKS, default="resnet18", help="network")
    group.add_argument(
        "--method",
        choices=METHODS,
        default="dks",
        help="no branches; branches that learn from the labels; branches and the synergy loss",
    )
    group.add_argument(
        "--direction", choices=DIRECTIONS, default="bidirectional", help="who teaches in dks"
    )
    weight = bounded_number(float, 0)
    group.add_argument(
        "--aux-weight", type=weight, default=1.0, help="weight of the branches' cross-entropies"
    )
    group.add_argument(
        "--synergy-weight", type=weight, default=1.0, help="weight of the synergy loss"
    )
    group.add_argument(
        "--label-smoothing",
        type=bounded_number(float, 0, 1),
        default=0.0,
        help="share of each target spread over all classes; 0 in the paper",
    )


def add_optimization_flags(group) -> None:
    group.add_argument("--epochs", type=bounded_number(int, 1), default=100, help="epochs in all")
    group.add_argument(
        "-b",
        "--batch-size",
        metavar="N",
        type=bounded_number(int, 1),
        default=256,
        help="images in a step, over all processes",
    )
    group.add_argument(
        "--grad-accumulation",
        metavar="N",
        type=bounded_number(int, 1),
        default=1,
        help="parts in which a process takes its share of a step, to need less memory",
    )
    group.add_argument("--momentum", type=bounded_number(float, 0, 1), default=0.9, help="of SGD")
    group.add_argument(
        "--weight-decay",
        type=bounded_number(float, 0),
        default=1e-4,
        help="on every trainable tensor",
    )
    group.add_argument(
        "--ema",
        metavar="DECAY",
        type=bounded_number(float, 0, 0.999999),
        default=0.0,
        help="evaluate and export an exponential moving average of the weights too, of this "
        "decay a step (0.9999, say); 0: none, as in the paper",
    )


def add_schedule_flags(group) -> None:
    group.add_argument(
        "--lr", type=bounded_number(float, 0), default=0.1, help="highest learning rate"
    )
    group.add_argument(
        "--lr-schedule",
        choices=LR_SCHEDULES,
        default="step",
        help="fall at the milestones, as in the paper; or along a half cosine, to 0 at the end",
    )
    group.add_argument(
        "--milestones",
        type=milestones,
        default="30,60,90",
        help="finished epochs after which the learning rate falls",
    )
    group.add_argument(
        "--lr-factor",
        type=bounded_number(float, 0, 1),
        default=0.1,
        help="by which it is multiplied there",
    )
    group.add_argument(
        "--warmup-epochs",
        metavar="N",
        type=bounded_number(float, 0),
        default=0.0,
        help="epochs over which it rises linearly at first; 0 in the paper",
    )


def add_run_flags(group) -> None:
    group.add_argument(
        "--seed", type=bounded_number(int, 0, 2**62), default=1, help="of random numbers"
    )
    group.add_argument(
        "--device", default="auto", help="auto (a GPU where there is one), cpu, cuda, cuda:1, …"
    )
    group.add_argument(
        "--dtype",
        choices=DTYPES,
        default="float32",
        help="of convolutions and matrix products; weights and loss are float32",
    )
    group.add_argument(
        "--compile", action="store_true", help="compile the network by torch.compile"
    )
    group.add_argument(
        "--resume",
        metavar="FILE",
        default="",
        help="checkpoint to go on from; auto: the one in --save, if there is one",
    )


def add_output_flags(group) -> None:
    group.add_argument(
        "--save",
        metavar="DIR",
        type=Path,
        required=True,
        help="folder for checkpoint, log and TensorBoard events",
    )
    group.add_argument(
        "--checkpoint-minutes",
        metavar="MINUTES",
        type=bounded_number(float, 0),
        default=15.0,
        help="time between checkpoints within an epoch; 0: one at every step",
    )
    group.add_argument(
        "--log-interval",
        metavar="STEPS",
        type=bounded_number(int, 1),
        default=50,
        help="steps between readings of the loss, each of which waits for the device",
    )
    group.add_argument(
        "--export",
        metavar="FILE",
        type=Path,
        help="file for the backbone's weights at the end, which torchvision and timm load; "
        "safetensors if it ends so",
    )


def milestones(text: str) -> tuple[int, ...]:
    """The argparse type of `30,60,90`; empty for none."""
    words = [word for word in text.strip("[]").split(",") if word.strip()]
    if not all(word.strip().isdecimal() for word in words):
        raise argparse.ArgumentTypeError(f"expected epochs such as 30,60,90, got {text!r}")
    return tuple(int(word) for word in words)
