"""Start training from given weights: the backbone's are loaded, everything else stays random."""

from collections.abc import Sequence
from pathlib import Path

import torchvision
from torch import Tensor, nn

import resnet
from common import checkpoint
from common.command_line import UserError, plural
from common.distributed import gather_objects, print_once
from export_path import weights_path
from pretrained import load_torchvision
from validation_set import imagenet_synsets
from weights import LoadedCheckpoint, Metadata, read_checkpoint, sha256

CLASSIFIER = ("fc.weight", "fc.bias")


def initialize_backbone(
    model: nn.Module, arch: str, source: str, class_names: Sequence[str]
) -> None:
    """Load weights into the backbone, strictly except for a classifier of other classes.

    All processes must call it together. Branches are not loaded.

    Args:
        model: a network with random weights; changed in place.
        arch: a key of `resnet.NETWORKS`.
        source: a checkpoint, an exported file or folder, the folder of a run, or the name of
            torchvision's weights, such as `IMAGENET1K_V1`.
        class_names: of the model, in the order of its outputs.

    Raises:
        UserError: there are no such weights, they belong to another network, or the processes
            find different files.
    """
    path = weights_path(Path(source))
    loaded = read_checkpoint(path) if Path(source).exists() else read_torchvision(arch, source)
    check_same_file(source, path)
    named = loaded.metadata.arch
    if named not in (None, arch):
        raise UserError(f"--init {source}: weights of {named}, not {arch}; use -a {named}")
    own = model.state_dict()
    reason = other_classes(loaded, own, class_names)
    state = resnet.backbone_state_dict(loaded.state_dict)
    count = len([name for name in state if not (reason and name in CLASSIFIER)])
    if reason:
        state |= {name: own[name] for name in CLASSIFIER}
    branches = {name: value for name, value in own.items() if name.startswith("branches.")}
    try:
        checkpoint.load_weights(model, state | branches, path)
    except UserError as error:
        raise UserError(f"--init {source}: not weights of a {arch}: {error}") from error
    random = [f"the classifier ({reason})"] * bool(reason) + ["the branches"] * bool(branches)
    print_once(
        f"--init {source}: loaded {plural(count, 'tensor')} of the backbone"
        f"{' (averaged weights)' * (loaded.key == 'ema')}; random: {', '.join(random) or 'nothing'}"
    )


def read_torchvision(arch: str, name: str) -> LoadedCheckpoint:
    """Read torchvision's weights of this name, which are downloaded on first use."""
    known = torchvision.models.get_model_weights(arch).__members__
    if name not in known:
        raise UserError(
            f"--init {name}: no such file or folder, and torchvision's weights for {arch} are "
            f"{' and '.join(known)}; give one of these"
        )
    network = load_torchvision(arch, name, "--init", "--init").network
    return LoadedCheckpoint("", network.state_dict(), Metadata(arch, imagenet_synsets()))


def check_same_file(source: str, path: Path) -> None:
    """Raise `UserError` if the processes, which may be on several machines, read other files."""
    if len(set(gather_objects(sha256(path) if path.is_file() else source))) > 1:
        raise UserError(
            f"--init {source}: the processes of this run read different files; give one that is "
            "the same on every machine"
        )


def other_classes(
    loaded: LoadedCheckpoint, own: dict[str, Tensor], class_names: Sequence[str]
) -> str:
    """Return why the classifier of the weights cannot be used; empty if it can.

    The classes of 1,000 outputs without names are taken for ImageNet's. Those of any other number
    are taken for the model's if there are as many.
    """
    bias = loaded.state_dict.get("fc.bias")
    if bias is None:
        return "the weights have none"
    count = bias.numel() if isinstance(bias, Tensor) else 0
    if count != own["fc.bias"].numel():
        return f"that of the weights has {plural(count, 'class')}, this run {len(class_names):,}"
    names = loaded.metadata.class_names or (imagenet_synsets() if count == 1000 else None)
    if names not in (None, list(class_names)):
        return "that of the weights has other classes"
    return ""
