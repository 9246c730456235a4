"""Networks with weights: from checkpoints in many forms, from torchvision, or from the release."""

import hashlib
import os
import re
import sys
import tempfile
from dataclasses import dataclass, field
from pathlib import Path

import torch
import torchvision
from torch import Tensor, nn

import resnet
from common import checkpoint
from common.command_line import UserError, root_cause
from common.distributed import Compute, first_on_node, make_compute
from common.run_folder import checkpoint_path

PROGRAM = "imagenet"  # in the metadata of a file
WEIGHTS_FILE = "model.safetensors"  # in an exported folder; the name that timm and the Hub expect
HEADS = ("fc", "classifier", "head", "heads")  # last modules of torchvision's networks
# Prefixes that DataParallel, DistributedDataParallel and torch.compile put before every name.
WRAPPER_PREFIXES = re.compile(r"^(module\.|_orig_mod\.)+")
# The DHM release calls the shallow branch head2 and the deep branch head1.
DHM_NAMES = {
    "layer3_head2": "branches.0.stages.0",
    "layer4_head2": "branches.0.stages.1",
    "fc_head2": "branches.0.classifier",
    "layer4_head1": "branches.1.stages.0",
    "fc_head1": "branches.1.classifier",
}
RELEASED = {  # Google Drive's id and the size in MiB of the authors' files
    "resnet18": ("1P5QA_uLyaqaSDUCVb0Kkg-UlvVoBJphc", 45),
    "resnet50": ("1sqhBPdzHi-X0svyBeFWEjiqveWfAohdK", 98),
    "resnet152": ("1zoCNTuSI0dG2JUjTLFc5vjFodVPPi6C7", 231),
}


@dataclass(frozen=True)
class Weights:
    """A state dict with the parameter names of `DKSResNet`, and what its file says."""

    source: str
    state: dict[str, Tensor]
    metadata: dict = field(default_factory=dict)  # arch, classes, image_size, dtype, if known
    content: dict = field(default_factory=dict)  # of the file
    averaged: bool = False  # a moving average of the weights of a run

    @property
    def backbone(self) -> dict[str, Tensor]:
        return resnet.backbone_state_dict(self.state)

    @property
    def num_classes(self) -> int:
        heads = [k for k in self.state if k.split(".")[0] in HEADS and k.endswith(".weight")]
        last = self.state[max(heads)] if heads else None
        return len(last) if isinstance(last, Tensor) and last.dim() else 1000


class TupleOutput(nn.Module):
    """Wrap a torchvision network so that it returns a tuple of logits, as `DKSResNet` does."""

    def __init__(self, network: nn.Module):
        super().__init__()
        self.network = network

    def forward(self, images: Tensor) -> tuple[Tensor]:
        return (self.network(images),)


def weights_path(path: Path) -> Path:
    """Return the file of weights that a path names: itself, or that in an export or a run."""
    in_run, exported = checkpoint_path(path), path / WEIGHTS_FILE
    return exported if exported.is_file() and not in_run.is_file() else in_run


def read_weights(path: Path) -> Weights:
    """Read a file of weights to the CPU without running any code in it.

    Accepted are files of `torch.save` and safetensors. They hold a state dict, either bare or under
    the key `ema` (preferred: averaged weights), `model` or `state_dict`. Parameters may have
    torchvision's names, those of `DKSResNet`, or DHM's names for the branches, with or without the
    prefixes of DistributedDataParallel and torch.compile.

    Raises:
        UserError: the file is missing, damaged, not a checkpoint, or of the other program.
    """
    path = weights_path(path)
    content = checkpoint.load(path)
    metadata = checkpoint.metadata_of(content)
    if metadata.get("program", PROGRAM) != PROGRAM:
        raise UserError(f"{path}: weights of {metadata['program']}/; use its main.py")
    keys = [key for key in ("ema", "model", "state_dict") if isinstance(content.get(key), dict)]
    key = next((key for key in keys if content[key]), None)
    original = content[key] if key else content
    if not any(isinstance(value, Tensor) for value in original.values()):
        found = checkpoint.abbreviate([str(name) for name in original], 5)
        raise UserError(f"{path}: no state dict; it has the keys {found}")
    state = {canonical_name(str(name)): value for name, value in original.items()}
    if len(state) != len(original):
        raise UserError(f"{path}: two parameters have the same name without module. or _orig_mod.")
    if not any(name.endswith(".num_batches_tracked") for name in state):  # PyTorch before 0.4.1
        for name in [name for name in state if name.endswith(".running_mean")]:
            state[name.removesuffix("running_mean") + "num_batches_tracked"] = torch.tensor(0)
    return Weights(str(path), state, metadata, content, averaged=key == "ema")


def canonical_name(name: str) -> str:
    """Return the name that a parameter of a checkpoint has in `DKSResNet`."""
    module, dot, rest = WRAPPER_PREFIXES.sub("", name).partition(".")
    return DHM_NAMES.get(module, module) + dot + rest


def torchvision_weights(arch: str, name: str, flag: str) -> Weights:
    """Return torchvision's weights of this name, such as IMAGENET1K_V1, downloaded on first use.

    Raises:
        UserError: torchvision has no such weights, or the download failed.
    """
    check_arch(arch)
    known = torchvision.models.get_model_weights(arch).__members__
    if name not in known:
        raise UserError(f"{flag} {name}: no such file or folder, and not {' or '.join(known)}")
    try:
        with first_on_node():
            network = torchvision.models.get_model(arch, weights=known[name])
    except (OSError, RuntimeError) as error:  # RuntimeError if the hash of the file is wrong
        raise UserError(
            f"{flag} {name}: the download of {known[name].url} failed ({root_cause(error)}); "
            "connect to the internet, or download it elsewhere and give the file"
        ) from error
    return Weights(f"torchvision's {name}", network.state_dict(), {"arch": arch})


def check_arch(arch: str) -> None:
    """Raise `UserError` for a network that is neither in `resnet.NETWORKS` nor in torchvision."""
    known = [*resnet.NETWORKS, *torchvision.models.list_models(module=torchvision.models)]
    if arch not in known:
        raise UserError(
            f"-a {arch}: expected {', '.join(resnet.NETWORKS)}, or the name of another torchvision "
            "classifier, such as densenet121"
        )


def build_network(arch: str, weights: Weights, branches: bool) -> nn.Module:
    """Build a network, whose output is a tuple of logits, and load its weights strictly.

    Args:
        arch: a key of `resnet.NETWORKS`, or the name of another torchvision classifier.
        weights: those of the branches are dropped without `branches`.
        branches: build the auxiliary branches too.

    Raises:
        UserError: the weights belong to another network, or have no branches.
    """
    check_arch(arch)
    named = weights.metadata.get("arch", arch)
    if named != arch:
        raise UserError(f"{weights.source}: weights of {named}, not {arch}; leave out -a")
    state = weights.state if branches else weights.backbone
    if branches and len(state) == len(weights.backbone):
        raise UserError(f"{weights.source}: has no auxiliary branches; leave out --branches")
    if arch in resnet.NETWORKS:
        network = resnet.build(arch, branches, weights.num_classes)
    else:
        options = {"num_classes": weights.num_classes}
        if arch in ("googlenet", "inception_v3"):  # torchvision's weights have no aux. classifiers
            own = any(name.lower().startswith("aux") for name in state)
            # The default initialization takes a minute.
            options |= {"init_weights": False, "aux_logits": own, "transform_input": not own}
        network = torchvision.models.get_model(arch, weights=None, **options)
    try:
        checkpoint.load_weights(network, state, Path(weights.source))
    except UserError as error:
        if "arch" in weights.metadata:
            raise
        raise UserError(f"{error}; it was taken for a {arch}: give its network with -a") from error
    names = weights.metadata.get("classes")
    if names is not None and len(set(names)) != weights.num_classes:
        raise UserError(f"{weights.source}: damaged, because its classes are not those of its fc")
    return network if isinstance(network, resnet.DKSResNet) else TupleOutput(network)


def choose_compute(image_size: int, device: torch.device, dtype: str) -> Compute:
    """Return how to compute the network: channels last, except for small images on a CPU.

    The last feature maps of small images have 2x2 pixels or fewer, for which oneDNN's channels-last
    kernels take twice as long as its NCHW kernels (torch 2.15, 1,024 channels).
    """
    return make_compute(device, dtype, channels_last_on_cpu=image_size > 64)


def download_released(arch: str) -> Path:
    """Return the path of the released weights in torch's hub cache; download them if missing.

    A download enters the cache only after all its keys and shapes have been checked.

    Raises:
        UserError: no weights were released for `arch`, the download failed, or the file is not a
            checkpoint of `arch`.
    """
    if arch not in RELEASED:
        raise UserError(f"-a {arch}: weights were released only for {', '.join(RELEASED)}")
    target = Path(torch.hub.get_dir()) / "checkpoints" / f"dks_{arch}.pth"
    with first_on_node() as first:
        if first and not target.is_file():
            download_to(target, arch)
    return target


def download_to(target: Path, arch: str) -> None:
    """Download weights of `arch` with gdown, check them, and move them to `target`."""
    drive_id, size = RELEASED[arch]
    target.parent.mkdir(parents=True, exist_ok=True)
    # gdown leaves a partial file behind when a download breaks off.
    with tempfile.TemporaryDirectory(prefix=".dks-", dir=target.parent) as folder:
        downloaded = Path(folder) / target.name
        try:
            import gdown

            # Its progress bar is for terminals. With cookies it would write to the home folder.
            quiet, url = not sys.stderr.isatty(), f"https://drive.google.com/uc?id={drive_id}"
            gdown.download(url, str(downloaded), quiet=quiet, use_cookies=False, timeout=60)
            build_network(arch, read_weights(downloaded), branches=False)
        except Exception as error:  # gdown's own exceptions, those of requests, and UserError
            reason = str(error) if isinstance(error, UserError) else root_cause(error)
            reason = reason.replace(str(downloaded), "the downloaded file")
            raise UserError(
                f"the download failed ({reason}); open https://drive.google.com/file/d/{drive_id}"
                f"/view in a browser, save the weights of {arch} ({size} MiB) and give the file as "
                "--model_path FILE"
            ) from error
        os.replace(downloaded, target)


def sha256(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
