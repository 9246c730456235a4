"""The command line, checked, as one frozen `Config`."""

from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path

from common.command_line import DTYPES, UserError, require_file, require_writable_file
from data import IMAGE_SIZES
from flags import build_parser
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

    def resume_options(self) -> dict:
        """The options that a resumed run must share with the run it resumes."""
        return {key: value for key, value in self.plain().items() if key in RESUME_MUST_MATCH}


# Options on which the numbers depend that a run of so many epochs ends with.
RESUME_MAY_CHANGE = (
    "dataroot", "nthread", "epochs", "device", "test_every", "resume", "save", "evaluate", "export",
)  # fmt: skip
RESUME_MUST_MATCH = tuple(
    field.name for field in fields(Config) if field.name not in RESUME_MAY_CHANGE
)


def parse(argv: Sequence[str] | None = None) -> Config:
    """The command line as a `Config`; `argv` defaults to the process's own.

    Raises:
        UserError: an option is unknown or malformed, or options contradict each other.
    """
    options = vars(build_parser().parse_args(argv))
    gpus, gpu = options.pop("ngpu"), options.pop("gpu_id")
    if gpus > 1:
        raise UserError(
            f"--ngpu {gpus}: start a process a GPU by torchrun --nproc_per_node {gpus} main.py …"
        )
    if gpu is not None:
        if options["device"] != "auto":
            raise UserError("--gpu_id and --device both choose the device; give one of them")
        options["device"] = f"cuda:{gpu}"
    options["dtype"] = str(DTYPES[options["dtype"]]).removeprefix("torch.")  # half is float16
    own_size = IMAGE_SIZES[options["dataset"]]
    options["image_size"] = options["image_size"] or own_size
    if options["dataset"] != "folder" and options["image_size"] != own_size:
        raise UserError(f"--image-size: {options['dataset']} has images of {own_size} pixels only")
    try:
        blocks_per_group(options["depth"])
        group_channels(options["width"])
    except ValueError as error:
        raise UserError(f"--{error}") from error  # begins with `depth` or `width`
    return check_files(Config(**options))


def check_files(config: Config) -> Config:
    """Refuse options about files that can't go together."""
    if config.evaluate and config.resume in ("", "auto"):
        raise UserError("--evaluate needs --resume FILE, the checkpoint to evaluate")
    if config.resume == "auto" and config.save is None:
        raise UserError("--resume auto looks for the checkpoint in --save DIR; give that too")
    if config.resume not in ("", "auto"):
        require_file("--resume", Path(config.resume), "a checkpoint")
    if config.export is not None:
        if config.export.exists():
            raise UserError(f"--export {config.export}: already there; choose another name")
        require_writable_file("--export", config.export)
    return config
