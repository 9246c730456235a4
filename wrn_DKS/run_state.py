"""Checkpoints of a run: their content, saved and loaded.

Keys of `checkpoint.pt`:
    format: version of this format, 1.
    depth, width, image_size: of the network and its images.
    classes, mean, std: `DatasetInfo`.
    model: state dict.
    optimizer, scaler: state dicts; that of the gradient scaler is empty unless in float16.
    epoch: number of finished epochs.
    options: the options of the command line, and `random_scheme`, which is 1 if it is absent.
    processes: number of processes of the run.

An exported backbone has the keys `format` to `model`, and `dataset`. Random states are not stored:
all random numbers are functions of the seed, the epoch and the process.
"""

from dataclasses import dataclass
from pathlib import Path

import torch

from common import checkpoint
from common.command_line import UserError
from common.distributed import print_once, world_size
from data import IMAGE_SIZES, DatasetInfo
from engine import Trainer
from legacy import is_legacy, legacy_weights
from networks import network_size
from options import Config, export_exists
from wide_resnet import group_channels

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
        return len(self.backbone) < len(self.weights)

    @property
    def backbone(self) -> dict[str, torch.Tensor]:
        """The weights without those of the branches."""
        return {k: v for k, v in self.weights.items() if not str(k).startswith("branches.")}

    @property
    def options(self) -> dict:
        """The options of the run; empty if it is not the checkpoint of a run."""
        return self.content.get("options", {})

    def recorded(self) -> dict:
        """Return what the file says of the options of the network and the data."""
        if self.info is None:
            return dict(zip(("depth", "width"), network_size(self.weights, "wrn"), strict=True))
        known = self.options | self.content
        names = ("arch", "depth", "width", "image_size", "dataset", "dataroot")
        return {name: known[name] for name in names if name in known}


def model_content(model: dict, config: Config, info: DatasetInfo) -> dict:
    """Return the part of a checkpoint that an exported backbone has too."""
    return {
        "format": FORMAT,
        "arch": config.arch,
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


def export_backbone(path: Path, backbone: dict, config: Config, info: DatasetInfo) -> None:
    """Save the weights of a backbone without branches. Keep a file that has exactly them.

    Raises:
        UserError: a file with other content exists, or the file can't be written.
    """
    content = model_content(backbone, config, info) | {"dataset": config.dataset}
    if path.exists():
        try:
            is_same = same_content(checkpoint.load(path), content)
        except UserError:  # damaged or something else
            is_same = False
        if not is_same:
            raise export_exists(path)
        print_once(f"--export {path}: exists already, with the weights of this run; left as it is")
        return
    checkpoint.save(path, content)
    print_once(f"exported the backbone to {path}")


def same_content(one: dict, other: dict) -> bool:
    """Return whether two exported backbones are equal."""
    weights, expected = one.get("model", {}), other["model"]
    return (
        one | {"model": None} == other | {"model": None}
        and weights.keys() == expected.keys()
        and all(torch.equal(weights[name], value) for name, value in expected.items())
    )


def load_checkpoint(path: Path) -> LoadedCheckpoint:
    """Load a checkpoint of a run, an exported backbone, or a checkpoint of the released code.

    Raises:
        UserError: the file is none of them, or it is damaged.
    """
    content = checkpoint.load(path)
    runs = {key: kind for key, kind in RUN_KEYS.items() if key in content}
    checkpoint.require_keys(content, runs, path)
    if content.get("epoch", 0) < 0:
        raise UserError(f"{path}: the epoch is {content['epoch']}; the file is damaged")
    if is_legacy(content):
        return LoadedCheckpoint(path, content, legacy_weights(content, path), None)
    checkpoint.require_keys(content, NETWORK_KEYS, path)
    unknown = content.keys() - NETWORK_KEYS.keys() - RUN_KEYS.keys() - {"dataset", "arch"}
    if content["format"] != FORMAT or unknown:
        found = f"an unknown key {min(map(str, unknown))!r}" if unknown else content["format"]
        raise UserError(
            f"{path}: expected format {FORMAT}, found {found}; use a newer version of this code"
        )
    info = DatasetInfo(content["classes"], content["mean"], content["std"])
    check_dataset_info(info, path)
    loaded = LoadedCheckpoint(path, content, content["model"], info)
    check_recorded(loaded)
    return loaded


def check_recorded(loaded: LoadedCheckpoint) -> None:
    """Raise `UserError` if what a file records is not possible or not that of its weights."""
    try:
        recorded = loaded.recorded()
        depth, width = network_size(loaded.weights, recorded.get("arch", "wrn"))
        same_width = group_channels(width) == group_channels(recorded["width"])
        valid = depth == recorded["depth"] and same_width and 8 <= recorded["image_size"] <= 1024
        valid &= isinstance(recorded.get("dataroot", ""), str)
        valid &= recorded.get("dataset", "folder") in IMAGE_SIZES
    except (KeyError, AttributeError, IndexError, ValueError, TypeError, OverflowError):
        valid = False
    if not valid:
        raise UserError(
            f"{loaded.source}: its network, image size or dataset is not possible; the file is "
            "damaged, or of a newer version of this code"
        )


def check_dataset_info(info: DatasetInfo, source: Path) -> None:
    """Raise `UserError` if the classes are not strings or the statistics not three numbers each."""
    statistics = [*info.mean, *info.std]
    are_numbers = all(isinstance(v, float) and abs(v) < 1e6 for v in statistics)
    if len(info.mean) != 3 or len(info.std) != 3 or not are_numbers or min(info.std) < 0:
        raise UserError(f"{source}: mean and std are not three numbers each; the file is damaged")
    if not info.classes or not all(isinstance(name, str) for name in info.classes):
        raise UserError(f"{source}: the class names are not strings; the file is damaged")
