"""The options of a training run, checked; which of them a resumed run may change."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from common.command_line import DTYPES, UserError, require_file, require_writable_file
from common.run_folder import CHECKPOINT
from train_flags import build_parser

# What a resumed run may change. The places of things, and how fast they go; and the number of
# epochs under a schedule that does not depend on it.
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
    workers: int  # for each process of the run
    prefetch: int  # batches, for each worker
    arch: str
    method: str
    direction: str
    aux_weight: float
    synergy_weight: float
    label_smoothing: float
    epochs: int
    batch_size: int  # images, over all processes
    grad_accumulation: int  # parts of a process's share of a batch
    lr: float
    lr_schedule: str
    milestones: tuple[int, ...]  # finished epochs
    lr_factor: float
    warmup_epochs: float
    momentum: float
    weight_decay: float
    ema: float  # decay; 0: no average
    seed: int
    device: str
    dtype: str  # of convolutions and matrix products
    compile: bool
    resume: str  # a path, `auto`, or empty
    save: Path
    checkpoint_minutes: float
    log_interval: int  # steps
    export: Path | None

    def plain(self) -> dict:
        """The options as plain values, for a file."""
        values = asdict(self) | {"milestones": list(self.milestones)}
        return {key: str(v) if isinstance(v, Path) else v for key, v in values.items()}

    def resume_options(self) -> dict:
        """The options that a resumed run must share with the run it resumes."""
        free = RESUME_MAY_CHANGE if self.lr_schedule == "cosine" else (*RESUME_MAY_CHANGE, "epochs")
        return {key: value for key, value in self.plain().items() if key not in free}


def parse(argv: Sequence[str] | None = None) -> Config:
    """Read the command line, the process's own if `argv` is None.

    Raises:
        UserError: a flag is unknown or wrong, or flags contradict each other.
    """
    values = vars(build_parser().parse_args(argv))
    if values["augmentation"] is None:
        values["augmentation"] = "resized-crop" if values["arch"] == "resnet152" else "crop"
    values["dtype"] = str(DTYPES[values["dtype"]]).removeprefix("torch.")  # one name of several
    config = Config(**values)
    if config.lr_schedule == "cosine" and config.warmup_epochs >= config.epochs:
        raise UserError(
            f"--warmup-epochs {config.warmup_epochs:g} of --epochs {config.epochs}: nothing is "
            "left for the cosine; use fewer"
        )
    if config.resume not in ("", "auto"):
        require_file("--resume", Path(config.resume), "a checkpoint")
    if config.export and config.export.name == CHECKPOINT:
        raise UserError(
            f"--export {config.export}: a run's checkpoint has that name; choose another"
        )
    # --save is made if need be.
    if config.export and config.export.resolve().parent != config.save.resolve():
        require_writable_file("--export", config.export)
    return config
