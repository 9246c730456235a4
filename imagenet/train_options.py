"""Options of a training run, and which of them a resumed run may change."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from common.command_line import DTYPES, UserError, require_file, require_writable_file
from common.run_folder import CHECKPOINT
from train_flags import build_parser

# Options that do not affect the result. `epochs` joins them unless the schedule depends on it.
RESUME_MAY_CHANGE = (
    *("data", "val_labels", "workers", "prefetch", "device", "compile"),
    *("save", "resume", "checkpoint_minutes", "log_interval", "export"),
)


@dataclass(frozen=True)
class Config:
    """Every option of `train.py`, under the name of its flag."""

    data: Path
    val_labels: Path | None
    image_size: int  # pixels
    augmentation: str
    workers: int  # per process
    prefetch: int  # batches per worker
    arch: str
    method: str
    direction: str
    aux_weight: float
    synergy_weight: float
    label_smoothing: float
    epochs: int
    batch_size: int  # images, over all processes
    grad_accumulation: int  # micro-batches per step and process
    lr: float
    lr_schedule: str
    milestones: tuple[int, ...]  # finished epochs
    lr_factor: float
    warmup_epochs: float
    momentum: float
    weight_decay: float
    ema: float  # decay per step; 0: no average
    seed: int
    device: str
    dtype: str  # of convolutions and matrix products
    compile: bool
    resume: str  # a path, `auto`, or empty
    save: Path
    checkpoint_minutes: float
    log_interval: int  # steps
    export: Path | None

    def to_dict(self) -> dict:
        """Return the options as plain values, for a checkpoint."""
        values = asdict(self) | {"milestones": list(self.milestones)}
        return {key: str(v) if isinstance(v, Path) else v for key, v in values.items()}

    def resume_options(self) -> dict:
        """Return the options that must not change when a run is resumed."""
        free = RESUME_MAY_CHANGE if self.lr_schedule == "cosine" else (*RESUME_MAY_CHANGE, "epochs")
        return {key: value for key, value in self.to_dict().items() if key not in free}


def parse(argv: Sequence[str] | None = None) -> Config:
    """Parse and check the command line.

    Args:
        argv: arguments; those of this process if None.

    Raises:
        UserError: an argument is unknown or invalid, or arguments contradict each other.
    """
    values = vars(build_parser().parse_args(argv))
    if values["augmentation"] is None:
        values["augmentation"] = "resized-crop" if values["arch"] == "resnet152" else "crop"
    # One name for each dtype: `half` and `float16` are the same option when a run is resumed.
    values["dtype"] = DTYPES[values["dtype"]]
    config = Config(**values)
    if config.lr_schedule == "cosine" and config.warmup_epochs >= config.epochs:
        raise UserError(
            f"--warmup-epochs {config.warmup_epochs:g} with --epochs {config.epochs}: no epochs "
            "left for the cosine schedule; use fewer warmup epochs"
        )
    if config.resume not in ("", "auto"):
        require_file("--resume", Path(config.resume), "a checkpoint")
    if config.export and config.export.name == CHECKPOINT:
        raise UserError(
            f"--export {config.export}: reserved for the checkpoint of a run; choose another name"
        )
    # The folder given as --save is created if it does not exist.
    if config.export and config.export.resolve().parent != config.save.resolve():
        require_writable_file("--export", config.export)
    return config
