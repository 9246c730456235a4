"""Groups of flags that mean the same in every script. Does not import torch."""

from argparse import SUPPRESS
from pathlib import Path

from .command_line import DTYPES, bounded_number

# The keys of `synergy.METHODS` and `synergy.DIRECTIONS`, which would take seconds to import.
METHODS = ("baseline", "ds", "dks")
DIRECTIONS = ("bidirectional", "top-down", "bottom-up")


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


# Values of the options of `add_regularization_flags` in checkpoints and logs that lack them.
NO_REGULARIZATION = {"label_smoothing": 0.0, "mixup": 0.0, "cutmix": 0.0}


def add_regularization_flags(group) -> None:
    group.add_argument(
        "--label-smoothing",
        metavar="EPS",
        type=bounded_number(float, 0, 1),
        default=0.0,
        help="label smoothing of the cross-entropy losses (default: 0, as in the paper)",
    )
    for flag, text in (
        ("--mixup", "mix the pixels of pairs of training images, and their labels"),
        ("--cutmix", "paste a rectangle of another image into each, and mix their labels"),
    ):
        group.add_argument(
            flag,
            metavar="ALPHA",
            type=bounded_number(float, 0, 1000),
            default=0.0,
            help=f"{text}, with weights from Beta(ALPHA, ALPHA); with both flags, one of them at "
            "random for each batch (default: 0, off, as in the paper)",
        )


def add_device_flags(group) -> None:
    group.add_argument(
        "--dtype",
        choices=DTYPES,
        default="float32",
        help="dtype of the forward pass under autocast; parameters are float32",
    )
    device = group.add_mutually_exclusive_group()
    device.add_argument(
        "--device",
        default="auto",
        help="cpu, cuda or cuda:N; auto: a GPU if available, otherwise the CPU",
    )
    device.add_argument(
        "--gpu_id",
        dest="device",
        metavar="N",
        type=gpu_device,
        default=SUPPRESS,
        help="same as --device cuda:N",
    )
    group.add_argument(
        "--ngpu",
        metavar="N",
        type=bounded_number(int, 1),
        default=1,
        help="number of GPUs; for more than 1, use torchrun instead",
    )


def add_training_flags(group) -> None:
    group.add_argument(
        "--compile",
        action="store_true",
        help="train with torch.compile; evaluation is not compiled",
    )
    group.add_argument(
        "--sync-bn",
        action="store_true",
        help="with several GPUs, compute the statistics of batch normalization over the whole "
        "batch",
    )


def gpu_device(text: str) -> str:
    return f"cuda:{bounded_number(int, 0)(text)}"


def add_prediction_flags(group) -> None:
    group.add_argument(
        "--predict",
        metavar="IMAGE",
        type=Path,
        nargs="+",
        help="print the five most likely classes of these images instead of training",
    )
    group.add_argument(
        "--json", metavar="FILE", type=Path, help="also write the results to this file"
    )
