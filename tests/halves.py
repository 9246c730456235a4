"""Both script folders on tiny data: start, stop and compare their trainings."""

import json
import os
import signal
from collections.abc import Callable
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest
import torch
from processes import ForkedPython, free_ports
from synthetic import write_folders
from torch import Tensor, nn

TESTS = Path(__file__).resolve().parent
# An epoch has four steps: of 4, 4, 4 and 1 image. Several processes leave the last one out.
OPTIONS = "--epochs 2 -b 4 --lr 0.02 --device cpu".split()
WRN = "--dataset folder --image-size 8 --depth 10 --width 0.25 -j 1".split()
IMAGENET = "-a resnet18 --image-size 40 -j 0".split()
VARYING = ("times", "peak_memory_mib")  # what may differ between the logs of two equal runs
VARYING_OPTIONS = ("save", "resume")


class Killed(BaseException):
    """Stands for the death of the process; no code catches it."""


def kill(*_) -> None:
    raise Killed


def sigterm(*_) -> None:
    os.kill(os.getpid(), signal.SIGTERM)


def write_data(root: Path) -> Path:
    """Write 13 training and 5 test images of 3 classes; return `root`."""
    write_folders(root, {"cat": 5, "dog": 4, "eel": 4}, "train")
    return write_folders(root, {"cat": 2, "dog": 2, "eel": 1}, "val")


class TinyNetwork(nn.Module):
    """A replacement for a ResNet with branches in tests that need only the training code.

    With GROUP_NORM in the environment, it has no statistics of a batch.
    """

    def __init__(self, arch: str, branches: bool = True, num_classes: int = 1000):
        super().__init__()
        norm = nn.GroupNorm(1, 8) if "GROUP_NORM" in os.environ else nn.BatchNorm2d(8)
        self.features = nn.Sequential(nn.Conv2d(3, 8, 5, 4), norm, nn.ReLU())
        self.fc = nn.Linear(8, num_classes)
        self.branches = nn.ModuleList(nn.Linear(8, num_classes) for _ in range(2 * branches))

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        pooled = self.features(images).mean((2, 3))
        return self.fc(pooled), *(branch(pooled) for branch in self.branches)


class Half:
    """A script folder: its training on tiny data, with a tiny network, here or in processes."""

    def __init__(self, scripts, data: Path, python: ForkedPython):
        self.scripts, self.data, self._python = scripts, data, python
        self.is_wrn = scripts.path.name == "wrn_DKS"

    @property
    def script(self) -> ModuleType:
        return self.scripts.main if self.is_wrn else self.scripts.train

    def parse(self, argv: list[str]):
        return (self.script.parse if self.is_wrn else self.script.parse_training)(argv)

    def argv(self, save: Path, *more: object) -> list[str]:
        """Return the options of a run of two epochs; `more` overrides them."""
        own = WRN if self.is_wrn else IMAGENET
        words = ["--dataroot", self.data, *own, *OPTIONS, "--save", save, *more]
        return [str(word) for word in words]

    def train(
        self, save: Path, *more: object, at: dict[int, Callable] | None = None, argv=None
    ) -> int:
        """Train in this process; return the exit status.

        Args:
            save, more: of `argv`; or else `argv` itself.
            at: what to call with the trainer before a step of the run, by its number from 0 on.
        """
        with pytest.MonkeyPatch.context() as patch:
            before_steps(patch, self.scripts.engine.Trainer, at or {})
            patch.setattr(self.script, "print_costs", lambda *_: None)  # takes most of the time
            if not self.is_wrn:
                patch.setattr(self.script, "build", TinyNetwork)
            argv = self.argv(save, *more) if argv is None else argv
            return self.scripts.status("main" if self.is_wrn else "train", argv)

    def start_of(self, save: Path, *more: object) -> SimpleNamespace:
        """Return what a training would begin with: the arguments of `fit`, and of `Mixing`."""
        seen, create = SimpleNamespace(), self.scripts.schedule.Mixing

        def fit(run, trainer, train, test, metadata, data):
            vars(seen).update(locals())
            raise self.scripts.command_line.Incomplete("not trained")

        def mixing(*args):
            seen.mixing = args
            return create(*args)

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(self.script, "fit", fit)
            patch.setattr(self.script, "Mixing", mixing)
            assert self.train(save, *more) == 1
        return seen

    def error(self, capsys, *words: object, **options) -> str:
        """Train, which must end with status 2 and one line; return that line."""
        capsys.readouterr()
        assert self.train(*words, **options) == 2
        error = capsys.readouterr().err
        assert error.startswith("error: ") and error.count("\n") == 1, error
        return error

    def start(self, *words: object, **variables: str) -> int:
        """Start a training in a process with environment variables; return its ID."""
        script, path = TESTS / "tiny_train.py", (self.scripts.path, TESTS)
        return self._python.start(script, *self.argv(*words), path=path, variables=variables)

    def wait(self, process: int, status: int = 0) -> str:
        """Wait for a process, which must exit with `status`; return its output."""
        done = self._python.wait(process)
        assert done.returncode == status, done.stdout + done.stderr
        return done.stdout + done.stderr

    def train_in_group(self, count: int, *words: object, status=0, **variables: str) -> list[str]:
        """Train in a group of processes, which must exit with `status`; return their outputs.

        `status` may be a tuple, with the status of each process.
        """
        variables |= {"WORLD_SIZE": str(count), "MASTER_ADDR": "127.0.0.1"}
        variables["MASTER_PORT"] = free_ports(1)[0]
        processes = [self.start(*words, RANK=str(rank), **variables) for rank in range(count)]
        statuses = status if isinstance(status, tuple) else [status] * count
        return [self.wait(*pair) for pair in zip(processes, statuses, strict=True)]


def before_steps(patch, trainer: type, actions: dict[int, Callable]) -> None:
    """Call an action with the trainer before the step of this number."""
    original = trainer.train_step

    def train_step(self, batch):
        actions.get(self.step, lambda trainer: None)(self)
        return original(self, batch)

    patch.setattr(trainer, "train_step", train_step)


def before_call(patch, owner: object, name: str, count: int, action: Callable) -> None:
    """Call an action before call number `count` of a function, which is counted from 1."""
    original, calls = getattr(owner, name), iter(range(1, count + 1))

    def wrapped(*args, **kwargs):
        if next(calls, None) == count:
            action()
        return original(*args, **kwargs)

    patch.setattr(owner, name, wrapped)


def load(save: Path) -> dict:
    return torch.load(save / "checkpoint.pt", weights_only=True)


def records(save: Path) -> list[dict]:
    return [json.loads(line) for line in (save / "log.jsonl").read_text().splitlines()]


def contents(folder: Path) -> dict[Path, bytes]:
    """Return the content of each file below a folder."""
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def without(mapping: dict, names: tuple[str, ...]) -> dict:
    return {key: value for key, value in mapping.items() if key not in names}


def assert_same_run(save: Path, expected: Path, exact: bool = True) -> None:
    """Assert that two runs have the same log and the same checkpoint, bit for bit.

    Not `exact`: up to rounding, with any numbers of processes.
    """
    varying, runs = VARYING if exact else (*VARYING, "software", "rng", "processes"), []
    for folder in (save, expected):
        run = [without(each, varying) for each in (*records(folder), load(folder))]
        del run[-1]["optimizer"]["param_groups"]  # options, and the rate of the step
        for each in run:
            each["options"] = without(each["options"], VARYING_OPTIONS)
        runs.append(run)
    assert_equal(*runs, exact=exact)


def assert_equal(actual: object, expected: object, where: str = "", exact: bool = True) -> None:
    """Assert that two nested values with tensors are equal, bit for bit or up to rounding."""
    assert type(actual) is type(expected), where
    if isinstance(actual, dict | list | tuple):
        if not isinstance(actual, dict):
            actual, expected = dict(enumerate(actual)), dict(enumerate(expected))
        assert actual.keys() == expected.keys(), where
        for key, value in actual.items():
            assert_equal(value, expected[key], f"{where}.{key}", exact)
    elif isinstance(actual, Tensor | float):
        tolerance = {"rtol": 0, "atol": 0} if exact else {"rtol": 1e-4, "atol": 1e-5}
        torch.testing.assert_close(actual, expected, msg=lambda m: f"{where}: {m}", **tolerance)
    else:
        assert actual == expected, where
