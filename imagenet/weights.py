"""Networks with weights: from checkpoints in several forms, from torchvision, or the release."""

import os
import re
import sys
import tempfile
from dataclasses import dataclass, field
from pathlib import Path

import torch
import torchvision
from torch import Tensor

import resnet
from common import checkpoint
from common.command_line import UserError, one_line
from common.distributed import Compute, first_on_node, make_compute
from common.run_folder import checkpoint_path
from data import imagenet_synsets

PROGRAM = "imagenet"  # in the metadata of a file
WEIGHTS_FILE = "model.safetensors"  # in an exported folder; the name that timm and the Hub expect
# Prefixes that DistributedDataParallel, torch.compile and a LightningModule put before every name.
WRAPPER_PREFIXES = re.compile(r"^(module\.|_orig_mod\.|model\.)+")
STATE_KEYS = ("ema", "model", "state_dict", "model_state_dict")
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
        return {k: v for k, v in self.state.items() if not k.startswith("branches.")}

    @property
    def num_classes(self) -> int:
        last = self.state.get("fc.weight")
        return len(last) if isinstance(last, Tensor) and last.dim() else 1000

    @property
    def classes(self) -> list[str] | None:
        """Names in label order, if they are known. A thousand unnamed ones are ImageNet's."""
        names = self.metadata.get("classes")
        return imagenet_synsets() if names is None and self.num_classes == 1000 else names

    def check_arch(self, arch: str) -> None:
        """Raise `UserError` if these are known to be weights of another network."""
        if (named := self.metadata.get("arch", arch)) != arch:
            raise UserError(f"{self.source}: weights of {named}, not {arch}; use -a {named}")


def read_weights(path: Path) -> Weights:
    """Read a file of weights to the CPU without running any code in it.

    Accepted are files of `torch.save` and safetensors, and the folder of a run or an export. They
    hold a state dict, either bare or under one of `STATE_KEYS`, the first of which are averaged
    weights, with or without `WRAPPER_PREFIXES`.

    Raises:
        UserError: the file is missing, damaged, not a checkpoint, or of the other program.
    """
    exported = path / WEIGHTS_FILE
    path = exported if exported.is_file() else checkpoint_path(path)
    content = checkpoint.load(path)
    metadata = checkpoint.metadata_of(content)
    if metadata.get("program", PROGRAM) != PROGRAM:
        raise UserError(f"{path}: weights of {metadata['program']}/; use its main.py")
    if metadata.get("arch") not in (None, *resnet.NETWORKS):
        raise UserError(f"{path}: of an unknown network, {metadata['arch']!r:.50}")
    keys = [key for key in STATE_KEYS if isinstance(content.get(key), dict)]
    key = next((key for key in keys if content[key]), None)
    original = content[key] if key else content
    if not any(isinstance(value, Tensor) for value in original.values()):
        found = checkpoint.abbreviate([str(name) for name in original], 5)
        raise UserError(f"{path}: no state dict among {found}; expected {', '.join(STATE_KEYS)}")
    state = {WRAPPER_PREFIXES.sub("", str(name)): value for name, value in original.items()}
    if not any(name.endswith(".num_batches_tracked") for name in state):  # PyTorch before 0.4.1
        for name in [name for name in state if name.endswith(".running_mean")]:
            state[name.removesuffix("running_mean") + "num_batches_tracked"] = torch.tensor(0)
    return Weights(str(path), state, metadata, content, averaged=key == "ema")


def torchvision_weights(arch: str, name: str) -> Weights:
    """Return torchvision's weights for --init, such as IMAGENET1K_V1, downloaded on first use.

    Raises:
        UserError: torchvision has no such weights, or the download failed.
    """
    known = torchvision.models.get_model_weights(arch).__members__
    if name not in known:
        raise UserError(f"--init {name}: no such file or folder, and not {' or '.join(known)}")
    try:
        with first_on_node():
            network = torchvision.models.get_model(arch, weights=known[name])
    except (OSError, RuntimeError) as error:  # RuntimeError if the hash of the file is wrong
        raise UserError(
            f"--init {name}: the download of {known[name].url} failed ({one_line(error, 150)}); "
            "connect to the internet, or download it elsewhere and give the file"
        ) from error
    return Weights(f"torchvision's {name}", network.state_dict(), {"arch": arch})


def build_network(arch: str, weights: Weights, branches: bool) -> resnet.DKSResNet:
    """Build a network and load its weights strictly.

    Args:
        arch: a key of `resnet.NETWORKS`.
        weights: those of the branches are dropped without `branches`.
        branches: build the auxiliary branches too.

    Raises:
        UserError: the weights belong to another network, or have no branches.
    """
    weights.check_arch(arch)
    state = weights.state if branches else weights.backbone
    if branches and len(state) == len(weights.backbone):
        raise UserError(f"{weights.source}: has no auxiliary branches; leave out --branches")
    network = resnet.build(arch, branches, weights.num_classes)
    try:
        checkpoint.load_weights(network, state, Path(weights.source))
    except UserError as error:
        if "arch" in weights.metadata:
            raise
        raise UserError(f"{error}; it was taken for a {arch}: give its network with -a") from error
    if weights.classes and len(set(weights.classes)) != weights.num_classes:
        raise UserError(f"{weights.source}: damaged, because its classes are not those of its fc")
    return network


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
        UserError: none were released for `arch`, or the download failed or is something else.
    """
    if arch not in RELEASED:
        raise UserError(f"-a {arch}: weights were released only for {', '.join(RELEASED)}")
    target = Path(torch.hub.get_dir()) / "checkpoints" / f"dks_{arch}.pth"
    with first_on_node() as first:
        if first and not target.is_file():
            target.parent.mkdir(parents=True, exist_ok=True)
            # gdown leaves a partial file behind when a download breaks off.
            with tempfile.TemporaryDirectory(prefix=".dks-", dir=target.parent) as folder:
                os.replace(download(arch, Path(folder) / target.name), target)
    return target


def download(arch: str, path: Path) -> Path:
    """Download the released weights of `arch` to `path` with gdown, and check them."""
    drive_id, size = RELEASED[arch]
    try:
        import gdown

        # Its progress bar is for terminals. With cookies it would write to the home folder.
        quiet, url = not sys.stderr.isatty(), f"https://drive.google.com/uc?id={drive_id}"
        gdown.download(url, str(path), quiet=quiet, use_cookies=False, timeout=60)
        build_network(arch, read_weights(path), branches=False)
    except Exception as error:  # gdown's own exceptions, those of requests, and UserError
        reason = one_line(error, 300)
        raise UserError(
            f"the download failed ({reason}); save the weights of {arch} ({size} MiB) from "
            f"https://drive.google.com/file/d/{drive_id}/view, and give the file as --model_path"
        ) from error
    return path
