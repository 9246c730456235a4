"""Entry points for torch.hub: the networks, with or without auxiliary branches, and the loss.

    network = torch.hub.load(REPO, "resnet50", pretrained=True)
    network = torch.hub.load(REPO, "cifar_resnet32", pretrained="dks")

REPO is the repository's name on GitHub, such as "owner/name"; with source="local", its folder.
With `branches=True`, a network returns a tuple of logits (B, K): the backbone's, then the branches'
from shallow to deep, and is in training mode. Otherwise it returns the backbone's logits (B, K),
and is in evaluation mode.
"""

import importlib.util as _importlib_util
import sys as _sys
from functools import partial as _partial
from pathlib import Path as _Path

import torch as _torch

dependencies = ["torch", "torchvision"]  # pretrained weights also need gdown or safetensors

_ROOT = _Path(__file__).resolve().parent


def _load_module(folder: str, name: str):
    """Import a file of a script folder, under a name of its own: `dks_imagenet_resnet`, say."""
    full_name = f"dks_{folder}_{name}"
    if full_name not in _sys.modules:
        path = _ROOT / folder / f"{name}.py"
        spec = _importlib_util.spec_from_file_location(full_name, path)
        module = _importlib_util.module_from_spec(spec)
        _sys.modules[full_name] = module  # so that its classes can be pickled
        spec.loader.exec_module(module)
    return _sys.modules[full_name]


def _read(path: str | _Path) -> dict:
    """Read a state dict from a checkpoint or an export, without running code from it."""
    path = _Path(path)
    if path.is_dir():
        names = ("checkpoint.pt", "model.safetensors")
        path = next((path / name for name in names if (path / name).is_file()), path)
    if path.suffix == ".safetensors":
        from safetensors.torch import load_file

        return load_file(path)
    content = _torch.load(path, map_location="cpu", weights_only=True)
    state = content.get("ema") or content.get("model") or content.get("state_dict") or content
    return {name.removeprefix("module."): value for name, value in state.items()}


def _finish(network, state: dict | None, branches: bool):
    """Load a state dict strictly; without `branches`, drop those that it has."""
    if state is not None:
        if not branches:
            state = {k: v for k, v in state.items() if not k.startswith("branches.")}
        network.load_state_dict(state)
    return network.train(branches)


def _resnet(
    arch: str,
    pretrained: bool = False,
    branches: bool = False,
    weights: str | None = None,
    num_classes: int | None = None,
) -> _torch.nn.Module:
    """Build a network for images (B, 3, H, W), normalized with ImageNet's mean and deviation.

    Without branches, it is torchvision's network.

    Args:
        pretrained: load the weights that the paper's authors released for ResNet-18, ResNet-50
            and ResNet-152, which are downloaded once with gdown. They have no branches.
        branches: add the auxiliary branches.
        weights: checkpoint, or exported file or folder, to load.
        num_classes: K; by default that of the weights, or 1000.
    """
    if pretrained and (branches or weights):
        raise ValueError("pretrained weights have no branches, and exclude other weights")
    state = _read(_released(arch)) if pretrained else weights and _read(weights)
    num_classes = num_classes or (len(state["fc.bias"]) if state else 1000)
    if branches:
        network = _load_module("imagenet", "resnet").build(arch, True, num_classes)
    else:
        import torchvision

        network = torchvision.models.get_model(arch, weights=None, num_classes=num_classes)
    return _finish(network, state or None, branches)


def _released(arch: str) -> _Path:
    """Download the released weights to torch's hub cache, where imagenet/main.py looks too."""
    drive_ids = {
        "resnet18": "1P5QA_uLyaqaSDUCVb0Kkg-UlvVoBJphc",
        "resnet50": "1sqhBPdzHi-X0svyBeFWEjiqveWfAohdK",
        "resnet152": "1zoCNTuSI0dG2JUjTLFc5vjFodVPPi6C7",
    }
    if arch not in drive_ids:
        raise ValueError(f"weights were released only for {', '.join(drive_ids)}, not {arch}")
    path = _Path(_torch.hub.get_dir(), "checkpoints", f"dks_{arch}.pth")
    if not path.is_file():
        import gdown

        path.parent.mkdir(parents=True, exist_ok=True)
        partial = path.with_suffix(".partial")
        gdown.download(f"https://drive.google.com/uc?id={drive_ids[arch]}", str(partial))
        _read(partial)  # not a web page about a quota
        partial.replace(path)
    return path


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
        weights: checkpoint of `wrn_DKS/main.py` or an exported backbone, to load. Its depth, width
            and number of classes are used instead of those given.
    """
    module, state = _load_module("wrn_DKS", "wide_resnet"), weights and _read(weights)
    if state:
        depth, width = module.network_size(state)
        num_classes = len(state["classifier.fc.bias"])
    network = module.WideResNet if branches else module.PlainWideResNet
    network = network(depth, width, num_classes, dropout, branches)
    return _finish(network, state or None, branches)


def cifar_resnet(
    depth: int = 32,
    pretrained: str | None = None,
    num_classes: int = 100,
    branches: bool = False,
    weights: str | None = None,
) -> _torch.nn.Module:
    """Build a CIFAR ResNet for small images (B, 3, H, W).

    Args:
        depth: number of layers, 6n + 2.
        pretrained: `baseline`, `ds` or `dks`: a backbone that this project trained on CIFAR-100,
            in `weights/`.
        num_classes: number of classes K.
        branches: add the auxiliary branches.
        weights: checkpoint of `wrn_DKS/main.py` or an exported backbone, to load. Its depth and
            number of classes are used instead of those given.
    """
    if pretrained:
        weights = _ROOT / "weights" / f"resnet{depth}-cifar100-{pretrained}.safetensors"
    module, state = _load_module("wrn_DKS", "resnet"), weights and _read(weights)
    if state:
        depth, num_classes = module.network_depth(state), len(state["classifier.fc.bias"])
    network = module.ResNet if branches else module.PlainResNet
    return _finish(network(depth, num_classes, branches), state or None, branches)


cifar_resnet32 = _partial(cifar_resnet, 32)
cifar_resnet32.__doc__ = cifar_resnet.__doc__


def synergy_loss(**options) -> _torch.nn.Module:
    """Build the loss: all cross-entropies and the synergy loss.

    `loss(logits, labels).total` is what to minimize. `logits` is the tuple of a network with
    branches; the options are those of `SynergyLoss` in `wrn_DKS/synergy.py`.
    """
    return _load_module("wrn_DKS", "synergy").SynergyLoss(**options)
