"""Entry points for torch.hub: the networks, with or without auxiliary branches, and the loss.

    network = torch.hub.load(REPO, "resnet50", pretrained=True)

REPO is the repository's name on GitHub, such as "owner/name"; with source="local", its folder.
"""

import sys as _sys
from contextlib import contextmanager as _contextmanager
from functools import partial as _partial
from importlib import import_module as _import_module
from pathlib import Path as _Path

import torch as _torch
import torchvision as _torchvision

dependencies = ["torch", "torchvision"]  # pretrained=True also needs gdown

_ROOT = _Path(__file__).resolve().parent
_imported: dict = {"wrn_DKS": {}, "imagenet": {}}  # modules of each script folder by name


@_contextmanager
def _script_folder(name: str):
    """Make the modules of a script folder importable in the block, and only there.

    Their names, such as `common` and `data`, are also those of the other folder's modules and may
    be those of the caller's.
    """
    folder = _ROOT / name
    names = {path.stem for path in folder.glob("*.py")} | {"common"}

    def pop_modules() -> dict:
        found = [key for key in _sys.modules if key.split(".")[0] in names]
        return {key: _sys.modules.pop(key) for key in found}

    others = pop_modules()
    _sys.modules.update(_imported[name])
    _sys.path.insert(0, str(folder))
    try:
        yield
    finally:
        _sys.path.remove(str(folder))
        _imported[name] = pop_modules()
        _sys.modules.update(others)


def _resnet(
    arch: str,
    pretrained: bool = False,
    branches: bool = False,
    weights: str | None = None,
    num_classes: int | None = None,
) -> _torch.nn.Module:
    """Build a network for images (B, 3, H, W), normalized with ImageNet's mean and deviation.

    Args:
        pretrained: load the weights that the paper's authors released for ResNet-18, ResNet-50
            and ResNet-152, which are downloaded once. They have no branches: with `branches`, the
            branches are random.
        branches: return a network for training, whose output is a tuple of logits (B, K): the
            backbone's, then the branches' from shallow to deep. Otherwise return torchvision's
            network, whose output is the backbone's logits (B, K).
        weights: checkpoint, or exported file or folder, to load; with `branches`, it must have
            branches.
        num_classes: K; by default that of the weights, or 1000.

    Returns:
        A network in training mode with `branches`, otherwise in evaluation mode.

    Raises:
        Exception: `UserError` with one line, if the weights can't be downloaded, are damaged, or
            are those of another network.
    """
    with _script_folder("imagenet"):
        resnet, loading, error = (
            _import_module(name) for name in ("resnet", "pretrained", "common.command_line")
        )
        if pretrained:
            if weights is not None:
                raise error.UserError("pretrained and weights are both given; give one of them")
            weights = _import_module("download").download_released_weights(arch)
        if weights is None:
            state, classes = None, num_classes or 1000
        else:
            loaded = loading.load_model(arch, _Path(weights), branches and not pretrained)
            state, classes = loaded.network.state_dict(), loaded.num_classes
            if num_classes not in (None, classes):
                raise error.UserError(
                    f"{weights} has {classes} classes, not {num_classes}; leave out num_classes"
                )
        if branches:
            network = resnet.build(arch, True, classes)
        else:
            network = _torchvision.models.get_model(arch, weights=None, num_classes=classes)
        if state is not None:
            network.load_state_dict(state, strict=not (branches and pretrained))
    return network.train(branches)


def _entry(arch: str):
    entry = _partial(_resnet, arch)
    entry.__doc__ = _resnet.__doc__
    return entry


resnet18 = _entry("resnet18")
resnet34 = _entry("resnet34")
resnet50 = _entry("resnet50")
resnet101 = _entry("resnet101")
resnet152 = _entry("resnet152")
resnext50_32x4d = _entry("resnext50_32x4d")
wide_resnet50_2 = _entry("wide_resnet50_2")


def wide_resnet(
    depth: int = 28,
    width: float = 10,
    num_classes: int = 100,
    dropout: float = 0.0,
    branches: bool = False,
    weights: str | None = None,
) -> _torch.nn.Module:
    """Build a wide residual network for small images (B, 3, H, W).

    Args:
        depth: number of layers, 6n + 4.
        width: factor on the 16, 32 and 64 channels of the three groups.
        num_classes: number of classes K.
        dropout: probability of dropout in each block.
        branches: add the auxiliary branches.
        weights: checkpoint of `wrn_DKS/main.py` or of the released code, or an exported backbone,
            to load. Its depth, width and number of classes are used instead of those given. With
            `branches`, it must have branches.

    Returns:
        A network whose output is a tuple of logits (B, K): the backbone's, then the branches' from
        shallow to deep. It is in training mode with `branches`, otherwise in evaluation mode.

    Raises:
        ValueError: there is no network of this depth and width.
        Exception: `UserError` with one line, if the weights can't be loaded.
    """
    with _script_folder("wrn_DKS"):
        wide_resnet = _import_module("wide_resnet")
        if weights is None:
            network = wide_resnet.WideResNet(depth, width, num_classes, dropout, branches)
            return network.train(branches)
        loaded = _import_module("run_state").load_checkpoint(_Path(weights))
        state = loaded.weights if branches else loaded.backbone
        depth, width = wide_resnet.network_size(loaded.weights)
        classes = len(state["classifier.fc.bias"])
        network = wide_resnet.WideResNet(depth, width, classes, dropout, branches)
        _import_module("common.checkpoint").load_weights(network, state, _Path(weights))
    return network.train(branches)


def synergy_loss(**options) -> _torch.nn.Module:
    """Build the loss: all cross-entropies and the synergy loss.

    `loss(logits, labels).total` is what to minimize. `logits` is the tuple of a network with
    branches; the options are those of `SynergyLoss` in `wrn_DKS/synergy.py`.
    """
    with _script_folder("wrn_DKS"):
        return _import_module("synergy").SynergyLoss(**options)
