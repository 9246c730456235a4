"""The options of `train.py` and of `main.py`."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from common.command_line import FREE, LOCAL, ArgumentParser, UserError, build_parser, choice, number
from common.distributed import available_cores
from common.options import (
    COUNT,
    DeviceConfig,
    OutputConfig,
    TrainingConfig,
    check_training,
    data_flag,
    model_flag,
    output_flag,
    refuse_unused,
    run_flag,
)
from common.schedule import scaled_milestones
from resnet import NETWORKS

DECAY_PERCENT = (30, 60, 90)  # of the epochs: the paper's milestones are 30, 60 and 90 of 100


@dataclass(frozen=True)
class DataConfig(DeviceConfig):
    """The options that both programs share."""

    data: Path | None = data_flag(
        None,
        Path,
        "folder with val/CLASS/ or test/CLASS/ and, for training, train/CLASS/",
        "--dataroot",
        role=FREE,
    )
    val_labels: Path | None = data_flag(
        None, Path, "for a val/ without classes: a CSV from Kaggle, or 'filename wnid'", role=FREE
    )
    workers: int = data_flag(
        min(8, available_cores()),
        number(int, 0, 1024),
        "data-loading workers per process; 0 loads in the main process",
        "-j",
        role=LOCAL,
    )


@dataclass(frozen=True)
class Config(TrainingConfig, DataConfig):
    """Every option of `train.py`. None: the network or the number of epochs decides."""

    # From 33 pixels on, the last stage has 2x2 positions; batch normalization of a single image
    # fails at 1x1.
    image_size: int = data_flag(
        224, number(int, 33, 4096), "side of the crop; images are resized to 256/224 of it first"
    )
    augmentation: str | None = data_flag(
        None,
        choice("crop", "resized-crop"),
        "crop: a random crop of the resized image; resized-crop: a random area, resized (default: "
        "resized-crop for resnet152, otherwise crop)",
    )
    cache: Path | None = data_flag(
        None,
        Path,
        "folder of decoded images, made if it is not there: 0.2 MB an image of 224 pixels",
        role=LOCAL,
    )
    arch: str = model_flag("resnet18", choice(*NETWORKS), f"network: {', '.join(NETWORKS)}", "-a")
    init: str = model_flag(
        "", str, "start the backbone from this checkpoint, export or name of torchvision's weights"
    )


@dataclass(frozen=True)
class EvaluationConfig(OutputConfig, DataConfig):
    """Every option of `main.py`. None: the checkpoint decides, otherwise the released code."""

    image_size: int | None = data_flag(
        None,
        number(int, 8, 4096),
        "side of the center crop; images are resized to 256/224 of it first (default: that of "
        "training, if it is known, otherwise 224)",
    )
    batch_size: int = run_flag(256, COUNT, "total batch size over all processes", "-b")
    arch: str | None = model_flag(
        None,
        choice(*NETWORKS),
        f"network (default: that of the weights, or resnet18): {', '.join(NETWORKS)}",
        "-a",
    )
    model_path: Path | None = model_flag(
        None,
        Path,
        "checkpoint to load, the folder of a run, or an exported file or folder",
        "--resume",
    )
    pretrained: bool = model_flag(False, bool, "use the weights that the paper's authors released")
    branches: bool = model_flag(False, bool, "also test the branches and the ensemble")
    print_freq: int = run_flag(10, COUNT, "batches between updates of the progress bar", "-p")
    export: Path | None = output_flag(
        None,
        Path,
        "write the backbone: to a file that ends in .pth, .pt, .bin or .safetensors, or to a new "
        "folder for timm and the Hugging Face Hub, with a model card",
    )


def make_parser(config_class: type) -> ArgumentParser:
    """Return the parser of `train.py` or `main.py`. Released flags keep their spelling."""
    task = "Test a network on ImageNet's validation set, classify images, or export the network."
    if config_class is Config:
        task = "Train a ResNet with deeply-supervised knowledge synergy on a folder of images."
    parser = build_parser(config_class, "train.py" if config_class is Config else "main.py", task)
    # Without a default of its own, argparse would convert the marker SUPPRESS to a path.
    about = {"metavar": "DATA", "default": None, "help": "same as --data"}
    parser.add_argument("folder", type=Path, nargs="?", **about)
    return parser


def parse_given(config_class: type, argv: Sequence[str] | None) -> dict:
    """Return the options of the command line, with the data folder under `data`."""
    given = make_parser(config_class).parse_given(argv)
    folder = given.pop("folder", None)
    if folder and given.setdefault("data", folder) != folder:
        raise UserError(f"two data folders, {given['data']} and {folder}; give one of them")
    return given


def parse_training(argv: Sequence[str] | None = None) -> Config:
    """Return the options of `train.py`. Raise `UserError` if one is unknown or invalid."""
    given = parse_given(Config, argv)
    return Config(**given, given=frozenset(given))


def with_recipe(config: Config) -> Config:
    """Fill in what was neither given nor taken from a checkpoint, and check it."""
    if config.data is None:
        raise UserError("no data; give the folder that contains train/ and val/")
    if config.augmentation is None:
        kind = "resized-crop" if config.arch == "resnet152" else "crop"
        config = replace(config, augmentation=kind)
    if config.milestones is None:
        config = replace(config, milestones=scaled_milestones(DECAY_PERCENT, config.epochs))
    if config.cache and config.augmentation != "crop":
        raise UserError("--cache can't keep random areas; use --augmentation crop, or no cache")
    check_training(config)
    return config


def parse_evaluation(argv: Sequence[str] | None = None) -> EvaluationConfig:
    """Return the options of `main.py`. Raise `UserError` if they are invalid or contradictory."""
    given = parse_given(EvaluationConfig, argv)
    config = EvaluationConfig(**given, given=frozenset(given))
    if bool(config.model_path) == config.pretrained:
        raise UserError("give one source of weights: --model_path PATH or --pretrained")
    tasks = [name for name in ("data", "export", "predict") if getattr(config, name)]
    if len(tasks) != 1:
        raise UserError(
            "give one of these: the folder that contains val/, --export PATH, --predict IMAGE …"
        )
    tests_only = {"branches", "per_class", "val_labels"}
    unused = {"export": tests_only | {"json", "image_size"}, "predict": tests_only}
    refuse_unused(config, unused.get(tasks[0], set()), f"--{tasks[0]}")
    config.check_outputs()
    return config
