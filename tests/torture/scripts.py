"""The scripts under test, imported once and run in forked processes."""

import importlib
import sys
from collections.abc import Callable, Sequence
from types import ModuleType
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

    def main(self, argv: Sequence[str], before: Callable[[], None] | None = None) -> int:
        """Run the script in this process, which can run no script of another folder afterwards."""
        # Import by name as the script itself does: DataLoader unpickles objects by module name.
        sys.path.insert(0, str(self.folder.path))
        sys.modules.update(import_modules(self.folder))
        torch.set_num_threads(1)
        if before:
            before()
        return getattr(self.folder, self.module).main(list(argv))


CIFAR = Script(WRN, "main")
EVALUATION = Script(IMAGENET, "main")
TRAINING = Script(IMAGENET, "train")


def import_modules(folder: ScriptFolder) -> dict[str, ModuleType]:
    """Import all modules of a folder; return them by full name."""
    for path in folder.path.glob("*.py"):
        getattr(folder, path.stem)
    return folder.imported


def import_all() -> None:
    """Import everything that the scripts import, including what they import late."""
    for folder in (WRN, IMAGENET):
        import_modules(folder)
    for name in ("torch.utils.tensorboard", "gdown", "safetensors.torch"):
        importlib.import_module(name)
