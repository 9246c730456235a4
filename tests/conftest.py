"""Fixtures. Each script folder is an object: `wrn.synergy` is wrn_DKS/synergy.py.

Both script folders have modules of the same names, which import each other by these names. Each
folder is therefore imported with only itself on the path, and its modules are kept separate.
"""

import ctypes
import hashlib
import importlib
import os
import shutil
import sys
from pathlib import Path
from types import ModuleType

os.environ["CUDA_VISIBLE_DEVICES"] = ""  # before torch: all results here are those of a CPU

import pytest
import torch
from halves import Half, write_data
from processes import ForkedPython, kill_descendants
from synthetic import write_cifar100

TESTS = Path(__file__).resolve().parent
ROOT = TESTS.parent


class ScriptFolder:
    """Imports modules on first use: `folder.main`, or `folder.command_line` from its `common`."""

    def __init__(self, name: str):
        self.path = ROOT / name
        self.imported: dict[str, ModuleType] = {}  # by full name

    def __getattr__(self, name: str) -> ModuleType:
        places = {name: self.path, f"common.{name}": self.path / "common"}
        found = [place for place, folder in places.items() if (folder / f"{name}.py").exists()]
        if not found:
            raise AttributeError(f"{self.path.name} has no module {name}")
        others, path = self._pop_modules(), list(sys.path)
        sys.modules.update(self.imported)
        sys.path.insert(0, str(self.path))
        try:
            return importlib.import_module(found[0])
        finally:
            sys.path[:] = path
            self.imported = self._pop_modules()
            sys.modules.update(others)

    def status(self, script: str, argv: list[str]) -> int:
        """Run `main` of a script; return the exit status."""
        main = getattr(self, script).main
        return self.command_line.exit_status(lambda: main(argv))

    def _pop_modules(self) -> dict[str, ModuleType]:
        """Remove the folder's modules from `sys.modules` and return them."""
        names = {path.stem for path in self.path.glob("*.py")} | {"common"}
        popped = [key for key in sys.modules if key.split(".")[0] in names]
        return {key: sys.modules.pop(key) for key in popped}


@pytest.fixture(scope="session")
def wrn() -> ScriptFolder:
    return ScriptFolder("wrn_DKS")


@pytest.fixture(scope="session")
def imagenet() -> ScriptFolder:
    return ScriptFolder("imagenet")


@pytest.fixture(scope="session")
def python(tmp_path_factory):
    """Runs scripts in processes that need not import torch."""
    python = ForkedPython(tmp_path_factory.mktemp("python"))
    yield python
    python.close()


@pytest.fixture(scope="session")
def wrn_half(wrn, python, tmp_path_factory) -> Half:
    """wrn_DKS on tiny data."""
    return Half(wrn, write_data(tmp_path_factory.mktemp("images")), python)


@pytest.fixture(scope="session", params=["wrn", "imagenet"])
def half(request, wrn_half, imagenet, python) -> Half:
    """Each of the two script folders, on tiny data."""
    return wrn_half if request.param == "wrn" else Half(imagenet, wrn_half.data, python)


@pytest.fixture(scope="module")
def module_path(tmp_path_factory):
    """A temporary folder for large files that the tests of a module share."""
    path = tmp_path_factory.mktemp("module")
    yield path
    shutil.rmtree(path)


@pytest.fixture(autouse=True, scope="session")
def one_thread():
    """Use one thread, so that results do not depend on the number of cores."""
    torch.set_num_threads(1)
    assert not torch.cuda.is_available()


@pytest.fixture(autouse=True, scope="session")
def no_process_left():
    """Fail if a test has left a process behind, on Linux; kill it."""
    become_reaper = 36  # PR_SET_CHILD_SUBREAPER: orphans become children of this process
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(become_reaper, 1, 0, 0, 0)
    yield
    killed = kill_descendants(os.getpid())
    python_s, torch_s = "resource_tracker", "compile_worker"  # they end with this process
    left = [each for each in killed if python_s not in each and torch_s not in each]
    assert not left, f"tests have left processes: {left}"


@pytest.fixture
def cifar100(wrn, monkeypatch, tmp_path):
    """Write random files in CIFAR-100's format that pass its checksums; return their pixels."""
    cls = wrn.data.CIFAR["CIFAR100"]
    folder = tmp_path / "root" / cls.base_folder
    pixels = write_cifar100(folder, 12)
    md5 = {path.name: hashlib.md5(path.read_bytes()).hexdigest() for path in folder.iterdir()}
    monkeypatch.setattr(cls, "train_list", [["train", md5["train"]]])
    monkeypatch.setattr(cls, "test_list", [["test", md5["test"]]])
    monkeypatch.setattr(cls, "meta", {**cls.meta, "md5": md5["meta"]})
    return pixels
