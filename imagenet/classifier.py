"""A network with its weights, from a checkpoint, strictly, or from torchvision."""

from pathlib import Path
from typing import NamedTuple

import torchvision
from torch import Tensor, nn

import checkpoint
import resnet
import weights
from command_line import Refused, one_line
from distributed import print_once


class Classifier(NamedTuple):
    """A network with weights."""

    model: nn.Module  # in evaluation mode; gives a tuple of logits
    outputs: int  # number of classes, K
    class_names: list[str] | None  # in the order of the outputs, where they are known
    image_size: int | None = None  # pixels, of its training, where it is known


class OneClassifier(nn.Module):
    """A network of torchvision's, whose logits come in a tuple here as a DKS network's do."""

    def __init__(self, network: nn.Module):
        super().__init__()
        self.network = network

    def forward(self, images: Tensor) -> tuple[Tensor]:
        return (self.network(images),)


def load_classifier(arch: str, path: Path, branches: bool = False) -> Classifier:
    """Build the network and load the checkpoint into it, every key and shape.

    Args:
        arch: a name in `resnet.NETWORKS`, or another classifier's in torchvision.
        path: the checkpoint, in any form that `weights.read` takes.
        branches: load the auxiliary branches too; otherwise they are left out.

    Raises:
        Refused: the file can't be read, is of another network, or has no branches to load.
    """
    found = weights.read(path)
    if found.arch not in (None, arch):
        raise Refused(f"{path}: a checkpoint of {found.arch}, not {arch}; use -a {found.arch}")
    if found.part == "ema":
        print_once(f"{path}: its averaged weights are used")
    state = found.weights
    if not branches:
        state = resnet.backbone_weights(state)
    elif len(state) == len(resnet.backbone_weights(state)):
        raise Refused(f"{path}: no auxiliary branches in it; leave out --branches")
    network = build(arch, branches)
    last = backbone_outputs(network)
    shape = getattr(state.get(last), "shape", ())
    outputs = shape[0] if shape else 1000
    if outputs != 1000:
        network = build(arch, branches, outputs)
    checkpoint.load_weights(network, state, path)
    if found.class_names is not None and len(set(found.class_names)) != outputs:
        names = len(set(found.class_names))
        raise Refused(f"{path}: {names} different class names in it for {outputs} outputs")
    return Classifier(as_tuple(network.eval()), outputs, found.class_names, found.image_size)


def load_torchvision(arch: str, name: str) -> Classifier:
    """A network with the weights that torchvision has for it, downloaded once.

    Raises:
        Refused: it has none of that name, or they can't be fetched.
    """
    known = torchvision.models.get_model_weights(arch)
    if name not in known.__members__:
        raise Refused(
            f"--torchvision-weights {name}: for {arch} expected {' or '.join(known.__members__)}"
        )
    try:
        network = torchvision.models.get_model(arch, weights=known[name])
    except (OSError, RuntimeError) as error:  # the latter where the file's hash is wrong
        raise Refused(
            f"--torchvision-weights {name}: can't be fetched ({one_line(error, 150)}); "
            "try again with a network"
        ) from error
    return Classifier(as_tuple(network.eval()), len(known[name].meta["categories"]), None)


def build(arch: str, branches: bool = False, num_classes: int = 1000) -> nn.Module:
    """A network with random weights, under torchvision's parameter names."""
    if arch in resnet.NETWORKS:
        return resnet.build(arch, branches, num_classes)
    if branches:
        raise Refused(f"--branches: {arch} has none; use one of {', '.join(resnet.NETWORKS)}")
    # Two networks of torchvision's would spend a minute on random weights, with a warning.
    slow = {"init_weights": False} if arch in ("googlenet", "inception_v3") else {}
    return torchvision.models.get_model(arch, weights=None, num_classes=num_classes, **slow)


def backbone_outputs(network: nn.Module) -> str:
    """The name of a parameter with one row for each output: the backbone's last one."""
    return list(resnet.backbone_weights(dict(network.named_parameters())))[-1]


def as_tuple(network: nn.Module) -> nn.Module:
    return network if isinstance(network, resnet.DKSResNet) else OneClassifier(network)
