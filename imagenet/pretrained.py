"""Networks with weights: loaded strictly from a checkpoint, or from torchvision."""

from pathlib import Path
from typing import NamedTuple

import torchvision
from torch import Tensor, nn

import resnet
import weights
from common import checkpoint
from common.command_line import UserError, one_line
from common.distributed import print_once


class LoadedModel(NamedTuple):
    """A network with weights, and what is known about it."""

    model: nn.Module  # in evaluation mode; returns a tuple of logits
    num_classes: int
    class_names: list[str] | None  # in the order of the outputs, if known
    image_size: int | None = None  # used in training, in pixels, if known


class TupleOutput(nn.Module):
    """A network of torchvision's, whose logits come in a tuple here as a DKS network's do."""

    def __init__(self, network: nn.Module):
        super().__init__()
        self.network = network

    def forward(self, images: Tensor) -> tuple[Tensor]:
        return (self.network(images),)


def load_model(arch: str, path: Path, branches: bool = False) -> LoadedModel:
    """Build the network and load the checkpoint into it, every key and shape.

    Args:
        arch: a name in `resnet.NETWORKS`, or another classifier's in torchvision.
        path: the checkpoint, in any form that `weights.read` takes.
        branches: load the auxiliary branches too; otherwise they are left out.

    Raises:
        UserError: the file can't be read, is of another network, or has no branches to load.
    """
    found = weights.read(path)
    if found.arch not in (None, arch):
        raise UserError(f"{path}: a checkpoint of {found.arch}, not {arch}; use -a {found.arch}")
    if found.part == "ema":
        print_once(f"{path}: its averaged weights are used")
    state = found.weights
    if not branches:
        state = resnet.backbone_weights(state)
    elif len(state) == len(resnet.backbone_weights(state)):
        raise UserError(f"{path}: no auxiliary branches in it; leave out --branches")
    network = build(arch, branches)
    last = output_parameter(network)
    shape = getattr(state.get(last), "shape", ())
    num_classes = shape[0] if shape else 1000
    if num_classes != 1000:
        network = build(arch, branches, num_classes)
    checkpoint.load_weights(network, state, path)
    if found.class_names is not None and len(set(found.class_names)) != num_classes:
        names = len(set(found.class_names))
        raise UserError(f"{path}: {names} different class names in it for {num_classes} outputs")
    return LoadedModel(as_tuple(network.eval()), num_classes, found.class_names, found.image_size)


def load_torchvision(arch: str, name: str) -> LoadedModel:
    """A network with the weights that torchvision has for it, downloaded once.

    Raises:
        UserError: it has none of that name, or they can't be fetched.
    """
    known = torchvision.models.get_model_weights(arch)
    if name not in known.__members__:
        raise UserError(
            f"--torchvision-weights {name}: for {arch} expected {' or '.join(known.__members__)}"
        )
    try:
        network = torchvision.models.get_model(arch, weights=known[name])
    except (OSError, RuntimeError) as error:  # the latter where the file's hash is wrong
        raise UserError(
            f"--torchvision-weights {name}: can't be fetched ({one_line(error, 150)}); "
            "try again with a network"
        ) from error
    return LoadedModel(as_tuple(network.eval()), len(known[name].meta["categories"]), None)


def build(arch: str, branches: bool = False, num_classes: int = 1000) -> nn.Module:
    """A network with random weights, under torchvision's parameter names."""
    if arch in resnet.NETWORKS:
        return resnet.build(arch, branches, num_classes)
    if branches:
        raise UserError(f"--branches: {arch} has none; use one of {', '.join(resnet.NETWORKS)}")
    # Two networks of torchvision's would spend a minute on random weights, with a warning.
    slow = {"init_weights": False} if arch in ("googlenet", "inception_v3") else {}
    return torchvision.models.get_model(arch, weights=None, num_classes=num_classes, **slow)


def output_parameter(network: nn.Module) -> str:
    """The name of a parameter with one row for each output: the backbone's last one."""
    return list(resnet.backbone_weights(dict(network.named_parameters())))[-1]


def as_tuple(network: nn.Module) -> nn.Module:
    return network if isinstance(network, resnet.DKSResNet) else TupleOutput(network)
