"""The command line, checked, as one frozen `Config`."""

import argparse
import json
from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path

from command_line import DTYPES, Parser, Refused, number, require_file_name
from data import IMAGE_SIZES
from run_folder import CHECKPOINT
from synergy import DIRECTIONS, METHODS
from wide_resnet import blocks_per_group, group_channels


@dataclass(frozen=True)
class Config:
    """Every option of `main.py`, under the name of its flag."""

    dataset: str
    dataroot: Path
    image_size: int
    nthread: int
    depth: int
    width: float
    dropout: bool
    method: str
    direction: str
    aux_weight: float
    synergy_weight: float
    epochs: int
    batch_size: int  # total over processes
    lr: float
    epoch_step: tuple[int, ...]
    lr_decay_ratio: float
    weight_decay: float
    seed: int
    dtype: str
    device: str
    test_every: int
    save: Path | None
    resume: str
    evaluate: bool
    export: Path | None

    @property
    def network(self) -> str:
        return f"WRN-{self.depth}-{self.width:g}"

    def plain(self) -> dict:
        """The options as JSON has them."""
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        values["epoch_step"] = list(self.epoch_step)
        return {key: str(v) if isinstance(v, Path) else v for key, v in values.items()}

    def decisive(self) -> dict:
        """The options that a resumed run must share with the run it resumes."""
        return {key: value for key, value in self.plain().items() if key in DECISIVE}


# Options on which the numbers depend that a run of so many epochs ends with.
FREE = (
    "dataroot", "nthread", "epochs", "device", "test_every", "resume", "save", "evaluate", "export",
)  # fmt: skip
DECISIVE = tuple(field.name for field in fields(Config) if field.name not in FREE)


def parse(argv: Sequence[str] | None = None) -> Config:
    """The command line as a `Config`; `argv` defaults to the process's own.

    Raises:
        Refused: an option is unknown or malformed, or options contradict each other.
    """
    options = vars(build_parser().parse_args(argv))
    gpus, gpu = options.pop("ngpu"), options.pop("gpu_id")
    if gpus > 1:
        raise Refused(
            f"--ngpu {gpus}: start a process a GPU by torchrun --nproc_per_node {gpus} main.py …"
        )
    if gpu is not None:
        if options["device"] != "auto":
            raise Refused("--gpu_id and --device both choose the device; give one of them")
        options["device"] = f"cuda:{gpu}"
    options["dtype"] = str(DTYPES[options["dtype"]]).removeprefix("torch.")  # half is float16
    own_size = IMAGE_SIZES[options["dataset"]]
    options["image_size"] = options["image_size"] or own_size
    if options["dataset"] != "folder" and options["image_size"] != own_size:
        raise Refused(f"--image-size: {options['dataset']} has images of {own_size} pixels only")
    try:
        blocks_per_group(options["depth"])
        group_channels(options["width"])
    except ValueError as error:
        raise Refused(f"--{error}") from error  # begins with `depth` or `width`
    return check_files(Config(**options))


def check_files(config: Config) -> Config:
    """Refuse options about files that can't go together."""
    if config.evaluate and config.resume in ("", "auto"):
        raise Refused("--evaluate needs --resume FILE, the checkpoint to evaluate")
    if config.resume == "auto" and config.save is None:
        raise Refused("--resume auto looks for the checkpoint in --save DIR; give that too")
    if config.export is not None:
        if config.export.exists():
            raise Refused(f"--export {config.export}: already there; choose another name")
        require_file_name("--export", config.export)
        if config.save and config.export == config.save / CHECKPOINT:
            raise Refused(
                f"--export {config.export}: the run's own checkpoint; choose another name"
            )
    return config


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
        type=number(int, 8, 1024),
        help="side in pixels to which the images of a folder are resized (32 if not given)",
    )
    data.add_argument(
        "--nthread", type=number(int, 1, 256), default=4, help="threads that decode a folder"
    )
    model = parser.add_argument_group("model")
    model.add_argument("--depth", type=number(int, 1, 1206), default=28, help="6n + 4 layers")
    model.add_argument(
        "--width", type=number(float, 0, 64), default=10.0, help="factor on 16/32/64 channels"
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
    weight = number(float, 0)
    method.add_argument(
        "--aux-weight", type=weight, default=1.0, help="weight of the branches' cross-entropies"
    )
    method.add_argument(
        "--synergy-weight", type=weight, default=1.0, help="weight of the synergy loss"
    )
    optimization = parser.add_argument_group("optimization")
    optimization.add_argument("--epochs", type=number(int, 1), default=200, help="epochs in all")
    optimization.add_argument(
        "--batch_size", type=number(int, 1), default=128, help="images a step, over all processes"
    )
    optimization.add_argument("--lr", type=number(float, 0), default=0.1, help="learning rate")
    optimization.add_argument(
        "--epoch_step",
        type=milestones,
        default="[60,120,160]",
        help="epochs, counted from 1, at whose start the learning rate falls",
    )
    optimization.add_argument(
        "--lr_decay_ratio", type=number(float, 0), default=0.2, help="factor by which it falls"
    )
    optimization.add_argument(
        "--weight_decay", type=number(float, 0), default=5e-4, help="on every trainable tensor"
    )


def add_run_and_output(parser: argparse.ArgumentParser) -> None:
    run = parser.add_argument_group("run")
    run.add_argument("--seed", type=number(int, 0, 2**62), default=1, help="of all random numbers")
    run.add_argument(
        "--dtype", choices=DTYPES, default="float32", help="what the network computes in"
    )
    run.add_argument("--device", default="auto", help="cpu, cuda, cuda:N; auto: a GPU if any")
    run.add_argument("--gpu_id", type=number(int, 0), help="the same as --device cuda:N")
    run.add_argument(
        "--ngpu", type=number(int, 1), default=1, help="more than 1 tells how to use torchrun"
    )
    run.add_argument(
        "--test_every",
        type=number(int, 1),
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
