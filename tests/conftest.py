"""Each script folder as an object: `wrn.synergy` is wrn_DKS/synergy.py.

Both script folders hold modules of the same names and import their siblings by bare name. Each is
therefore imported with only its own folder on the path, and its modules are kept apart.
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
    """Imports modules on first use: `folder.main`, `folder.command_line` (of its `common`).

    Args:
        name: the script folder.
        package: a package beside it that uses it, whose modules come first: `study.plan`.
    """

    def __init__(self, name: str, package: str | None = None):
        self.path = ROOT / name
        self._packages = [package] if package else []
        self.imported: dict[str, ModuleType] = {}  # by full name

    def __getattr__(self, name: str) -> ModuleType:
        full_name = self._full_name(name)
        outer, path = self._take_own(), list(sys.path)
        sys.modules.update(self.imported)
        sys.path[:0] = [str(self.path), str(ROOT)]
        try:
            return importlib.import_module(full_name)
        finally:
            sys.path[:] = path
            self.imported = self._take_own()
            sys.modules.update(outer)

    def _full_name(self, name: str) -> str:
        for package in self._packages:
            if (ROOT / package / f"{name}.py").exists():
                return f"{package}.{name}"
        if (self.path / f"{name}.py").exists():
            return name
        if (self.path / "common" / f"{name}.py").exists():
            return f"common.{name}"
        raise AttributeError(f"{self.path.name} has no module {name}")

    def _take_own(self) -> dict[str, ModuleType]:
        """Remove and return the imported modules whose names the folder or its package has."""
        own = {path.stem for path in self.path.glob("*.py")} | {"common", *self._packages}
        return {key: sys.modules.pop(key) for key in list(sys.modules) if key.split(".")[0] in own}


@pytest.fixture(scope="session")
def wrn() -> ScriptFolder:
    return ScriptFolder("wrn_DKS")


@pytest.fixture(scope="session")
def imagenet() -> ScriptFolder:
    return ScriptFolder("imagenet")


@pytest.fixture(scope="session")
def study() -> ScriptFolder:
    return ScriptFolder("wrn_DKS", "study")


@pytest.fixture(scope="session")
def cifar_benchmark() -> ScriptFolder:
    return ScriptFolder("wrn_DKS", "benchmarks")


@pytest.fixture(scope="session")
def imagenet_benchmark() -> ScriptFolder:
    return ScriptFolder("imagenet", "benchmarks")


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
