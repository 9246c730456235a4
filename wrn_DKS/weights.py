"""The networks of the options, and files of their weights: checkpoints, exports, the release."""

from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor, nn

import resnet
import wide_resnet
from common import checkpoint
from common.command_line import UserError
from common.distributed import Compute, make_compute
from common.run_folder import checkpoint_path
from data import Dataset
from flags import Config

PROGRAM = "wrn_DKS"  # in the metadata of a file
NETWORK_OPTIONS = ("arch", "depth", "width", "image_size", "dataset", "dtype")  # there too


def build_network(config: Config, num_classes: int, branches: bool) -> nn.Module:
    """Build the network of these options, or raise `UserError` if there is no such network."""
    try:
        if config.arch == "resnet":
            return resnet.ResNet(config.depth, num_classes, branches)
        dropout = wide_resnet.DROPOUT if config.dropout else 0.0
        return wide_resnet.WideResNet(config.depth, config.width, num_classes, dropout, branches)
    except ValueError as error:
        raise UserError(f"--{error}") from error  # begins with `depth` or `width`


def choose_compute(config: Config, model: nn.Module, device: torch.device) -> Compute:
    """Return how to compute the network: channels last, unless that is slower or wrong on a CPU.

    In oneDNN, the backward pass of a strided 1x1 convolution in channels last writes out of bounds
    if there are fewer channels than floats in a vector register, up to 16 (torch 2.14, AVX2). With
    1,280 channels, as in WRN-28-10, a step on an Intel CPU takes 6 to 14 % longer.
    """
    convolutions = [each for each in model.modules() if isinstance(each, nn.Conv2d)]
    narrow = any(each.kernel_size == (1, 1) and each.in_channels < 16 for each in convolutions)
    wide = any(each.in_channels >= 1280 for each in convolutions)
    return make_compute(device, config.dtype, channels_last_on_cpu=not (narrow or wide))


def describe_network(config: Config, data: Dataset) -> dict:
    """Return the metadata of a network, from which `load` builds it again."""
    if config.arch == "resnet":
        branches = resnet.branch_specs(config.depth)
    else:
        branches = wide_resnet.branch_specs(config.depth, config.width)
    return {
        "program": PROGRAM,
        "name": config.network_name,
        **{name: getattr(config, name) for name in NETWORK_OPTIONS},
        "branches": "" if config.method == "baseline" else str(branches),  # may be changed in code
        "classes": data.classes,
        "mean": data.mean,
        "std": data.std,
    }


class Weights(NamedTuple):
    """The weights in a file."""

    source: Path
    state: dict[str, Tensor]  # of a network with or without branches
    metadata: dict  # without `classes`, `mean` and `std` for a file of the release
    options: dict  # of the run; those in the metadata if it is not known
    averaged: bool  # a moving average of the weights of a run
    progress: str  # of the run

    @property
    def backbone(self) -> dict[str, Tensor]:
        return {k: v for k, v in self.state.items() if not k.startswith("branches.")}

    def initialize_backbone(self, model: nn.Module, classes: list[str]) -> None:
        """Load the backbone; a classifier of other classes and the branches stay random."""
        same = self.metadata.get("classes") == classes
        random = ("branches.",) if same else ("branches.", "classifier.fc.")
        checkpoint.load_backbone(model, self.backbone, random, self.source)


def load(path: Path) -> Weights:
    """Load the weights of a run (averaged ones if it has them), an export or the release.

    Raises:
        UserError: the file is none of them, is damaged, or is of the other program.
    """
    path = checkpoint_path(path)
    content = checkpoint.load(path)
    metadata = checkpoint.metadata_of(content)
    try:
        if isinstance(content.get("params"), dict):
            state = wide_resnet.released_state_dict(content["params"])
            depth, width = wide_resnet.network_size(state)
            metadata = {"program": PROGRAM, "arch": "wrn", "depth": depth, "width": width}
        elif metadata.get("program", PROGRAM) != PROGRAM:
            raise UserError(f"{path}: weights of {metadata['program']}/; use its main.py")
        elif not metadata:
            keys = checkpoint.abbreviate([str(key) for key in content], 5)
            raise UserError(f"{path}: no weights of this program; it has the keys {keys}")
        else:
            state = content.get("ema") or content.get("model", content)
        known = {name: metadata[name] for name in NETWORK_OPTIONS if name in metadata}
        averaged, progress = bool(content.get("ema")), checkpoint.progress(content)
        return Weights(path, state, metadata, content.get("options", known), averaged, progress)
    except (KeyError, TypeError, AttributeError, IndexError) as error:
        raise UserError(f"{path}: damaged ({error}); use another copy of it") from error
