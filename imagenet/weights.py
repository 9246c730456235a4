"""Checkpoint files of ImageNet networks: read the common formats, export the backbone."""

import hashlib
import json
import re
from collections import OrderedDict
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor, nn

import resnet
from common import checkpoint
from common.command_line import DTYPES, UserError, one_line

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

EXPORT_KEY = "dks"  # of the metadata in an exported file


class Metadata(NamedTuple):
    """What a file says about its network; None where it says nothing."""

    arch: str | None = None
    class_names: list[str] | None = None  # in label order
    image_size: int | None = None  # used in training, in pixels
    dtype: str | None = None  # used in training, such as `bfloat16`


class LoadedCheckpoint(NamedTuple):
    """A state dict with canonical parameter names, and the metadata of its file."""

    key: str  # of the state dict in the file; empty if the file is a bare state dict
    state_dict: dict[str, Tensor]
    metadata: Metadata


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
    original, key, metadata = content, "", exported_metadata(content)
    for candidate in ("ema", "model", "state_dict"):
        if isinstance(content.get(candidate), Mapping) and content[candidate]:
            original, key, metadata = content[candidate], candidate, run_metadata(content)
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
    return LoadedCheckpoint(key, state_dict, check_metadata(metadata, path))


def add_batch_counters(state_dict: dict[str, Tensor]) -> None:
    """Add BatchNorm's `num_batches_tracked`, which evaluation ignores, if all of them are missing.

    PyTorch has saved them since version 0.4.1.
    """
    if any(name.endswith(".num_batches_tracked") for name in state_dict):
        return
    for name in [name for name in state_dict if name.endswith(".running_mean")]:
        counter = name.removesuffix("running_mean") + "num_batches_tracked"
        state_dict[counter] = torch.tensor(0)


def run_metadata(content: Mapping) -> dict:
    """Return the metadata in a checkpoint of `train.py`, or in one of the same form."""
    options = content.get("options")
    trained = options if isinstance(options, Mapping) else {}
    found = {name: content.get(name) for name in ("arch", "class_names")}
    return found | {name: trained.get(name) for name in ("image_size", "dtype")}


def exported_metadata(content: Mapping) -> object:
    """Return the metadata that `export_backbone` has put into a state dict, if any."""
    attribute = getattr(content, "_metadata", None)
    return attribute.get(EXPORT_KEY, {}) if isinstance(attribute, Mapping) else {}


def check_metadata(values: object, path: Path) -> Metadata:
    """Return the metadata of a file after checking its types."""
    values = values if isinstance(values, Mapping) else {}
    found = Metadata(*(values.get(name) for name in Metadata._fields))
    names = found.class_names
    is_list = isinstance(names, list) and all(isinstance(name, str) for name in names)
    if not (names is None or is_list) or not isinstance(found.arch, str | None):
        raise UserError(
            f"{path}: class_names is not a list of strings or arch is not a string; use an "
            "undamaged checkpoint"
        )
    return found._replace(
        image_size=found.image_size if isinstance(found.image_size, int) else None,
        dtype=found.dtype if found.dtype in DTYPES.values() else None,
    )


def canonical_name(name: str) -> str:
    """Return the name that a parameter of a checkpoint has in `DKSResNet`."""
    name = WRAPPER_PREFIXES.sub("", name)
    module, dot, rest = name.partition(".")
    return DHM_NAMES.get(module, module) + dot + rest


def read_safetensors(path: Path) -> OrderedDict[str, Tensor]:
    """Read a safetensors file to the CPU, with its metadata as an exported state dict has it."""
    try:
        from safetensors import safe_open
        from safetensors.torch import load_file
    except ImportError as error:
        raise UserError(f"{path}: reading it requires: pip install safetensors") from error
    if not path.is_file():
        raise UserError(f"{path}: no such file; give the path of a checkpoint")
    try:
        state_dict = OrderedDict(load_file(path))
        with safe_open(path, "pt") as file:
            text = (file.metadata() or {}).get(EXPORT_KEY, "{}")
        state_dict._metadata = {EXPORT_KEY: json.loads(text)}
        return state_dict
    except Exception as error:  # safetensors raises its own class for damage, and others
        raise UserError(f"{path} cannot be read as safetensors: {one_line(error, 150)}") from error


def export_backbone(model: nn.Module, path: Path, metadata: Metadata) -> None:
    """Write the backbone's state dict with torchvision's parameter names, atomically.

    Args:
        model: the network; may be wrapped in DistributedDataParallel or compiled.
        path: the format is safetensors if it ends in `.safetensors`, otherwise `torch.save`'s.
        metadata: of the network, for `read_checkpoint`; other readers ignore it.

    Raises:
        UserError: the file cannot be written, or the safetensors package is missing.
    """
    backbone = backbone_state_dict(model)
    if path.suffix != ".safetensors":
        # The attribute in which state dicts carry the versions of modules. The safe loader keeps
        # it, and `load_state_dict` looks up nothing but names of modules in it.
        backbone._metadata = {EXPORT_KEY: metadata._asdict()}
        checkpoint.save(path, backbone)
        return
    try:
        from safetensors.torch import save
    except ImportError as error:
        raise UserError(f"{path}: writing it requires: pip install safetensors") from error
    content = save(backbone, {"format": "pt", EXPORT_KEY: json.dumps(metadata._asdict())})
    checkpoint.write_atomically(path, lambda file: file.write(content))


def backbone_state_dict(model: nn.Module) -> OrderedDict[str, Tensor]:
    """Return the backbone's state dict with torchvision's parameter names, on the CPU."""
    state_dict = {canonical_name(name): value for name, value in model.state_dict().items()}
    return OrderedDict(
        (name, value.detach().cpu().contiguous())
        for name, value in resnet.backbone_state_dict(state_dict).items()
    )


def sha256(path: Path) -> str:
    """Return the SHA-256 of a file in hexadecimal."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
