"""The options of `main.py`, parsed and checked."""

from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path

from common.command_line import DTYPES, UserError, require_file, require_writable_file
from data import IMAGE_SIZES
from flags import build_parser
from wide_resnet import blocks_per_group, group_channels


@dataclass(frozen=True)
class Config:
    """Every option of `main.py`, named like its flag."""

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
    batch_size: int  # total over all processes
    lr: float
    epoch_step: tuple[int, ...]  # 1-based epochs
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

    def to_dict(self) -> dict:
        """Return the options as JSON-serializable values."""
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        values["epoch_step"] = list(self.epoch_step)
        return {key: str(v) if isinstance(v, Path) else v for key, v in values.items()}

    def resume_options(self) -> dict:
        """Return the options that must not change when a run is resumed."""
        return {key: value for key, value in self.to_dict().items() if key in RESUME_MUST_MATCH}


# Options that do not affect the numbers of an epoch.
RESUME_MAY_CHANGE = (
    "dataroot", "nthread", "epochs", "device", "test_every", "resume", "save", "evaluate", "export",
)  # fmt: skip
RESUME_MUST_MATCH = tuple(
    field.name for field in fields(Config) if field.name not in RESUME_MAY_CHANGE
)


def parse(argv: Sequence[str] | None = None) -> Config:
    """Parse the command line, by default that of the process.

    Raises:
        UserError: an option is unknown or invalid, or options contradict each other.
    """
    options = vars(build_parser().parse_args(argv))
    gpus, gpu = options.pop("ngpu"), options.pop("gpu_id")
    if gpus > 1:
        raise UserError(
            f"--ngpu {gpus}: to use several GPUs, run torchrun --nproc_per_node {gpus} main.py …"
        )
    if gpu is not None:
        if options["device"] != "auto":
            raise UserError("--gpu_id and --device can't be combined; give only one of them")
        options["device"] = f"cuda:{gpu}"
    options["dtype"] = DTYPES[options["dtype"]]
    native_size = IMAGE_SIZES[options["dataset"]]
    options["image_size"] = options["image_size"] or native_size
    config = Config(**options)
    check_network(config, native_size)
    check_files(config)
    return config


def check_network(config: Config, native_size: int) -> None:
    """Raise `UserError` if the network or the image size is not possible."""
    if config.dataset != "folder" and config.image_size != native_size:
        raise UserError(
            f"--image-size {config.image_size}: images of {config.dataset} have {native_size} "
            "pixels; leave the option out"
        )
    try:
        blocks_per_group(config.depth)
        group_channels(config.width)
    except ValueError as error:
        raise UserError(f"--{error}") from error  # begins with `depth` or `width`


def check_files(config: Config) -> None:
    """Raise `UserError` if a file is missing or exists already, or a required option is missing."""
    if config.evaluate and config.resume in ("", "auto"):
        raise UserError("--evaluate requires --resume FILE, the checkpoint to evaluate")
    if config.resume == "auto" and config.save is None:
        raise UserError("--resume auto requires --save DIR, the folder with the checkpoint")
    if config.resume not in ("", "auto"):
        require_file("--resume", Path(config.resume), "a checkpoint")
    if config.export is not None:
        if config.export.exists():
            raise UserError(f"--export {config.export}: exists already; choose another name")
        require_writable_file("--export", config.export)
