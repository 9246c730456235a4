"""The released code's checkpoints (`model.pt7`): its flat parameters under our names."""

import re

import torch
from torch import Tensor

# The release's branches by name: which one of ours, and which of its stages.
_BRANCH_STAGES = {
    "ep1_group1": "branches.0.stages.0",
    "ep1_group2": "branches.0.stages.1",
    "ep2_group2": "branches.1.stages.0",
}
_CLASSIFIERS = {"": "", "ep1_": "branches.0.", "ep2_": "branches.1."}
_RUNNING = ("running_mean", "running_var")


def is_legacy(content: dict) -> bool:
    """Whether a loaded checkpoint is one of the released training script's."""
    return isinstance(content.get("params"), dict) and "model" not in content


def legacy_state_dict(params: dict[str, Tensor]) -> dict[str, Tensor]:
    """The release's flat parameters as a state dict of `WideResNet`, in the same order.

    The release counts no batches; `num_batches_tracked`, which nothing here reads, becomes 0.

    Raises:
        KeyError: a name that the release does not have.
    """
    state = {}
    for name, tensor in params.items():
        ours = _our_name(name)
        state[ours] = tensor
        if ours.endswith("running_var"):
            state[ours.replace("running_var", "num_batches_tracked")] = torch.tensor(0)
    return state


def legacy_momentum(content: dict, parameter_names: list[str]) -> dict[int, dict[str, Tensor]]:
    """The release's SGD buffers, by the place of their parameter in `parameter_names`.

    Args:
        content: the loaded file; the i-th parameter of its optimizer is the i-th trainable of
            `params`. There it goes by the number i, or by Python's id of it before torch 1.5.
        parameter_names: names of our trainable parameters, in our optimizer's order.

    Raises:
        KeyError, TypeError, ValueError, AttributeError: it is no such file.
    """
    theirs = [_our_name(name) for name in content["params"] if not name.endswith(_RUNNING)]
    place = {name: index for index, name in enumerate(parameter_names)}
    (group,) = content["optimizer"]["param_groups"]
    names = dict(zip(group["params"], theirs, strict=True))
    buffers = content["optimizer"]["state"]
    return {place[names[key]]: buffer for key, buffer in buffers.items()}


def _our_name(name: str) -> str:
    """`group0.block1.conv0` to `groups.0.1.conv0.weight`, and so on for every name there is."""
    if name == "conv0":
        return "stem.weight"
    if match := re.fullmatch(r"(ep\d_)?(bn|fc)\.(\w+)", name):
        branch, layer, kind = match.groups(default="")
        return f"{_CLASSIFIERS[branch]}classifier.{layer}.{kind}"
    if match := re.fullmatch(r"(ep\d_)?group(\d)\.block(\d+)\.(.+)", name):
        branch, group, block, layer = match.groups(default="")
        place = _BRANCH_STAGES[f"{branch}group{group}"] if branch else f"groups.{group}"
        layer = layer.replace("convdim", "shortcut")
        return f"{place}.{block}.{layer}" + ("" if "." in layer else ".weight")
    raise KeyError(name)
