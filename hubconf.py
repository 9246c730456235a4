"""Entry points for torch.hub: the networks, with or without auxiliary branches, and the loss.

    network = torch.hub.load(REPO, "resnet50", pretrained=True)
    network = torch.hub.load(REPO, "cifar_resnet32", pretrained="dks")

REPO is the repository's name on GitHub, such as "owner/name"; with source="local", its folder.
With `branches=True`, a network returns a tuple of logits (B, K): the backbone's, then the branches'
from shallow to deep, and is in training mode. Otherwise it returns the backbone's logits (B, K),
and is in evaluation mode. `weights` is a checkpoint, or an exported file or folder, to load: its
size and number of classes K are used. Otherwise, K is `num_classes`. A network that `torch.save`
wrote whole is loaded after a call of its entry point; better save its state dict.
"""

import functools
import importlib.util
import pathlib
import sys

import torch
import torchvision

dependencies = ["torch", "torchvision"]  # and gdown or safetensors for weights

_ROOT = pathlib.Path(__file__).resolve().parent
_RELEASED = {  # Google Drive's id of the authors' files
    "resnet18": "1P5QA_uLyaqaSDUCVb0Kkg-UlvVoBJphc",
    "resnet50": "1sqhBPdzHi-X0svyBeFWEjiqveWfAohdK",
    "resnet152": "1zoCNTuSI0dG2JUjTLFc5vjFodVPPi6C7",
}


def _load_module(folder, name):
    """Import a file of a script folder, under a name of its own: `dks_imagenet_resnet`, say."""
    full_name = f"dks_{folder}_{name}"
    if full_name not in sys.modules:
        spec = importlib.util.spec_from_file_location(full_name, _ROOT / folder / f"{name}.py")
        sys.modules[full_name] = importlib.util.module_from_spec(spec)  # to pickle its classes
        spec.loader.exec_module(sys.modules[full_name])
    return sys.modules[full_name]


def _read(path):
    """Read a state dict from a checkpoint or an export, without running code from it."""
    if path is None:
        return {}
    path = pathlib.Path(path)
    path, *_ = *path.glob("checkpoint.pt"), *path.glob("model.safetensors"), path
    if path.suffix == ".safetensors":
        from safetensors.torch import load_file

        return load_file(path)
    content = torch.load(path, map_location="cpu", weights_only=True)
    state = content.get("ema") or content.get("model") or content.get("state_dict") or content
    return {name.removeprefix("module."): value for name, value in state.items()}


def _finish(network, state, branches):
    """Load a state dict strictly, unless it is empty; without `branches`, leave out its own."""
    if state:
        kept = {k: v for k, v in state.items() if branches or not k.startswith("branches.")}
        network.load_state_dict(kept)
    return network.train(branches)


def _resnet(arch, pretrained=False, branches=False, weights=None, num_classes=None):
    """Build a network for images (B, 3, H, W), normalized with ImageNet's mean and deviation.

    Without branches, it is torchvision's network. `pretrained=True` loads the weights that the
    paper's authors released for ResNet-18, -50 and -152, which are downloaded once with gdown.
    """
    if pretrained and (branches or weights):
        raise ValueError("pretrained weights have no branches, and exclude other weights")
    weights = _released(arch) if pretrained else weights
    state = _read(weights)
    num_classes = num_classes or (len(state["fc.bias"]) if state else 1000)
    if branches:
        network = _load_module("imagenet", "resnet").build(arch, True, num_classes)
    else:
        network = torchvision.models.get_model(arch, weights=None, num_classes=num_classes)
    return _finish(network, state, branches)


def _released(arch):
    """Download the released weights to torch's hub cache, where imagenet/main.py looks too."""
    if arch not in _RELEASED:
        raise ValueError(f"weights were released only for {', '.join(_RELEASED)}, not {arch}")
    path = pathlib.Path(torch.hub.get_dir(), "checkpoints", f"dks_{arch}.pth")
    if not path.is_file():
        import gdown

        path.parent.mkdir(parents=True, exist_ok=True)
        gdown.download(id=_RELEASED[arch], output=str(path))
    return path


def _entry(function, first):
    """Fix the first argument of a function, and keep its docstring."""
    return functools.update_wrapper(functools.partial(function, first), function)


def wide_resnet(depth=28, width=10, num_classes=100, dropout=0.0, branches=False, weights=None):
    """Build a wide residual network of depth 6n + 4 for small images (B, 3, H, W).

    `width` is the factor on the 16, 32 and 64 channels of the three groups, `dropout` the
    probability of dropout in each block. For the other arguments, see the module.
    """
    module, state = _load_module("wrn_DKS", "wide_resnet"), _read(weights)
    if state:
        (depth, width), num_classes = module.network_size(state), len(state["classifier.fc.bias"])
    network = module.WideResNet if branches else module.PlainWideResNet
    return _finish(network(depth, width, num_classes, dropout, branches), state, branches)


def cifar_resnet(depth=32, pretrained=None, num_classes=100, branches=False, weights=None):
    """Build a CIFAR ResNet of depth 6n + 2 for small images (B, 3, H, W).

    `pretrained` is `baseline`, `ds` or `dks`: a backbone that this project trained on CIFAR-100,
    in `weights/`. For the other arguments, see the module.
    """
    if pretrained:
        weights = _ROOT / "weights" / f"resnet{depth}-cifar100-{pretrained}.safetensors"
    module, state = _load_module("wrn_DKS", "resnet"), _read(weights)
    if state:
        depth, num_classes = module.network_depth(state), len(state["classifier.fc.bias"])
    network = module.ResNet if branches else module.PlainResNet
    return _finish(network(depth, num_classes, branches), state, branches)


def synergy_loss(**options):
    """Build the loss: all cross-entropies and the synergy loss.

    `loss(logits, labels).total` is what to minimize. `logits` is the tuple of a network with
    branches; the options are those of `SynergyLoss` in `wrn_DKS/synergy.py`.
    """
    return _load_module("wrn_DKS", "synergy").SynergyLoss(**options)


resnet18, resnet34, resnet50, resnet101, resnet152 = (
    _entry(_resnet, f"resnet{depth}") for depth in (18, 34, 50, 101, 152)
)
cifar_resnet32 = _entry(cifar_resnet, 32)
