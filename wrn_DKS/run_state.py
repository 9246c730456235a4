"""Checkpoints of a run: their content, and resuming from them.

Keys of `checkpoint.pt`:
    format: version of this format, 1.
    depth, width, image_size: of the network and its images.
    classes, mean, std: `DatasetInfo`.
    model: state dict.
    optimizer, scaler: state dicts; that of the gradient scaler is empty unless in float16.
    epoch: number of finished epochs.
    options: the options of the command line.
    processes: number of processes of the run.

An exported backbone has the keys `format` to `model` only. Random states are not stored: all
random numbers are functions of the seed, the epoch and the process.
"""

from dataclasses import dataclass
from pathlib import Path

import torch

from common import checkpoint
from common.command_line import UserError
from common.distributed import print_once, world_size
from data import DatasetInfo
from engine import Trainer
from legacy import is_legacy, legacy_momentum, legacy_state_dict
from options import Config

FORMAT = 1
NETWORK_KEYS = {
    "format": int,
    "depth": int,
    "width": float,
    "image_size": int,
    "classes": list,
    "mean": list,
    "std": list,
    "model": dict,
}
RUN_KEYS = {"optimizer": dict, "scaler": dict, "epoch": int, "options": dict, "processes": int}


@dataclass(frozen=True)
class LoadedCheckpoint:
    """A checkpoint of a run, an exported backbone, or a checkpoint of the released code."""

    source: Path
    content: dict
    weights: dict[str, torch.Tensor]  # state dict of `WideResNet`
    info: DatasetInfo | None  # None for checkpoints of the released code

    @property
    def has_branches(self) -> bool:
        return any(str(name).startswith("branches.") for name in self.weights)


def model_content(model: dict, config: Config, info: DatasetInfo) -> dict:
    """Return the part of a checkpoint that an exported backbone has too."""
    return {
        "format": FORMAT,
        "depth": config.depth,
        "width": config.width,
        "image_size": config.image_size,
        "classes": list(info.classes),
        "mean": list(info.mean),
        "std": list(info.std),
        "model": model,
    }


def save_run(path: Path, trainer: Trainer, config: Config, info: DatasetInfo, epoch: int) -> None:
    """Save the checkpoint of a run after `epoch` finished epochs.

    Raises:
        UserError: the file can't be written, or a weight is not finite. The last step of an epoch
            can cause the latter although its loss was finite. The previous checkpoint is kept.
    """
    state = trainer.model.state_dict()
    not_finite = [name for name, tensor in state.items() if not tensor.isfinite().all()]
    if not_finite:
        raise UserError(
            f"after epoch {epoch} these weights are not finite: "
            f"{checkpoint.abbreviate(not_finite)}; the previous checkpoint was kept; "
            "try a lower --lr"
        )
    content = model_content(state, config, info)
    content |= {
        "optimizer": trainer.optimizer.state_dict(),
        "scaler": trainer.scaler.state_dict(),
        "epoch": epoch,
        "options": config.to_dict(),
        "processes": world_size(),
    }
    checkpoint.save(path, content)


def load_checkpoint(path: Path, config: Config) -> LoadedCheckpoint:
    """Load a checkpoint and check that it fits the options.

    Raises:
        UserError: the file is not a checkpoint, or it is for another network.
    """
    content = checkpoint.load(path)
    if is_legacy(content):
        try:
            return LoadedCheckpoint(path, content, legacy_state_dict(content["params"]), None)
        except (KeyError, TypeError, AttributeError) as error:
            raise UserError(f"{path}: not a checkpoint of the released code ({error})") from error
    checkpoint.require_keys(content, NETWORK_KEYS, path)
    unknown = content.keys() - NETWORK_KEYS.keys() - RUN_KEYS.keys()
    if content["format"] != FORMAT or unknown:
        found = f"an unknown key {min(map(str, unknown))!r}" if unknown else content["format"]
        raise UserError(
            f"{path}: expected format {FORMAT}, found {found}; use a newer version of this code"
        )
    info = DatasetInfo(content["classes"], content["mean"], content["std"])
    check_dataset_info(info, path)
    for flag in ("depth", "width", "image_size"):
        if content[flag] != getattr(config, flag):
            raise UserError(
                f"{path} has {flag} {content[flag]}, but the options have "
                f"{getattr(config, flag)}; give --{flag} {content[flag]}"
            )
    return LoadedCheckpoint(path, content, content["model"], info)


def check_dataset_info(info: DatasetInfo, source: Path) -> None:
    """Raise `UserError` if the classes are not strings or the statistics not three numbers each."""
    statistics = [*info.mean, *info.std]
    are_numbers = all(isinstance(v, float) and abs(v) < 1e6 for v in statistics)
    if len(info.mean) != 3 or len(info.std) != 3 or not are_numbers or min(info.std) < 0:
        raise UserError(f"{source}: mean and std are not three numbers each; the file is damaged")
    if not info.classes or not all(isinstance(name, str) for name in info.classes):
        raise UserError(f"{source}: the class names are not strings; the file is damaged")


def resume(loaded: LoadedCheckpoint, trainer: Trainer, config: Config, info: DatasetInfo) -> int:
    """Load the state of a run into the trainer and return the number of finished epochs.

    Raises:
        UserError: the run can't be resumed with these options and this dataset.
    """
    content, source = loaded.content, loaded.source
    if loaded.info is None:
        return resume_legacy(loaded, trainer)
    if "optimizer" not in content:
        raise UserError(
            f"{source} is an exported backbone and can't be resumed; use the checkpoint of a run"
        )
    checkpoint.require_keys(content, RUN_KEYS, source)
    check_options_unchanged(content["options"], config, source)
    if loaded.info != info:
        raise UserError(
            f"{source} was trained on another dataset than the one in --dataroot {config.dataroot}"
        )
    if content["processes"] != world_size():
        print_once(
            f"resuming a run of {content['processes']} process(es) with {world_size()}: results "
            "will differ, because batch norm uses the statistics of each process's part of a batch"
        )
    checkpoint.load_weights(trainer.model, loaded.weights, source)
    checkpoint.load_optimizer(trainer.optimizer, content["optimizer"], source)
    if trainer.scaler.is_enabled():
        trainer.scaler.load_state_dict(content["scaler"])
    return finished_epochs(content, source)


def check_options_unchanged(options: dict, config: Config, source: Path) -> None:
    """Raise `UserError` if the stored options differ in one that must not change."""
    changed = [
        f"--{flag} {value} (was {options.get(flag)})"
        for flag, value in config.resume_options().items()
        if options.get(flag) != value
    ]
    changed += [f"--{flag} (unknown)" for flag in options.keys() - config.to_dict().keys()]
    if changed:
        raise UserError(
            f"{source} was saved with other options: {'; '.join(changed)}; resume with the same "
            "options, or start a new run in another folder"
        )


def resume_legacy(loaded: LoadedCheckpoint, trainer: Trainer) -> int:
    """Resume from a checkpoint of the released code; see `resume`."""
    content, source = loaded.content, loaded.source
    checkpoint.require_keys(content, {"epoch": int, "optimizer": dict}, source)
    checkpoint.load_weights(trainer.model, loaded.weights, source)
    names = [name for name, _ in trainer.model.named_parameters()]
    try:
        momentum = legacy_momentum(content, names)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise UserError(f"{source}: not the optimizer state of the released code") from error
    groups = trainer.optimizer.state_dict()["param_groups"]
    state = {"state": momentum, "param_groups": groups}
    checkpoint.load_optimizer(trainer.optimizer, state, source)
    return finished_epochs(content, source)


def finished_epochs(content: dict, source: Path) -> int:
    if content["epoch"] < 0:
        raise UserError(f"{source}: the epoch is {content['epoch']}; the file is damaged")
    return content["epoch"]
