"""Conversion of the released code's checkpoints (`model.pt7`) to the names of `WideResNet`."""

import math
import re
from pathlib import Path

import torch
from torch import Tensor

from common import checkpoint
from common.command_line import UserError, plural
from engine import Trainer
from wide_resnet import network_size

# From the released names of branch groups to module names here.
_BRANCH_STAGES = {
    "ep1_group1": "branches.0.stages.0",
    "ep1_group2": "branches.0.stages.1",
    "ep2_group2": "branches.1.stages.0",
}
_CLASSIFIERS = {"": "", "ep1_": "branches.0.", "ep2_": "branches.1."}
_RUNNING = ("running_mean", "running_var")


def is_legacy(content: dict) -> bool:
    """Return whether a loaded checkpoint was saved by the released training script."""
    return isinstance(content.get("params"), dict) and "model" not in content


def legacy_weights(content: dict, source: Path) -> dict[str, Tensor]:
    """Return the state dict of `WideResNet` that a checkpoint of the released code contains.

    Raises:
        UserError: it is not a checkpoint of the released code.
    """
    try:
        weights = legacy_state_dict(content["params"])
        network_size(weights)
    except (KeyError, TypeError, AttributeError, IndexError) as error:
        raise UserError(f"{source}: not a checkpoint of the released code ({error})") from error
    return weights


def legacy_state_dict(params: dict[str, Tensor]) -> dict[str, Tensor]:
    """Convert the released flat parameters to a state dict of `WideResNet`, in the same order.

    The released code has no `num_batches_tracked`; it is set to 0 and never used.

    Raises:
        KeyError: a name is not one of the released code.
    """
    state = {}
    for name, tensor in params.items():
        new_name = _convert_name(name)
        state[new_name] = tensor
        if new_name.endswith("running_var"):
            state[new_name.replace("running_var", "num_batches_tracked")] = torch.tensor(0)
    return state


def legacy_momentum(content: dict, parameter_names: list[str]) -> dict[int, dict[str, Tensor]]:
    """Convert the released SGD state, keyed by the index of the parameter in `parameter_names`.

    Args:
        content: the loaded checkpoint. The i-th parameter of its optimizer is the i-th trainable
            entry of `params`. Its key is i, or its Python id in files from before PyTorch 1.5.
        parameter_names: names of the trainable parameters in the order of the new optimizer.

    Raises:
        KeyError, TypeError, ValueError, AttributeError: the content has another structure.
    """
    names = [_convert_name(name) for name in content["params"] if not name.endswith(_RUNNING)]
    new_index = {name: index for index, name in enumerate(parameter_names)}
    (group,) = content["optimizer"]["param_groups"]
    name_of = dict(zip(group["params"], names, strict=True))
    buffers = content["optimizer"]["state"]
    return {new_index[name_of[key]]: buffer for key, buffer in buffers.items()}


def load_legacy_run(content: dict, weights: dict, source: Path, trainer: Trainer) -> None:
    """Load weights and momentum of a checkpoint of the released code into the trainer.

    Raises:
        UserError: they do not fit, or are of a run with another learning rate or weight decay.
    """
    checkpoint.require_keys(content, {"epoch": int, "optimizer": dict}, source)
    checkpoint.load_weights(trainer.model, weights, source)
    names = [name for name, _ in trainer.model.named_parameters()]
    try:
        check_recipe(content, trainer, source)
        momentum = legacy_momentum(content, names)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise UserError(f"{source}: not the optimizer state of the released code") from error
    groups = trainer.optimizer.state_dict()["param_groups"]
    state = {"state": momentum, "param_groups": groups}
    checkpoint.load_optimizer(trainer.optimizer, state, source)


def check_recipe(content: dict, trainer: Trainer, source: Path) -> None:
    """Raise `UserError` if the learning rate or weight decay are not those of the trainer.

    The checkpoint holds the learning rate of its last epoch, after the milestones before it.
    """
    epoch = content["epoch"]
    (group,) = content["optimizer"]["param_groups"]
    saved = [group["lr"], group["weight_decay"]]
    rate = trainer.schedule.rate(max(epoch - 1, 0))
    expected = [rate, trainer.optimizer.param_groups[0]["weight_decay"]]
    if not all(math.isclose(*pair, rel_tol=1e-6) for pair in zip(saved, expected, strict=True)):
        raise UserError(
            f"{source}: saved after {plural(epoch, 'epoch')} with learning rate {saved[0]:g} and "
            f"weight decay {saved[1]:g}; --lr, --lr_decay_ratio and --epoch_step give "
            f"{expected[0]:g}, --weight_decay is {expected[1]:g}; resume with the same"
        )


def _convert_name(name: str) -> str:
    """Convert a name of the released code: group0.block1.conv0 to groups.0.1.conv0.weight, etc."""
    if name == "conv0":
        return "stem.weight"
    if match := re.fullmatch(r"(ep\d_)?(bn|fc)\.(\w+)", name):
        branch, layer, kind = match.groups(default="")
        return f"{_CLASSIFIERS[branch]}classifier.{layer}.{kind}"
    if match := re.fullmatch(r"(ep\d_)?group(\d)\.block(\d+)\.(.+)", name):
        branch, group, block, layer = match.groups(default="")
        stage = _BRANCH_STAGES[f"{branch}group{group}"] if branch else f"groups.{group}"
        layer = layer.replace("convdim", "shortcut")
        return f"{stage}.{block}.{layer}" + ("" if "." in layer else ".weight")
    raise KeyError(name)
