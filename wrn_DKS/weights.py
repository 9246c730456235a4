"""The networks of the options, and files of their weights: checkpoints, exports, the release."""

from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor, nn

import resnet
import wide_resnet
from common import checkpoint
from common.command_line import UserError
from common.distributed import Compute, make_compute, print_once
from common.run_folder import checkpoint_path
from data import Dataset
from flags import Config

PROGRAM = "wrn_DKS"  # in the metadata of a file


def build_network(config: Config, num_classes: int, branches: bool) -> nn.Module:
    """Build the network of these options, with random weights.

    Raises:
        UserError: there is no such network.
    """
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
    if there are fewer channels than floats in a vector register (up to 16). With torch 2.14 on a
    CPU with AVX2, networks narrower than WRN-d-0.5 crashed. With 1,280 channels, as in the deep
    branch of WRN-28-10, channels last is slower: a step on an Intel CPU takes 6 to 14 % longer.
    """
    convolutions = [each for each in model.modules() if isinstance(each, nn.Conv2d)]
    narrow = any(each.kernel_size == (1, 1) and each.in_channels < 16 for each in convolutions)
    wide = any(each.in_channels >= 1280 for each in convolutions)
    return make_compute(device, config.dtype, channels_last_on_cpu=not (narrow or wide))


def describe_network(config: Config, data: Dataset) -> dict:
    """Return the metadata of a network, from which `load` builds it again."""
    return {
        "program": PROGRAM,
        "name": config.network_name,
        "arch": config.arch,
        "depth": config.depth,
        "width": config.width,
        "image_size": config.image_size,
        "dataset": config.dataset,
        "dtype": config.dtype,  # in training
        "branches": describe_branches(config),
        "classes": data.classes,
        "mean": data.mean,
        "std": data.std,
    }


def describe_branches(config: Config) -> str:
    """Return the branch table of a network, which tells runs of changed code apart."""
    if config.method == "baseline":
        return ""
    if config.arch == "resnet":
        return str(resnet.branch_specs(config.depth))
    return str(wide_resnet.branch_specs(config.depth, config.width))


class Weights(NamedTuple):
    """The weights in a file."""

    source: Path
    state: dict[str, Tensor]  # of a network with or without branches
    metadata: dict  # without `classes`, `mean` and `std` for a file of the release
    options: dict  # of the run; those in the metadata if it is not known
    epoch: int | None  # number of finished epochs, if it is known
    averaged: bool  # a moving average of the weights of a run

    @property
    def backbone(self) -> dict[str, Tensor]:
        return {k: v for k, v in self.state.items() if not k.startswith("branches.")}

    @property
    def has_branches(self) -> bool:
        return len(self.backbone) < len(self.state)


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
            raise UserError(f"{path}: no weights of this program; it has {keys}")
        else:
            state = content.get("ema") or content.get("model", content)
        names = ("arch", "depth", "width", "image_size", "dataset", "dtype")
        options = {name: metadata[name] for name in names if name in metadata}
        epoch = content.get("epoch")
        epoch = epoch if isinstance(epoch, int) else None
        options = content.get("options", options)
        return Weights(path, state, metadata, options, epoch, averaged=bool(content.get("ema")))
    except (KeyError, TypeError, AttributeError, IndexError) as error:
        raise UserError(f"{path}: damaged ({error}); use another copy of it") from error


def initialize_backbone(model: nn.Module, path: Path, classes: list[str]) -> None:
    """Load the backbone's weights; a classifier of other classes and the branches stay random."""
    weights, own = load(path), model.state_dict()
    same = weights.metadata.get("classes") == classes
    kept = {k: v for k, v in own.items() if k.startswith("branches.")}
    if not same:
        kept |= {k: v for k, v in own.items() if k.startswith("classifier.fc.")}
    checkpoint.load_weights(model, weights.backbone | kept, weights.source)
    print_once(
        f"--init {path}: loaded the backbone; random: "
        f"{'the branches' if same else 'the classifier, of other classes, and the branches'}"
    )
