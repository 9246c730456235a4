"""Checkpoint files of ImageNet networks: read the common formats, export the backbone."""

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

# Prefixes that DataParallel, DistributedDataParallel and torch.compile put before every name.
WRAPPER_PREFIXES = re.compile(r"^(module\.|_orig_mod\.)+")

# The DHM release calls the shallow branch head2 and the deep branch head1.
DHM_NAMES = {
    "layer3_head2": "branches.0.stages.0",
    "layer4_head2": "branches.0.stages.1",
    "fc_head2": "branches.0.classifier",
    "layer4_head1": "branches.1.stages.0",
    "fc_head1": "branches.1.classifier",
}


class LoadedCheckpoint(NamedTuple):
    """A state dict with canonical parameter names, and the metadata of its file."""

    key: str  # of the state dict in the file; empty if the file is a bare state dict
    state_dict: dict[str, Tensor]
    class_names: list[str] | None  # in label order, if known
    arch: str | None  # if known
    image_size: int | None  # used in training, in pixels, if known


def read_checkpoint(path: Path) -> LoadedCheckpoint:
    """Read a checkpoint file to the CPU without running any code in it.

    Accepted are files of `torch.save` of any version, and safetensors. They hold a state dict,
    either bare or under the key `ema` (preferred: averaged weights), `model` or `state_dict`.
    Parameters may have torchvision's names, those of `DKSResNet`, or DHM's names for the branches,
    with or without the prefixes of DistributedDataParallel and torch.compile.

    Raises:
        UserError: the file is missing, damaged, or not a checkpoint.
    """
    content = read_safetensors(path) if path.suffix == ".safetensors" else checkpoint.load(path)
    original, key = content, ""
    for candidate in ("ema", "model", "state_dict"):
        if isinstance(content.get(candidate), Mapping) and content[candidate]:
            original, key = content[candidate], candidate
            break
    if not all(isinstance(name, str) for name in original):
        raise UserError(f"{path}: expected a state dict, but its keys are not parameter names")
    state_dict = {canonical_name(name): value for name, value in original.items()}
    if len(state_dict) != len(original):
        raise UserError(
            f"{path}: two parameters have the same name once the prefixes module. and _orig_mod. "
            "are removed"
        )
    add_batch_counters(state_dict)
    return LoadedCheckpoint(key, state_dict, *read_metadata(content if key else {}, path))


def add_batch_counters(state_dict: dict[str, Tensor]) -> None:
    """Add BatchNorm's `num_batches_tracked`, which evaluation ignores, if all of them are missing.

    PyTorch has saved them since version 0.4.1.
    """
    if any(name.endswith(".num_batches_tracked") for name in state_dict):
        return
    for name in [name for name in state_dict if name.endswith(".running_mean")]:
        counter = name.removesuffix("running_mean") + "num_batches_tracked"
        state_dict[counter] = torch.tensor(0)


def read_metadata(content: Mapping, path: Path) -> tuple[list[str] | None, str | None, int | None]:
    """Return the class names, the architecture and the image size in pixels; None if absent."""
    class_names, arch = content.get("class_names"), content.get("arch")
    is_list = isinstance(class_names, list) and all(isinstance(name, str) for name in class_names)
    if not (class_names is None or is_list) or not isinstance(arch, str | None):
        raise UserError(
            f"{path}: class_names is not a list of strings or arch is not a string; use an "
            "undamaged checkpoint"
        )
    options = content.get("options")
    size = options.get("image_size") if isinstance(options, Mapping) else None
    return class_names, arch, size if isinstance(size, int) else None


def canonical_name(name: str) -> str:
    """Return the name that a parameter of a checkpoint has in `DKSResNet`."""
    name = WRAPPER_PREFIXES.sub("", name)
    module, dot, rest = name.partition(".")
    return DHM_NAMES.get(module, module) + dot + rest


def read_safetensors(path: Path) -> dict[str, Tensor]:
    """Read a safetensors file to the CPU."""
    try:
        from safetensors.torch import load_file
    except ImportError as error:
        raise UserError(f"{path}: reading it requires: pip install safetensors") from error
    if not path.is_file():
        raise UserError(f"{path}: no such file; give the path of a checkpoint")
    try:
        return load_file(path)
    except Exception as error:  # safetensors raises its own class for damage, and others
        raise UserError(f"{path} cannot be read as safetensors: {one_line(error, 150)}") from error


def export_backbone(model: nn.Module, path: Path) -> None:
    """Write the backbone's state dict with torchvision's parameter names, atomically.

    Args:
        model: the network; may be wrapped in DistributedDataParallel or compiled.
        path: the format is safetensors if it ends in `.safetensors`, otherwise `torch.save`'s.

    Raises:
        UserError: the file cannot be written, or the safetensors package is missing.
    """
    state_dict = {canonical_name(name): value for name, value in model.state_dict().items()}
    backbone = {
        name: value.detach().cpu().contiguous()
        for name, value in resnet.backbone_state_dict(state_dict).items()
    }
    if path.suffix != ".safetensors":
        checkpoint.save(path, backbone)
        return
    try:
        from safetensors.torch import save
    except ImportError as error:
        raise UserError(f"{path}: writing it requires: pip install safetensors") from error
    content = save(backbone, metadata={"format": "pt"})
    checkpoint.write_atomically(path, lambda file: file.write(content))


def sha256(path: Path) -> str:
    """Return the SHA-256 of a file in hexadecimal."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
