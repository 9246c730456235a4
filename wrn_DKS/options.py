"""The options of `main.py`, parsed and checked. Does not import torch, so that --help is quick."""

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path

from common.command_line import DTYPES, UserError, require_file, require_writable_file
from common.flag_groups import NO_REGULARIZATION
from common.run_folder import CHECKPOINT, checkpoint_path, refuse_overwriting
from flags import IMAGE_SIZES, build_parser
from schedule import scaled_milestones

# The released recipe of WRN-28-10, and the one of He et al. for a ResNet.
DEFAULTS = {
    "wrn": {
        "depth": 28,
        "width": 10.0,
        "epochs": 200,
        "lr_decay_ratio": 0.2,
        "weight_decay": 5e-4,
    },
    "resnet": {
        "depth": 32,
        "width": 1.0,
        "epochs": 164,
        "lr_decay_ratio": 0.1,
        "weight_decay": 1e-4,
    },
}


@dataclass(frozen=True)
class Config:
    """Every option of `main.py`, named like its flag."""

    dataset: str
    dataroot: Path
    image_size: int
    nthread: int
    arch: str
    depth: int
    width: float
    dropout: bool
    method: str
    direction: str
    aux_weight: float
    synergy_weight: float
    label_smoothing: float
    mixup: float  # alpha; 0: off
    cutmix: float  # alpha; 0: off
    epochs: int
    batch_size: int  # total over all processes
    lr: float
    epoch_step: tuple[int, ...]  # 1-based epochs
    lr_decay_ratio: float
    weight_decay: float
    seed: int
    dtype: str
    device: str
    compile: bool
    sync_bn: bool
    test_every: int
    save: Path | None
    resume: str
    evaluate: bool
    export: Path | None
    predict: tuple[Path, ...]
    json: Path | None
    given: frozenset[str]  # names of the options that are on the command line
    random_scheme: int = 2  # of `common.seeds`; no flag, because a resumed run keeps its own

    @property
    def network(self) -> str:
        if self.arch == "resnet":
            return f"ResNet-{self.depth}"
        return f"WRN-{self.depth}-{self.width:g}"

    @property
    def checkpoint(self) -> Path | None:
        """The file that --resume names, if it names one."""
        return None if self.resume in ("", "auto") else Path(self.resume)

    def to_dict(self) -> dict:
        """Return the options as JSON-serializable values, for logs and checkpoints."""
        values = {f.name: getattr(self, f.name) for f in fields(self) if f.name not in NOT_LOGGED}
        values["epoch_step"] = list(self.epoch_step)
        return {key: str(v) if isinstance(v, Path) else v for key, v in values.items()}

    def resume_options(self) -> dict:
        """Return the options that must not change when a run is resumed."""
        return {key: value for key, value in self.to_dict().items() if key in RESUME_MUST_MATCH}


# Values of options in checkpoints and logs that lack them.
OLDER_OPTIONS = NO_REGULARIZATION | {"arch": "wrn"}
NOT_LOGGED = ("predict", "json", "given")
# Options that do not affect the numbers of an epoch, except that `sync_bn` changes the statistics
# of batch normalization, as the number of processes does.
RESUME_MAY_CHANGE = (
    *("dataroot", "nthread", "epochs", "device", "compile", "sync_bn", "test_every"),
    *("resume", "save", "evaluate", "export", "random_scheme"),
)
RESUME_MUST_MATCH = tuple(
    field.name for field in fields(Config) if field.name not in RESUME_MAY_CHANGE + NOT_LOGGED
)


def parse(argv: Sequence[str] | None = None) -> Config:
    """Parse the command line, by default that of the process.

    Raises:
        UserError: an option is unknown or invalid, or options contradict each other.
    """
    parser = build_parser()
    given = parser.parse_given(argv)
    options = vars(parser.parse_args([])) | given
    options |= {k: v for k, v in DEFAULTS[options["arch"]].items() if options[k] is None}
    gpus = options.pop("ngpu")
    if gpus > 1:
        raise UserError(
            f"--ngpu {gpus}: to use several GPUs, run torchrun --nproc_per_node {gpus} main.py …"
        )
    if "epoch_step" not in given:
        options["epoch_step"] = scaled_milestones(options["epochs"], options["arch"])
    options["dtype"] = DTYPES[options["dtype"]]
    options["image_size"] = options["image_size"] or IMAGE_SIZES[options["dataset"]]
    options["predict"] = tuple(options["predict"] or ())
    if options["resume"] not in ("", "auto"):
        options["resume"] = str(checkpoint_path(Path(options["resume"])))
    config = Config(**options, given=frozenset(given))
    check_task(config)
    check_files(config)
    return config


def check_task(config: Config) -> None:
    """Raise `UserError` if tasks contradict each other, or one lacks its checkpoint."""
    if config.predict and (config.evaluate or config.export):
        other = "--evaluate" if config.evaluate else "--export"
        raise UserError(f"--predict and {other} can't be combined; run them one after the other")
    if (config.evaluate or config.predict) and config.checkpoint is None:
        task = "--predict" if config.predict else "--evaluate"
        raise UserError(f"{task} requires --resume FILE, the checkpoint or the folder of a run")
    if config.resume == "auto" and config.save is None:
        raise UserError("--resume auto requires --save DIR, the folder with the checkpoint")


def check_files(config: Config) -> None:
    """Raise `UserError` if a file is missing, or one would be overwritten."""
    if config.checkpoint:
        require_file("--resume", config.checkpoint, "a checkpoint")
    for image in config.predict:
        require_file("--predict", image, "an image")
    if config.export is not None:
        require_writable_file("--export", config.export)
        may_be_done = config.resume == "auto" and (config.save / CHECKPOINT).is_file()
        if config.export.exists() and not may_be_done:
            raise export_exists(config.export)
    if config.json is not None:
        require_writable_file("--json", config.json)
        if config.export and config.json.resolve() == config.export.resolve():
            raise UserError(f"--json {config.json}: the same file as --export; choose another name")
        refuse_overwriting("--json", config.json, (config.checkpoint, *config.predict))


def export_exists(path: Path) -> UserError:
    return UserError(f"--export {path}: exists already; choose another name")


def use_recorded(config: Config, recorded: dict, source: Path) -> Config:
    """Return the options with those of the network and the data that a checkpoint records.

    Args:
        config: the options.
        recorded: values of `depth`, `width`, `image_size`, `dataset` and `dataroot`, if known.
        source: the checkpoint, for messages.

    Raises:
        UserError: options on the command line contradict the checkpoint.
    """
    recorded = dict(recorded)
    dataroot = recorded.pop("dataroot", None)
    wrong = [
        f"--{name.replace('_', '-')} {getattr(config, name)} (it has {value})"
        for name, value in recorded.items()
        if name in config.given and not agree(name, getattr(config, name), value)
    ]
    if wrong:
        raise UserError(f"{source} contradicts {', '.join(wrong)}; leave these options out")
    if dataroot and "dataroot" not in config.given and Path(dataroot).exists():
        recorded["dataroot"] = Path(dataroot)
    return replace(config, **recorded)


def agree(name: str, given: object, recorded: object) -> bool:
    """Return whether an option has the recorded value, or a width that gives the same channels."""
    if name == "width":
        return all(int(c * given) == int(c * recorded) for c in (16, 32, 64))
    return given == recorded


def check_epochs(finished: int, config: Config, source: Path) -> None:
    """Raise `UserError` if a run has more finished epochs than --epochs."""
    if finished > config.epochs:
        raise UserError(
            f"--epochs {config.epochs}: the run in {source} has {finished} finished epochs; use "
            f"--epochs {finished} or more"
        )


def check_given_options(options: dict, config: Config, source: Path) -> None:
    """Raise `UserError` if an option that was given differs from the stored one of a run."""
    options = OLDER_OPTIONS | options
    changed = [
        f"--{name} {value} (was {options.get(name)})"
        for name, value in config.resume_options().items()
        if name in config.given and options.get(name) != value
    ]
    if changed:
        raise UserError(
            f"{source}: saved with other options: {'; '.join(changed)}; leave these options out"
        )


def check_options_unchanged(options: dict, config: Config, source: Path) -> None:
    """Raise `UserError` if the stored options differ in one that must not change."""
    options = OLDER_OPTIONS | options
    changed = [
        f"--{flag} {value} (was {options.get(flag)})"
        for flag, value in config.resume_options().items()
        if options.get(flag) != value
    ]
    changed += [f"--{flag} (unknown)" for flag in options.keys() - config.to_dict().keys()]
    if changed:
        raise UserError(
            f"{source}: saved with other options: {'; '.join(changed)}; resume with the same "
            "options, or start a new run in another folder"
        )
