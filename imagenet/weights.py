"""Checkpoint files of ImageNet networks: the forms that are read, and the one that is written."""

import hashlib
import re
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor, nn

import resnet
from common import checkpoint
from common.command_line import UserError, one_line

# What DistributedDataParallel (or DataParallel) and torch.compile put before every name.
WRAPPERS = re.compile(r"^(module\.|_orig_mod\.)+")

# The release of DHM, whose branches these are, calls the shallow one head2, the deep one head1.
DHM_NAMES = {
    "layer3_head2": "branches.0.stages.0",
    "layer4_head2": "branches.0.stages.1",
    "fc_head2": "branches.0.classifier",
    "layer4_head1": "branches.1.stages.0",
    "fc_head1": "branches.1.classifier",
}


class Checkpoint(NamedTuple):
    """What a file holds, under this project's names."""

    part: str  # key of the state dict in the file; empty if the file is one itself
    weights: dict[str, Tensor]
    class_names: list[str] | None  # in the order of the outputs, where the file has them
    arch: str | None  # likewise
    image_size: int | None  # pixels, of its training, likewise


def read(path: Path) -> Checkpoint:
    """Read a checkpoint file to the CPU, running none of its code.

    Accepted: a state dict, by itself or under `ema` (averaged weights, which `train.py` exports
    too where there are any), `model` or `state_dict`; names as torchvision has
    them, `branches.…`, or DHM's for the branches; wrappers' prefixes before them or not;
    torch.save's containers of any age, and safetensors.

    Raises:
        UserError: no such file, damaged, or something else.
    """
    content = read_safetensors(path) if path.suffix == ".safetensors" else checkpoint.load(path)
    state, part = content, ""
    for key in ("ema", "model", "state_dict"):
        if isinstance(content.get(key), Mapping) and content[key]:
            state, part = content[key], key
            break
    if not all(isinstance(name, str) for name in state):
        raise UserError(f"{path}: no state dict: its keys are not names of parameters")
    weights = {own_name(name): value for name, value in state.items()}
    if len(weights) != len(state):
        raise UserError(
            f"{path}: two parameters of one name, once module. and the like are removed"
        )
    # BatchNorm counts batches since PyTorch 0.4.1; evaluation does not use the number.
    if not any(name.endswith(".num_batches_tracked") for name in weights):
        for name in [name for name in weights if name.endswith(".running_mean")]:
            counter = name.removesuffix("running_mean") + "num_batches_tracked"
            weights[counter] = torch.tensor(0)
    around = content if part else {}
    names, arch = around.get("class_names"), around.get("arch")
    are_names = isinstance(names, list) and all(isinstance(name, str) for name in names)
    if not (names is None or are_names) or not isinstance(arch, str | None):
        raise UserError(f"{path}: its class_names or arch are no names; use another copy of it")
    options = around.get("options")
    size = options.get("image_size") if isinstance(options, Mapping) else None
    return Checkpoint(part, weights, names, arch, size if isinstance(size, int) else None)


def own_name(name: str) -> str:
    """A parameter's name here, from its name in a checkpoint."""
    name = WRAPPERS.sub("", name)
    module, dot, rest = name.partition(".")
    return DHM_NAMES.get(module, module) + dot + rest


def read_safetensors(path: Path) -> dict[str, Tensor]:
    try:
        from safetensors.torch import load_file
    except ImportError as error:
        raise UserError(f"{path}: reading it needs a package: pip install safetensors") from error
    if not path.is_file():
        raise UserError(f"{path}: no such file; give the path of a checkpoint")
    try:
        return load_file(path)
    except Exception as error:  # safetensors has its own class for damage, and raises others
        raise UserError(f"{path} can't be read as safetensors: {one_line(error, 150)}") from error


def export_backbone(model: nn.Module, path: Path) -> None:
    """Write the backbone's state dict, under torchvision's names, atomically.

    Args:
        model: a network, in DistributedDataParallel or compiled or not.
        path: ends in `.safetensors` for that format; else torch.save's is used.

    Raises:
        UserError: the file can't be written, or the package safetensors is missing.
    """
    state = {own_name(name): value for name, value in model.state_dict().items()}
    weights = {
        name: value.detach().cpu().contiguous()
        for name, value in resnet.backbone_weights(state).items()
    }
    if path.suffix != ".safetensors":
        checkpoint.save(path, weights)
        return
    try:
        from safetensors.torch import save
    except ImportError as error:
        raise UserError(f"{path}: writing it needs a package: pip install safetensors") from error
    content = save(weights, metadata={"format": "pt"})
    checkpoint.write_atomically(path, lambda file: file.write(content))


def sha256(path: Path) -> str:
    """The file's SHA-256, in hexadecimal."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
