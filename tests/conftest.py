"""Fixtures. Each script folder is an object: `wrn.synergy` is wrn_DKS/synergy.py.

Both script folders have modules of the same names, which import each other by these names. Each
folder is therefore imported with only itself on the path, and its modules are kept separate.
"""

import ctypes
import hashlib
import importlib
import os
import shutil
import signal
import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch
from cifar_runs import SMALL_CIFAR_RUN
from processes import ForkedPython, ScriptRuns, kill_descendants
from synthetic import write_cifar100

TESTS = Path(__file__).resolve().parent
ROOT = TESTS.parent


class ScriptFolder:
    """Imports modules on first use: `folder.main`, or `folder.command_line` from its `common`.

    Args:
        name: of the script folder.
        package: a package that uses the folder, such as `study`; its modules take precedence.
    """

    def __init__(self, name: str, package: str | None = None):
        self.path = ROOT / name
        self._packages = [package] if package else []
        self.imported: dict[str, ModuleType] = {}  # by full name

    def __getattr__(self, name: str) -> ModuleType:
        full_name = self._full_name(name)
        others, path = self._pop_modules(), list(sys.path)
        sys.modules.update(self.imported)
        sys.path[:0] = [str(self.path), str(ROOT)]
        try:
            return importlib.import_module(full_name)
        finally:
            sys.path[:] = path
            self.imported = self._pop_modules()
            sys.modules.update(others)

    def _full_name(self, name: str) -> str:
        for package in self._packages:
            if (ROOT / package / f"{name}.py").exists():
                return f"{package}.{name}"
        if (self.path / f"{name}.py").exists():
            return name
        if (self.path / "common" / f"{name}.py").exists():
            return f"common.{name}"
        raise AttributeError(f"{self.path.name} has no module {name}")

    def _pop_modules(self) -> dict[str, ModuleType]:
        """Remove the folder's and package's modules from `sys.modules` and return them."""
        names = {path.stem for path in self.path.glob("*.py")} | {"common", *self._packages}
        popped = [key for key in sys.modules if key.split(".")[0] in names]
        return {key: sys.modules.pop(key) for key in popped}


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


@pytest.fixture(scope="module")
def module_path(tmp_path_factory):
    """A temporary folder for large files that the tests of a module share."""
    path = tmp_path_factory.mktemp("module")
    yield path
    shutil.rmtree(path)


@pytest.fixture(scope="session")
def python(tmp_path_factory):
    """Runs scripts in processes that need not import torch."""
    python = ForkedPython(tmp_path_factory.mktemp("python"))
    yield python
    python.close()


@pytest.fixture(scope="session")
def wrn_runs(python, wrn) -> ScriptRuns:
    """Starts wrn_DKS/main.py in processes."""
    return ScriptRuns(python, wrn.path / "main.py", wrn.path)


@pytest.fixture(scope="session")
def imagenet_runs(python, imagenet) -> ScriptRuns:
    """Starts imagenet/train.py on `TinyNetwork` in processes."""
    return ScriptRuns(python, TESTS / "tiny_train.py", imagenet.path, TESTS)


@pytest.fixture
def hangup_is_not_ignored():
    """Restore the default action of SIGHUP, which is ignored under nohup."""
    before = signal.signal(signal.SIGHUP, signal.SIG_DFL)
    yield
    signal.signal(signal.SIGHUP, before)


@pytest.fixture(autouse=True, scope="session")
def one_thread():
    """Use one thread, so that results do not depend on the number of cores."""
    torch.set_num_threads(1)


@pytest.fixture(scope="module")
def cifar_main(wrn):
    """Call wrn_DKS/main.py with the options of a small network before the given ones."""
    return lambda *words: wrn.main.main([*SMALL_CIFAR_RUN, *map(str, words)])


@pytest.fixture(scope="module")
def cifar_run(cifar_main, tmp_path_factory):
    """The folder of an uninterrupted DKS run of four epochs."""
    folder = tmp_path_factory.mktemp("run")
    assert cifar_main("--epochs", 4, "--epoch_step", "[3]", "--save", folder) == 0
    return folder


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
