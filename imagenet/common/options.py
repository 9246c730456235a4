"""The options that both script folders share; each folder's `flags.py` adds its own.

A Config is final after `from_checkpoint`, which takes what was not given from the checkpoint that
is resumed.
"""

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from functools import partial
from pathlib import Path

from .command_line import FIXED, FREE, LOCAL, UserError, choice, finished_epochs, number, option

METHODS = ("baseline", "ds", "dks")
DIRECTIONS = ("bidirectional", "top-down", "bottom-up")
# Options that a method ignores.
UNUSED = {"dks": set(), "ds": {"direction", "synergy_weight"}}
UNUSED["baseline"] = UNUSED["ds"] | {"aux_weight"}
DTYPES = {"float": "float32", "half": "float16"}  # other names
FRACTION, AMOUNT, COUNT = number(float, 0, 1), number(float, 0), number(int, 1)
finished_epochs.metavar = "EPOCHS"

# Options by their group in --help.
data_flag, model_flag = partial(option, "data"), partial(option, "model")
method_flag, training_flag = partial(option, "method"), partial(option, "training")
run_flag, output_flag = partial(option, "run"), partial(option, "output", role=LOCAL)


def dtype_name(text: str) -> str:
    name = choice("float32", "bfloat16", "float16", *DTYPES)(text)
    return DTYPES.get(name, name)


@dataclass(frozen=True)
class DeviceConfig:
    """The options of every command, training or not."""

    device: str = run_flag(
        "auto", str, "cpu, cuda or cuda:N; auto: a GPU if any", role=LOCAL, metavar="DEVICE"
    )
    dtype: str = run_flag(
        "float32", dtype_name, "of the forward pass: float32, bfloat16 or float16", metavar="DTYPE"
    )
    given: frozenset[str] = frozenset()  # names of the options on the command line

    @classmethod
    def names(cls, *roles: str) -> list[str]:
        """Return the names of the options of these roles."""
        return [each.name for each in fields(cls) if each.metadata.get("role") in roles]

    def to_dict(self) -> dict:
        """Return all options as plain values, for logs and checkpoints."""
        return {name: plain(value) for name, value in vars(self).items() if name != "given"}


# What `plain` returns, by a word in the type of the option.
PLAIN = {"int": int, "float": (float, int), "bool": bool, "str": str, "Path": str, "tuple": list}
PLAIN["None"] = type(None)


def plain(value: object) -> object:
    """Return an option's value as JSON and checkpoints hold it."""
    if isinstance(value, tuple | list):
        return [plain(each) for each in value]
    return str(value) if isinstance(value, Path) else value


@dataclass(frozen=True)
class OutputConfig(DeviceConfig):
    """The options of tests, predictions and exports in both script folders."""

    per_class: bool = run_flag(
        False, bool, "also print the error of each class, and frequent confusions", role=LOCAL
    )
    predict: Sequence[Path] = run_flag(
        (), Path, "classify these images, or those in a folder", role=LOCAL, nargs="+"
    )
    export: Path | None = output_flag(
        None, Path, "write the backbone alone: .safetensors, or any other name for torch.load"
    )
    json: Path | None = output_flag(None, Path, "also write the results to this file")

    def check_outputs(self, created: Path | None = None) -> None:
        """Raise `UserError` if an output file can't be written; `created` is made before it."""
        for flag, path in (("--export", self.export), ("--json", self.json)):
            if path and path.parent != created and not path.parent.is_dir():
                raise UserError(f"{flag} {path}: no such folder: {path.parent}; create it first")
            replaceable = flag == "--json" and path and path.suffix == ".json" and path.is_file()
            if path and path.suffix.lower() == ".onnx":
                raise UserError(f"{flag} {path}: ONNX is not written; use torch.onnx on an export")
            if path and path.exists() and not replaceable:
                raise UserError(f"{flag} {path}: exists already; choose another name")


@dataclass(frozen=True)
class TrainingConfig(DeviceConfig):
    """The options of training that both script folders share. Those that the paper does not have
    are off by default.
    """

    method: str = method_flag(
        "dks",
        choice(*METHODS),
        "baseline: no branches; ds: branches that learn from the labels; dks: also from each other",
    )
    direction: str = method_flag(
        "bidirectional",
        choice(*DIRECTIONS),
        "who teaches whom in dks: bidirectional, top-down (from deep to shallow) or bottom-up",
    )
    aux_weight: float = method_flag(1.0, AMOUNT, "weight of the branches' cross-entropies")
    synergy_weight: float = method_flag(1.0, AMOUNT, "weight of the synergy loss")
    label_smoothing: float = method_flag(0.0, FRACTION, "label smoothing of the cross-entropies")
    mixup: float = training_flag(
        0.0, number(float, 0, 1000), "mix pairs of images, with weights from Beta(X, X); 0: off"
    )
    cutmix: float = training_flag(
        0.0,
        number(float, 0, 1000),
        "paste a part of another image into each; 0: off; with --mixup, one of both at random",
    )
    epochs: int = training_flag(100, COUNT, "number of epochs", role=FREE)
    batch_size: int = training_flag(256, COUNT, "total batch size over all processes", "-b")
    grad_accumulation: int = training_flag(
        1, COUNT, "micro-batches per step and process; more need less memory", role=FREE
    )
    lr: float = training_flag(0.1, AMOUNT, "initial learning rate")
    lr_schedule: str = training_flag(
        "step",
        choice("step", "cosine"),
        "step: decay at the milestones; cosine: half a cosine to 0",
    )
    milestones: tuple[int, ...] | None = training_flag(
        None,
        finished_epochs,
        "finished epochs after which the rate is decayed, such as 30,60",
        "--lr-milestones",
    )
    lr_factor: float = training_flag(
        0.1, FRACTION, "decay factor at milestones", "--lr_decay_ratio"
    )
    warmup_epochs: float = training_flag(0.0, AMOUNT, "epochs of linear learning-rate warm-up")
    momentum: float = training_flag(0.9, FRACTION, "momentum of SGD")
    weight_decay: float = training_flag(1e-4, AMOUNT, "weight decay of all parameters")
    ema: float = training_flag(
        0.0,
        number(float, 0, 0.999999),
        "decay per step of a moving average of the weights, tested and exported too; 0: none",
    )
    init: str = model_flag("", str, "start the backbone from this checkpoint or export")
    seed: int = run_flag(1, number(int, 0), "random seed")
    compile: bool = run_flag(False, bool, "train with torch.compile", role=LOCAL)
    sync_bn: bool = run_flag(False, bool, "batch-norm statistics over all GPUs", role=FREE)
    test_every: int = run_flag(1, COUNT, "test every N epochs and after the last", role=FREE)
    checkpoint_minutes: float = run_flag(
        15.0, AMOUNT, "minutes between checkpoints within an epoch; 0: every step", role=FREE
    )
    resume: str = run_flag(
        "", str, "checkpoint or folder of a run to resume; auto: that in --save, if any", role=LOCAL
    )
    save: Path | None = output_flag(
        None, Path, "folder of the run (default: that of --resume, otherwise a new one in ./logs)"
    )

    def loss_options(self) -> dict:
        """Return the options of the group `method`, which are the arguments of `SynergyLoss`."""
        groups = {each.name: each.metadata.get("group") for each in fields(self)}
        return {name: value for name, value in vars(self).items() if groups[name] == "method"}

    @property
    def checkpoint(self) -> Path | None:
        """The file or folder that --resume names, if it names one."""
        return None if self.resume in ("", "auto") else Path(self.resume).expanduser()


def from_checkpoint(
    config: DeviceConfig, saved: dict, source: Path, may_change: Sequence[str] = ()
) -> DeviceConfig:
    """Return the options with what was not given taken from a checkpoint.

    Args:
        config: the options of the command line.
        saved: those of the checkpoint, as `to_dict` returned them. An older one may lack some.
        source: the checkpoint, for messages.
        may_change: further options that may be given with another value.

    Raises:
        UserError: an option that must not change is given with another value, or one is damaged.
    """
    saved = type(config)().to_dict() | saved
    fixed = set(config.names(FIXED)) - set(may_change)
    if saved.get("lr_schedule") == "cosine" and "epochs" not in may_change:
        fixed.add("epochs")  # the schedule depends on it
    changed = [
        f"--{name.replace('_', '-')} {plain(getattr(config, name))} (was {saved[name]})"
        for name in sorted(fixed & config.given)
        if plain(getattr(config, name)) != saved[name]
    ]
    if changed:
        raise UserError(
            f"{source}: of a run with other options: {'; '.join(changed)}; leave these out, or "
            "start a new run in another folder"
        )
    kept = {}
    for each in fields(config):
        if each.name in config.given or each.metadata.get("role") not in (FIXED, FREE):
            continue
        value, kind = saved[each.name], str(each.type)
        if not any(isinstance(value, PLAIN[word]) for word in PLAIN if word in kind):
            raise UserError(f"{source}: damaged, because its option {each.name} is {value!r:.50}")
        value = Path(value) if "Path" in kind and value is not None else value
        kept[each.name] = tuple(value) if isinstance(value, list) else value
    return replace(config, **kept)


def refuse_unused(config: DeviceConfig, names: set[str], setting: str) -> None:
    """Raise `UserError` if an option is given that has no effect with a setting."""
    for name in sorted(names & config.given):
        flag = name.replace("_", "-")
        raise UserError(f"--{flag} has no effect with {setting}; leave it out")


def check_training(config: TrainingConfig) -> None:
    """Raise `UserError` if options of training contradict each other or have no effect."""
    refuse_unused(config, UNUSED[config.method], f"--method {config.method}")
    if config.lr_schedule == "cosine":
        refuse_unused(config, {"milestones", "lr_factor"}, "--lr-schedule cosine")
    if config.warmup_epochs and config.warmup_epochs >= config.epochs:
        length = f"the run has {config.epochs} epochs only; use fewer"
        raise UserError(f"--warmup-epochs {config.warmup_epochs:g}: {length}")
    if config.compile and config.sync_bn:  # it would be compiled anew for hundreds of layers
        raise UserError("--sync-bn with --compile is too slow; leave out one of both")
