"""The options of `main.py`, with the recipe of the released code."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from common.command_line import (
    FREE,
    LOCAL,
    ArgumentParser,
    UserError,
    build_parser,
    choice,
    number,
    start_epochs,
)
from common.distributed import available_cores
from common.options import (
    AMOUNT,
    COUNT,
    FRACTION,
    OutputConfig,
    TrainingConfig,
    check_training,
    data_flag,
    model_flag,
    refuse_unused,
    run_flag,
    training_flag,
)
from common.schedule import scaled_milestones

IMAGE_SIZES = {"CIFAR100": 32, "CIFAR10": 32, "digits": 8, "folder": 32}  # side, in pixels

# The released recipe of WRN-28-10, and that of He et al. (2016) for a ResNet.
RECIPES = {
    "wrn": {"depth": 28, "width": 10.0, "epochs": 200, "lr_factor": 0.2, "weight_decay": 5e-4},
    "resnet": {"depth": 32, "width": 1.0, "epochs": 164, "lr_factor": 0.1, "weight_decay": 1e-4},
}
# In percent of the epochs, counted from 1: 60, 120 and 160 of 200; 82 and 123 of 164.
DECAY_PERCENT = {"wrn": (30, 60, 80), "resnet": (50, 75)}


@dataclass(frozen=True)
class Config(OutputConfig, TrainingConfig):
    """Every option of `main.py`. None: the recipe of the network decides."""

    dataset: str = data_flag(
        "CIFAR100", choice(*IMAGE_SIZES), "CIFAR100, CIFAR10, digits (included) or folder"
    )
    dataroot: Path = data_flag(
        Path("data"),
        Path,
        "of the CIFAR files, downloaded if missing, or a folder with train/CLASS/ and val/CLASS/",
        role=FREE,
    )
    image_size: int | None = data_flag(
        None, number(int, 8, 1024), "side of the images of --dataset folder (default: 32)"
    )
    workers: int = data_flag(
        min(4, available_cores()), COUNT, "threads to decode images", "-j", "--nthread", role=LOCAL
    )
    arch: str = model_flag(
        "wrn", choice("wrn", "resnet"), "wrn: wide ResNet; resnet: He et al.'s for CIFAR", "-a"
    )
    depth: int | None = model_flag(
        None, number(int, 1, 1206), "6n + 4 of a wrn (default: 28), 6n + 2 of a resnet (32)"
    )
    width: float | None = model_flag(
        None, number(float, 0, 64), "multiplier of a wrn's channels (default: 10)"
    )
    dropout: bool = model_flag(False, bool, "dropout with probability 0.3 in each block of a wrn")
    epochs: int | None = training_flag(
        None, COUNT, "number of epochs (default: 200; resnet: 164)", role=FREE
    )
    batch_size: int = training_flag(128, COUNT, "total batch size over all processes", "-b")
    lr_factor: float | None = training_flag(
        None, FRACTION, "decay factor at milestones (default: 0.2; resnet: 0.1)", "--lr_decay_ratio"
    )
    weight_decay: float | None = training_flag(
        None, AMOUNT, "of all parameters (default: 5e-4; resnet: 1e-4)"
    )
    evaluate: bool = run_flag(False, bool, "test --resume PATH instead of training", role=LOCAL)

    @property
    def network_name(self) -> str:
        width = "" if self.arch == "resnet" else f"-{self.width:g}"
        return f"{'ResNet' if self.arch == 'resnet' else 'WRN'}-{self.depth}{width}"


def make_parser() -> ArgumentParser:
    """Return the parser of `main.py`. Flags of the released code keep their spelling."""
    text = "Train a residual network for small images with DKS, test one, or classify images."
    parser = build_parser(Config, "main.py", text)
    released = parser.add_argument_group("released spellings")
    released.add_argument(
        "--epoch_step",
        dest="milestones",
        metavar="EPOCHS",
        type=start_epochs,
        help="epochs, counted from 1, at whose start the learning rate is decayed (default: "
        "[60,120,160] of 200; resnet: [82,123] of 164; in proportion for other --epochs)",
    )
    gpu = {"dest": "device", "type": "cuda:{}".format, "metavar": "N"}
    released.add_argument("--gpu_id", **gpu, help="same as --device cuda:N")
    released.add_argument("--model_path", dest="resume", metavar="PATH", help="same as --resume")
    released.add_argument("--ngpu", type=number(int, 1), metavar="N", help="use torchrun instead")
    return parser


def parse(argv: Sequence[str] | None = None) -> Config:
    """Return the options of the command line. Raise `UserError` if one is unknown or invalid."""
    given = make_parser().parse_given(argv)
    if (gpus := given.pop("ngpu", 1)) > 1:
        raise UserError(f"--ngpu {gpus}: to use several GPUs, run torchrun --nproc_per_node {gpus}")
    config = Config(**given, given=frozenset(given))
    task = "--evaluate" if config.evaluate else "--predict" if config.predict else ""
    if task and config.checkpoint is None:
        raise UserError(f"{task} requires --resume PATH, a checkpoint or the folder of a run")
    if config.predict and (config.evaluate or config.export):
        raise UserError("--predict can't be combined with --evaluate or --export")
    training = {*vars(TrainingConfig())} - {"device", "dtype", "batch_size", "resume"}
    unused = (training if task else {"json"}) | (set() if config.evaluate else {"per_class"})
    refuse_unused(config, unused, task or "training")
    config.check_outputs(created=config.save)
    return config


def with_recipe(config: Config) -> Config:
    """Fill in what was neither given nor taken from a checkpoint, and check it."""
    if config.arch == "resnet" and (config.dropout or config.width not in (None, 1)):
        flag = "--dropout" if config.dropout else f"--width {config.width:g}"
        raise UserError(f"{flag}: only for --arch wrn; leave it out")
    native = IMAGE_SIZES[config.dataset]
    if config.dataset != "folder" and config.image_size not in (None, native):
        raise UserError(
            f"--dataset {config.dataset}: its images have {native} pixels, not {config.image_size}"
        )
    recipe = RECIPES[config.arch] | {"image_size": native}
    config = replace(config, **{k: v for k, v in recipe.items() if getattr(config, k) is None})
    if config.milestones is None:
        milestones = scaled_milestones(DECAY_PERCENT[config.arch], config.epochs, offset=1)
        config = replace(config, milestones=milestones)
    check_training(config)
    return config
