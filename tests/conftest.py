"""The script folders as objects: `wrn.synergy` is wrn_DKS/synergy.py, `imagenet.synergy` its twin.

Both folders hold modules of the same names and import their siblings by bare name, so each is
imported with only its own folder on the path, and its modules are kept apart from the other's.
"""

import hashlib
import importlib
import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch
from synthetic import write_cifar100

ROOT = Path(__file__).resolve().parent.parent


class ScriptFolder:
    """Imports the modules of one script folder on first use: `folder.module`."""

    def __init__(self, name: str):
        self.path = ROOT / name
        self._modules: dict[str, ModuleType] = {}

    def __getattr__(self, name: str) -> ModuleType:
        own = {path.stem for path in self.path.glob("*.py")}
        if name not in own:
            raise AttributeError(f"{self.path.name} has no module {name}")
        outer = {key: sys.modules.pop(key) for key in own if key in sys.modules}
        sys.modules.update(self._modules)
        sys.path.insert(0, str(self.path))
        try:
            return importlib.import_module(name)
        finally:
            sys.path.remove(str(self.path))
            self._modules = {key: sys.modules.pop(key) for key in own if key in sys.modules}
            sys.modules.update(outer)


@pytest.fixture(scope="session")
def wrn() -> ScriptFolder:
    return ScriptFolder("wrn_DKS")


@pytest.fixture(scope="session")
def imagenet() -> ScriptFolder:
    return ScriptFolder("imagenet")


@pytest.fixture(params=["wrn_DKS", "imagenet"], scope="session")
def folder(request) -> ScriptFolder:
    """Either folder: for the modules that both have."""
    return ScriptFolder(request.param)


@pytest.fixture(autouse=True, scope="session")
def one_thread():
    """The same arithmetic on a laptop and on a large machine; pytest's workers have the rest."""
    torch.set_num_threads(1)


@pytest.fixture
def cifar100(wrn, monkeypatch, tmp_path):
    """Official-format files, their checksums in place of the real ones; the pixels written."""
    cls = wrn.data.CIFAR["CIFAR100"]
    folder = tmp_path / "root" / cls.base_folder
    pixels = write_cifar100(folder, 12)
    md5 = {path.name: hashlib.md5(path.read_bytes()).hexdigest() for path in folder.iterdir()}
    monkeypatch.setattr(cls, "train_list", [["train", md5["train"]]])
    monkeypatch.setattr(cls, "test_list", [["test", md5["test"]]])
    monkeypatch.setattr(cls, "meta", {**cls.meta, "md5": md5["meta"]})
    return pixels
