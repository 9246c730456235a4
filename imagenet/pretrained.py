"""Build classifiers with weights from a checkpoint file or from torchvision."""

from functools import partial
from pathlib import Path
from typing import NamedTuple
from urllib.parse import urlparse

import torch
import torchvision
from torch import Tensor, nn

import resnet
from common import checkpoint
from common.command_line import UserError, plural, root_cause
from common.distributed import print_once
from common.downloads import download_once
from export_path import weights_path
from weights import Metadata, read_checkpoint


class LoadedModel(NamedTuple):
    """A network with its weights and metadata."""

    model: nn.Module  # in evaluation mode; returns a tuple of logits
    num_classes: int
    metadata: Metadata  # the architecture, and what else the checkpoint says
    has_branches: bool  # whether the checkpoint has auxiliary branches, loaded or not

    @property
    def network(self) -> nn.Module:
        """The model, with torchvision's parameter names."""
        return self.model.network if isinstance(self.model, TupleOutput) else self.model


class TupleOutput(nn.Module):
    """Wrap a torchvision network so that it returns a tuple of logits, as `DKSResNet` does."""

    def __init__(self, network: nn.Module):
        super().__init__()
        self.network = network

    def forward(self, images: Tensor) -> tuple[Tensor]:
        return (self.network(images),)


def load_model(arch: str | None, path: Path, branches: bool = False) -> LoadedModel:
    """Build a network and load a checkpoint into it, strictly.

    Args:
        arch: a key of `resnet.NETWORKS`, or the name of another torchvision classifier. None: that
            of the checkpoint, or ResNet-18 if it does not name one.
        path: a checkpoint in any form that `read_checkpoint` accepts, or the folder of a run or of
            an export.
        branches: load the auxiliary branches as well. They are dropped otherwise.

    Raises:
        UserError: the file cannot be read, belongs to another network, or has no branches
            although `branches` is set.
    """
    path = weights_path(path)
    loaded = read_checkpoint(path)
    is_named = (arch, loaded.metadata.arch) != (None, None)
    arch = choose_arch(arch, loaded.metadata.arch, path)
    if loaded.key == "ema":
        print_once(f"{path}: using the averaged (EMA) weights")
    backbone = resnet.backbone_state_dict(loaded.state_dict)
    has_branches = len(backbone) < len(loaded.state_dict)
    if branches and not has_branches:
        raise UserError(f"{path} has no auxiliary branches; leave out --branches")
    state_dict = loaded.state_dict if branches else backbone
    network = build_network(arch, branches)
    last_parameter = list(resnet.backbone_state_dict(dict(network.named_parameters())))[-1]
    shape = getattr(state_dict.get(last_parameter), "shape", ())
    num_classes = shape[0] if shape else 1000  # a wrong shape is reported by load_weights
    if num_classes != 1000:
        network = build_network(arch, branches, num_classes)
    try:
        checkpoint.load_weights(network, state_dict, path)
    except UserError as error:
        if is_named:
            raise
        raise UserError(f"{error}; taken for a {arch}: give its network with -a") from error
    check_class_names(loaded.metadata.class_names, num_classes, path)
    network.eval()
    model = network if isinstance(network, resnet.DKSResNet) else TupleOutput(network)
    return LoadedModel(model, num_classes, loaded.metadata._replace(arch=arch), has_branches)


def choose_arch(given: str | None, named: str | None, path: Path) -> str:
    """Return the architecture that was given, or else the one that the checkpoint names."""
    if given is None:
        arch = next(iter(resnet.NETWORKS)) if named is None else named
        check_arch(arch, f"{path}: network")
        return arch
    check_arch(given)
    if named not in (None, given):
        raise UserError(f"{path}: a checkpoint of {named}, not {given}; leave out -a")
    return given


def check_arch(arch: str, source: str = "-a") -> None:
    """Raise `UserError` for a network that is neither in `resnet.NETWORKS` nor in torchvision."""
    known = torchvision.models.list_models(module=torchvision.models)
    if arch not in resnet.NETWORKS and arch not in known:
        raise UserError(
            f"{source} {arch}: expected {', '.join(resnet.NETWORKS)}, or the name of another "
            "torchvision classifier, such as densenet121"
        )


def check_class_names(class_names: list[str] | None, num_classes: int, path: Path) -> None:
    """Raise `UserError` unless the checkpoint's class names, if any, fit the network."""
    if class_names is None:
        return
    distinct = len(set(class_names))
    if distinct != num_classes:
        raise UserError(
            f"{path}: {plural(distinct, 'different class name')} for a network of "
            f"{plural(num_classes, 'class')}; use an undamaged checkpoint"
        )


def load_torchvision(
    arch: str, name: str, flag: str = "--torchvision-weights", file_flag: str = "--model_path"
) -> LoadedModel:
    """Build a torchvision classifier with torchvision's weights, downloaded on first use.

    Args:
        arch: name of the classifier.
        name: of the weights, such as `IMAGENET1K_V1`.
        flag, file_flag: with which the name was given and a file can be, for messages.

    Raises:
        UserError: torchvision has no such weights, or the download failed.
    """
    check_arch(arch)
    known = torchvision.models.get_model_weights(arch)
    if name not in known.__members__:
        raise UserError(f"{flag} {name}: for {arch} expected {' or '.join(known.__members__)}")
    weights = known[name]
    cached = Path(torch.hub.get_dir(), "checkpoints", Path(urlparse(weights.url).path).name)
    try:
        build = partial(torchvision.models.get_model, arch, weights=weights)
        download_once([cached], build)  # torch.hub moves the file there when it is complete
        network = build()
    except (OSError, RuntimeError) as error:  # RuntimeError if the hash of the file is wrong
        raise UserError(
            f"{flag} {name}: connect to the internet and try again, or download "
            f"{weights.url} elsewhere and give it as {file_flag} FILE; the download failed: "
            f"{root_cause(error)}"
        ) from error
    num_classes = len(weights.meta["categories"])
    return LoadedModel(TupleOutput(network.eval()), num_classes, Metadata(arch), False)


def build_network(arch: str, branches: bool = False, num_classes: int = 1000) -> nn.Module:
    """Build a network with random weights and torchvision's parameter names."""
    if arch in resnet.NETWORKS:
        return resnet.build(arch, branches, num_classes)
    if branches:
        raise UserError(
            f"--branches: {arch} has no branches; use one of {', '.join(resnet.NETWORKS)}"
        )
    # These two would warn and spend a minute on an initialization that is overwritten.
    slow = {"init_weights": False} if arch in ("googlenet", "inception_v3") else {}
    return torchvision.models.get_model(arch, weights=None, num_classes=num_classes, **slow)
