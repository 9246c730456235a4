"""Options of a training run, and which of them a resumed run may change. Does not import torch."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from common.command_line import UserError
from common.run_folder import CHECKPOINT, checkpoint_path, new_run_folder, refuse_overwriting
from export_path import check_export, weights_path
from schedule import Schedule, default_milestones
from shared_flags import resolve_aliases
from train_flags import build_parser

# Options that do not affect the result, except that `sync_bn` changes the statistics of batch
# normalization, as the number of processes does. `epochs` joins them unless the schedule depends
# on it.
RESUME_MAY_CHANGE = (
    *("data", "val_labels", "skip_unreadable", "cache", "workers", "prefetch", "device"),
    *("compile", "sync_bn"),
    *("save", "resume", "checkpoint_minutes", "log_interval", "export"),
    "init",  # a resumed run has its weights
)


@dataclass(frozen=True)
class Config:
    """Every option of `train.py`, under the name of its flag."""

    data: Path
    val_labels: Path | None
    image_size: int  # pixels
    augmentation: str
    skip_unreadable: bool  # of the training images
    cache: Path | None  # folder of decoded images
    workers: int  # per process
    prefetch: int  # batches per worker
    arch: str
    init: str  # a path, the name of torchvision's weights, or empty
    method: str
    direction: str
    aux_weight: float
    synergy_weight: float
    label_smoothing: float
    mixup: float  # alpha; 0: off
    cutmix: float  # alpha; 0: off
    epochs: int
    batch_size: int  # images, over all processes
    grad_accumulation: int  # micro-batches per step and process
    lr: float
    lr_schedule: str
    milestones: tuple[int, ...] | None  # finished epochs; None: not given
    lr_factor: float
    warmup_epochs: float
    momentum: float
    weight_decay: float
    ema: float  # decay per step; 0: no average
    seed: int
    device: str
    dtype: str  # of convolutions and matrix products
    compile: bool
    sync_bn: bool
    resume: str  # a path, `auto`, or empty
    save: Path | None  # None: not given
    checkpoint_minutes: float
    log_interval: int  # steps
    export: Path | None

    def with_milestones(self, saved: object) -> "Config":
        """Fill in milestones that are not given: those of a checkpoint's options, if there are any,
        otherwise the paper's, scaled with the number of epochs.

        An older checkpoint may hold a milestone twice, at which its learning rate falls twice.
        """
        is_list = isinstance(saved, list) and all(isinstance(epoch, int) for epoch in saved)
        if self.milestones is not None and not (is_list and set(saved) == set(self.milestones)):
            return self
        milestones = tuple(saved) if is_list else default_milestones(self.epochs)
        return replace(self, milestones=milestones)

    def with_saved(self, options: Mapping | None) -> "Config":
        """Fill in what a resumed run takes from its checkpoint's options: milestones and --init.

        Args:
            options: those of the checkpoint; None without one.
        """
        if options is None:
            return self.with_milestones(None)
        init = str(options.get("init", ""))  # what its weights started from
        return replace(self.with_milestones(options.get("milestones")), init=init)

    def with_folder(self) -> "Config":
        """Fill in --save if it is not given: the folder of --resume FILE, or a new one in logs/."""
        if self.save is not None:
            return self
        if self.resume:
            return replace(self, save=checkpoint_path(Path(self.resume)).parent)
        return replace(self, save=new_run_folder(f"{self.arch}-{self.method}-seed{self.seed}"))

    def schedule(self, steps_per_epoch: int) -> Schedule:
        """Return the learning-rate schedule. The milestones must be filled in."""
        return Schedule(
            self.lr_schedule,
            self.lr,
            steps_per_epoch,
            self.epochs,
            self.warmup_epochs,
            self.milestones,
            self.lr_factor,
        )

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
    values = resolve_aliases(vars(build_parser().parse_args(argv)), "train.py")
    if values["augmentation"] is None:
        values["augmentation"] = "resized-crop" if values["arch"] == "resnet152" else "crop"
    first_epochs = values.pop("epoch_step")
    if first_epochs is not None:
        if 0 in first_epochs:
            raise UserError("--epoch_step: expected epochs counted from 1, got 0; use 1 or more")
        values["milestones"] = tuple(epoch - 1 for epoch in first_epochs)
    config = Config(**values)
    check(config)
    return config


def check(config: Config) -> None:
    """Raise `UserError` if a required option is missing or options contradict each other."""
    if config.data is None:
        raise UserError("no data; give the folder that contains train/ and val/")
    if config.cache and config.augmentation != "crop":
        raise UserError(
            f"--cache {config.cache}: --augmentation resized-crop crops an image at random before "
            "it resizes it, so there is nothing to keep; use --augmentation crop, or leave out "
            "--cache"
        )
    if config.lr_schedule == "cosine" and config.warmup_epochs >= config.epochs:
        raise UserError(
            f"--warmup-epochs {config.warmup_epochs:g} with --epochs {config.epochs}: no epochs "
            "left for the cosine schedule; use fewer warmup epochs"
        )
    if config.resume == "auto" and config.save is None:
        raise UserError("--resume auto requires --save DIR, the folder of the run")
    if config.export and config.export.name == CHECKPOINT:
        raise UserError(
            f"--export {config.export}: reserved for the checkpoint of a run; choose another name"
        )
    # The folder given as --save is created if it does not exist.
    if config.export:
        inputs = [Path(each) for each in (config.resume, config.init) if each not in ("", "auto")]
        refuse_overwriting("--export", config.export, map(weights_path, inputs))
        in_run = config.save is not None and same_folder(config.export.parent, config.save)
        has_run = config.resume == "auto" and (config.save / CHECKPOINT).is_file()
        check_export(config.export, in_run, may_be_done=has_run)


def same_folder(one: Path, other: Path) -> bool:
    return one.resolve() == other.resolve()
