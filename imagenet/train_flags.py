"""Command-line flags of `train.py`."""

import argparse
from pathlib import Path

from common.command_line import DTYPES, ArgumentParser, bounded_number
from presets import AUGMENTATIONS
from resnet import NETWORKS
from schedule import LR_SCHEDULES
from shared_flags import add_batch_size, add_device, add_val_labels, add_workers
from synergy import DIRECTIONS, METHODS

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
    add_optimization_flags(parser.add_argument_group("optimization"))
    add_schedule_flags(parser.add_argument_group("learning rate"))
    add_run_flags(parser.add_argument_group("run"))
    add_output_flags(parser.add_argument_group("output"))
    return parser


def add_data_flags(group) -> None:
    group.add_argument(
        "data", metavar="DATA", type=Path, help="folder with train/<class>/ and val/<class>/"
    )
    add_val_labels(group)
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
        choices=AUGMENTATIONS,
        help="crop: resize to a square and take a random crop; resized-crop: crop a random area "
        "and aspect ratio, then resize; both flip at random (default: resized-crop for resnet152, "
        "otherwise crop)",
    )
    add_workers(group, most=8)
    group.add_argument(
        "--prefetch",
        metavar="N",
        type=bounded_number(int, 1, 1024),
        default=4,
        help="batches prefetched per worker",
    )


def add_model_flags(group) -> None:
    group.add_argument("-a", "--arch", choices=NETWORKS, default="resnet18", help="network")
    group.add_argument(
        "--method",
        choices=METHODS,
        default="dks",
        help="baseline: no branches; ds: branches with cross-entropy losses; dks: branches with "
        "cross-entropy and synergy losses",
    )
    group.add_argument(
        "--direction",
        choices=DIRECTIONS,
        default="bidirectional",
        help="in dks, bidirectional: all classifiers teach each other; top-down: deeper ones teach "
        "shallower ones; bottom-up: the reverse",
    )
    group.add_argument(
        "--aux-weight",
        metavar="W",
        type=NON_NEGATIVE,
        default=1.0,
        help="weight of the branches' cross-entropy losses",
    )
    group.add_argument(
        "--synergy-weight",
        metavar="W",
        type=NON_NEGATIVE,
        default=1.0,
        help="weight of the synergy loss",
    )
    group.add_argument(
        "--label-smoothing",
        metavar="EPS",
        type=FRACTION,
        default=0.0,
        help="label smoothing of the cross-entropy losses (default: 0, as in the paper)",
    )


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
    group.add_argument(
        "--milestones",
        metavar="EPOCHS",
        type=milestones,
        default="30,60,90",
        help="finished epochs after which the learning rate is decayed",
    )
    group.add_argument(
        "--lr-factor",
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
    add_device(group)
    group.add_argument(
        "--dtype",
        choices=DTYPES,
        default="float32",
        help="data type of convolutions and matrix products; weights and loss stay float32",
    )
    group.add_argument("--compile", action="store_true", help="use torch.compile")
    group.add_argument(
        "--resume",
        metavar="FILE",
        default="",
        help="checkpoint to resume from; auto: the checkpoint in --save, if there is one",
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
    group.add_argument(
        "--export",
        metavar="FILE",
        type=Path,
        help="write the backbone's weights for torchvision and timm at the end; .safetensors or "
        "torch.save's format",
    )


def milestones(text: str) -> tuple[int, ...]:
    """Parse `30,60,90`, an argparse type; an empty string means no milestones."""
    words = [word for word in text.strip("[]").split(",") if word.strip()]
    if not all(word.strip().isdecimal() for word in words):
        raise argparse.ArgumentTypeError(f"expected epochs such as 30,60,90, got {text!r}")
    return tuple(int(word) for word in words)
