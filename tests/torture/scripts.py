"""The command lines under attack, imported once and run in forked processes."""

import importlib
import sys
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from conftest import ScriptFolder

WRN = ScriptFolder("wrn_DKS")
IMAGENET = ScriptFolder("imagenet")


class Script(NamedTuple):
    """A script of one of the folders."""

    folder: ScriptFolder
    module: str

    def __str__(self) -> str:
        return f"{self.folder.path.name}/{self.module}.py"

    def main(self, words: Sequence[str], before: Callable[[], None] | None = None) -> int:
        """Run a command line in this process, which can run no other folder's afterwards."""
        # As if the folder were the script's own: workers unpickle its classes by name.
        sys.path.insert(0, str(self.folder.path))
        sys.modules.update(modules(self.folder))
        torch.set_num_threads(1)
        if before:
            before()
        return getattr(self.folder, self.module).main(list(words))


CIFAR = Script(WRN, "main")
EVALUATION = Script(IMAGENET, "main")
TRAINING = Script(IMAGENET, "train")


def modules(folder: ScriptFolder) -> dict:
    """Every module of a folder, by name."""
    for path in folder.path.glob("*.py"):
        getattr(folder, path.stem)
    return folder.imported


def import_all() -> None:
    """Import what the scripts import, and what they import late."""
    for folder in (WRN, IMAGENET):
        modules(folder)
    for name in ("torch.utils.tensorboard", "gdown", "safetensors.torch"):
        importlib.import_module(name)
