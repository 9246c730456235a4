"""What the checkpoints of a run hold, and how a run goes on from one.

Keys of `checkpoint.pt`: `format` (1), `depth`, `width`, `image_size`, `classes`, `mean`, `std`
(of the network and its data), `model` (state dict), `optimizer`, `scaler` (empty but in float16),
`epoch` (finished ones), `options` (those of the command line), `processes`. An exported backbone
holds the first eight. Random states are not among them: every random number is a function of the
seed, the epoch and the process.
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
    """A checkpoint that was read: ours, an exported backbone, or one of the released code."""

    source: Path
    content: dict
    weights: dict[str, torch.Tensor]  # under our names
    info: DatasetInfo | None  # the release's files say nothing of their data

    @property
    def has_branches(self) -> bool:
        return any(str(name).startswith("branches.") for name in self.weights)


def model_content(model: dict, config: Config, info: DatasetInfo) -> dict:
    """What both a checkpoint and an exported backbone hold."""
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
    """Save all of a run after `epoch` finished epochs.

    Raises:
        UserError: it can't be written, or the network holds values that are not finite, which the
            last step can bring about after the loss was seen; the file before is kept.
    """
    state = trainer.model.state_dict()
    bad = [name for name, tensor in state.items() if not tensor.isfinite().all()]
    if bad:
        raise UserError(
            f"after epoch {epoch} {checkpoint.listing(bad)} of the network is not finite; the last "
            "checkpoint is from before it; try a lower --lr"
        )
    content = model_content(state, config, info)
    content |= {
        "optimizer": trainer.optimizer.state_dict(),
        "scaler": trainer.scaler.state_dict(),
        "epoch": epoch,
        "options": config.plain(),
        "processes": world_size(),
    }
    checkpoint.save(path, content)


def read_checkpoint(path: Path, config: Config) -> LoadedCheckpoint:
    """Read a checkpoint for the network that the options ask for.

    Raises:
        UserError: it is no checkpoint of ours or the release's, or of another network.
    """
    content = checkpoint.load(path)
    if is_legacy(content):
        try:
            return LoadedCheckpoint(path, content, legacy_state_dict(content["params"]), None)
        except (KeyError, TypeError, AttributeError) as error:
            raise UserError(
                f"{path}: its parameters are not the released code's ({error})"
            ) from error
    checkpoint.require(content, NETWORK_KEYS, path)
    unknown = content.keys() - NETWORK_KEYS.keys() - RUN_KEYS.keys()
    if content["format"] != FORMAT or unknown:
        what = f"the unknown key {min(map(str, unknown))!r}" if unknown else content["format"]
        raise UserError(f"{path}: expected format {FORMAT}, found {what}; use a newer version")
    info = DatasetInfo(content["classes"], content["mean"], content["std"])
    check_dataset_info(info, path)
    for flag in ("depth", "width", "image_size"):
        if content[flag] != getattr(config, flag):
            raise UserError(
                f"{path} has {flag} {content[flag]}, the options ask for {getattr(config, flag)}; "
                f"give --{flag} {content[flag]}"
            )
    return LoadedCheckpoint(path, content, content["model"], info)


def check_dataset_info(info: DatasetInfo, source: Path) -> None:
    """Refuse classes that aren't names, or statistics that aren't three finite numbers."""
    statistics = [*info.mean, *info.std]
    numbers = all(isinstance(v, float) and abs(v) < 1e6 for v in statistics)
    if len(info.mean) != 3 or len(info.std) != 3 or not numbers or min(info.std) < 0:
        raise UserError(f"{source}: mean and std are not three numbers each; the file is damaged")
    if not info.classes or not all(isinstance(name, str) for name in info.classes):
        raise UserError(f"{source}: the classes are not names; the file is damaged")


def resume(saved: LoadedCheckpoint, trainer: Trainer, config: Config, info: DatasetInfo) -> int:
    """Put the trainer where the checkpoint left it; returns the number of finished epochs.

    Raises:
        UserError: it can't be resumed with these options and data.
    """
    content, source = saved.content, saved.source
    if saved.info is None:
        return resume_legacy(saved, trainer)
    if "optimizer" not in content:
        raise UserError(f"{source} is an exported backbone; resume needs a run's checkpoint")
    checkpoint.require(content, RUN_KEYS, source)
    changed = [
        f"--{flag} {value} (was {content['options'].get(flag)})"
        for flag, value in config.resume_options().items()
        if content["options"].get(flag) != value
    ]
    changed += [f"--{flag} (unknown)" for flag in content["options"].keys() - config.plain().keys()]
    if changed:
        raise UserError(
            f"{source} was made with other options: {'; '.join(changed)}; resume with the same, "
            "or start afresh in another folder"
        )
    if saved.info != info:
        raise UserError(
            f"{source} was trained on other data than --dataroot {config.dataroot} holds"
        )
    if content["processes"] != world_size():
        print_once(
            f"resumed with {world_size()} processes where there were {content['processes']}: "
            "batch normalisation sees other shares of each batch"
        )
    checkpoint.load_weights(trainer.model, saved.weights, source)
    checkpoint.load_optimizer(trainer.optimizer, content["optimizer"], source)
    if trainer.scaler.is_enabled():
        trainer.scaler.load_state_dict(content["scaler"])
    return finished_epochs(content, source)


def resume_legacy(saved: LoadedCheckpoint, trainer: Trainer) -> int:
    """The same from a checkpoint of the released training script."""
    checkpoint.require(saved.content, {"epoch": int, "optimizer": dict}, saved.source)
    checkpoint.load_weights(trainer.model, saved.weights, saved.source)
    names = [name for name, _ in trainer.model.named_parameters()]
    try:
        momentum = legacy_momentum(saved.content, names)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise UserError(f"{saved.source}: its optimizer is not the released code's") from error
    groups = trainer.optimizer.state_dict()["param_groups"]
    state = {"state": momentum, "param_groups": groups}
    checkpoint.load_optimizer(trainer.optimizer, state, saved.source)
    return finished_epochs(saved.content, saved.source)


def finished_epochs(content: dict, source: Path) -> int:
    if content["epoch"] < 0:
        raise UserError(f"{source}: {content['epoch']} finished epochs; the file is damaged")
    return content["epoch"]
