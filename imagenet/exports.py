"""Export a backbone: to a file, or to a folder that timm and the Hugging Face Hub take as it is."""

import json
import math
import os
import tempfile
from collections.abc import Callable
from pathlib import Path

import torch
from torch import nn

import resnet
import weights
from common.command_line import UserError, one_line
from common.distributed import world_size
from common.files import sync_folder, write_atomically
from common.signals import defer_signals
from data import ImageSets
from engine import Trainer
from export_path import WEIGHTS_FILE, export_exists, is_folder, weights_path
from model_card import model_card
from presets import IMAGENET_MEAN, IMAGENET_STD, resized_side
from train_options import Config
from training_run import TrainingRun, find_record
from validation_set import imagenet_synsets
from weights import Metadata


def export(
    model: nn.Module, path: Path, metadata: Metadata, source: str, run: TrainingRun | None = None
) -> None:
    """Write the backbone of a network to `path`; its suffix decides whether that is a folder.

    A folder has the weights, timm's configuration and a model card.

    Args:
        model: the network, without wrappers.
        path: the file to write, or the folder to create.
        metadata: of the network.
        source: where the weights come from, for the model card.
        run: the training, if it is known.

    Raises:
        UserError: the export cannot be written, or timm does not have the network.
    """
    if not is_folder(path):
        weights.export_backbone(model, path, metadata)
        return
    if metadata.arch not in resnet.NETWORKS:
        raise UserError(
            f"--export {path}: a folder needs one of {', '.join(resnet.NETWORKS)}, not "
            f"{metadata.arch}; give a file, such as {path.name}.safetensors"
        )
    config = timm_config(model, metadata)
    named = (p for name, p in model.named_parameters() if not name.startswith("branches."))
    parameters = sum(parameter.numel() for parameter in named)
    card = model_card(path.resolve().name, config, parameters, source, run)

    def write(folder: Path) -> None:
        weights.export_backbone(model, folder / WEIGHTS_FILE, metadata)
        write_text(folder / "config.json", json.dumps(config, indent=2) + "\n")
        write_text(folder / "README.md", card)

    create_folder(path, write)


def export_trained(config: Config, trainer: Trainer, sets: ImageSets) -> None:
    """Export the backbone of a finished run, with the averaged weights if there are any."""
    averaged = trainer.ema is not None
    model = trainer.ema.model if averaged else trainer.model
    metadata = Metadata(config.arch, sets.class_names, config.image_size, config.dtype)
    if config.export.exists():
        if not has_backbone(config.export, model, metadata):
            raise export_exists(config.export)
        print(
            f"--export {config.export}: exists already, with the weights of this run; left as it is"
        )
        return
    run = TrainingRun(
        config.to_dict(),
        trainer.epoch,
        trainer.step,
        len(sets.train),
        world_size(),
        averaged,
        find_record(config.save, trainer.step, config.to_dict()),
    )
    source = f"`{config.save.resolve().name}`, a run of `train.py`"
    export(model, config.export, metadata, source, run)
    print(f"exported the backbone{' (averaged weights)' * averaged} to {config.export}")


def has_backbone(path: Path, model: nn.Module, metadata: Metadata) -> bool:
    """Return whether an export has exactly the backbone of this network."""
    try:
        found = weights.read_checkpoint(weights_path(path))
    except UserError:  # missing, damaged or something else
        return False
    backbone = weights.backbone_state_dict(model)
    return (
        found.metadata == metadata
        and found.state_dict.keys() == backbone.keys()
        and all(torch.equal(value, found.state_dict[name]) for name, value in backbone.items())
    )


def timm_config(model: nn.Module, metadata: Metadata) -> dict:
    """Return the `config.json` from which timm builds the network and its preprocessing."""
    num_classes, num_features = model.fc.weight.shape
    names = metadata.class_names or (imagenet_synsets() if num_classes == 1000 else None)
    size = metadata.image_size or 224
    return {
        "architecture": metadata.arch,  # timm's names of these networks are torchvision's
        "num_classes": num_classes,
        "num_features": num_features,
        "global_pool": "avg",
        **({"label_names": names} if names else {}),
        "pretrained_cfg": {
            "num_classes": num_classes,
            "input_size": [3, size, size],
            "fixed_input_size": False,
            "interpolation": "bicubic",
            "crop_pct": crop_fraction(size),
            "crop_mode": "squash",
            "mean": list(IMAGENET_MEAN),
            "std": list(IMAGENET_STD),
            "pool_size": [math.ceil(size / 32)] * 2,
            "first_conv": "conv1",
            "classifier": "fc",
        },
    }


def crop_fraction(image_size: int) -> float:
    """Return the `crop_pct` for which timm resizes images to the same side as we do.

    timm rounds `image_size / crop_pct` down, and `resized_side` rounds to the nearest integer.
    """
    side = resized_side(image_size)
    # The exact fraction can come out just below `side`; the last one never does.
    fractions = (224 / 256, image_size / side, image_size / (side + 0.5))
    return next(f for f in fractions if math.floor(image_size / f) == side)


def write_text(path: Path, text: str) -> None:
    """Write a text file to disk. Names of folders may have bytes that are not UTF-8."""
    content = text.encode("utf-8", "backslashreplace")
    write_atomically(path, lambda file: file.write(content))


def create_folder(path: Path, write: Callable[[Path], None]) -> None:
    """Create a folder so that `path` appears only when `write` has written all of it.

    Raises:
        UserError: the folder exists or cannot be written.
    """
    try:
        with (
            defer_signals(),
            tempfile.TemporaryDirectory(prefix=f".{path.name}-", dir=path.parent) as temporary,
        ):
            content = Path(temporary) / path.name
            content.mkdir()  # unlike the temporary folder, with the user's default permissions
            try:
                write(content)
            except UserError as error:  # the message must not name a folder that is removed
                raise UserError(str(error).replace(str(content), str(path))) from error
            sync_folder(content)
            if path.exists():
                raise UserError(f"--export {path}: exists already; choose another name")
            os.rename(content, path)
            sync_folder(path.parent)
    except OSError as error:
        raise UserError(
            f"--export {path} can't be written: {one_line(error, 150)}; free some space or choose "
            "another folder"
        ) from error
