"""The command lines that read a checkpoint, and whether a damaged one changed their result."""

import hashlib
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import torch
import torchvision
import training
from evaluation import NETWORK as NETWORK_FLAGS

from torture.attempts import Attempt, expect_success
from torture.children import ProcessResult
from torture.runs import cifar_argv, first_difference, load, use_small_network
from torture.scripts import CIFAR, EVALUATION, TRAINING, Script

NETWORK = NETWORK_FLAGS[1]


def print_digests(script: Script) -> None:
    """Make `load_weights` print a digest of each network that it has loaded."""
    checkpoint = script.folder.checkpoint
    load_weights = checkpoint.load_weights

    def load_and_print(model, *arguments) -> None:
        load_weights(model, *arguments)
        values = b"".join(value.numpy().tobytes() for value in model.state_dict().values())
        print("loaded", hashlib.sha256(values).hexdigest())

    checkpoint.load_weights = load_and_print


class Reader(NamedTuple):
    """A command line that reads a checkpoint.

    `ignores(location)` tells whether it does not use the value at a location in the checkpoint,
    such as `("optimizer", "state", 3)`. Damage to such a value may go unnoticed.
    """

    name: str
    script: Script
    argv: Callable[[Attempt, Path], list[str]]
    ignores: Callable[[Sequence], bool]
    resumes: bool = False

    def read(self, attempt: Attempt, path: Path) -> ProcessResult:
        """Read a checkpoint."""

        def before() -> None:
            if self.script == TRAINING:
                use_small_network()
            print_digests(self.script)

        return attempt.run(self.script, self.argv(attempt, path), before)

    def difference(self, attempt: Attempt, result: ProcessResult) -> str:
        """Return what differs from the result with the undamaged file; empty if nothing does."""
        if not self.resumes:
            expected = (attempt.shared / f"{self.name}.digest").read_text()
            return "" if digests(result) == expected else "the weights"
        actual = load(attempt.folder / "run" / "checkpoint.pt")
        expected = load(attempt.shared / f"{self.name}.resumed")
        actual["options"] = expected["options"] = None
        return first_difference(actual, expected)


def digests(result: ProcessResult) -> str:
    return " ".join(line for line in result.out.splitlines() if line.startswith("loaded "))


def resume_cifar(attempt: Attempt, path: Path) -> list[str]:
    return [*cifar_argv(attempt, attempt.folder / "run"), "--resume", str(path)]


def evaluate_cifar(attempt: Attempt, path: Path) -> list[str]:
    return [*cifar_argv(attempt, attempt.folder / "run"), "--evaluate", "--resume", str(path)]


def resume_training(attempt: Attempt, path: Path) -> list[str]:
    flags = ["--epochs", "3", "--ema", "0.9", "--resume", str(path)]
    return training.command_line(attempt.shared / "images", attempt.folder / "run", *flags)


def predict(attempt: Attempt, path: Path) -> list[str]:
    image = attempt.shared / "images" / "val" / "cat" / "cat_0.png"
    argv = f"-a {NETWORK} --image-size 32 -j 0 --device cpu --predict {image}".split()
    return [*argv, "--model_path", str(path)]


def is_free_option(location: Sequence, free: Sequence[str]) -> bool:
    """Whether a location is an option that may change, or the optimizer's copy of an option."""
    in_group = tuple(location[:2]) == ("optimizer", "param_groups") and location[-1] != "params"
    return in_group or (len(location) > 1 and location[0] == "options" and location[1] in free)


READERS = (
    Reader(
        "resume-cifar",
        CIFAR,
        resume_cifar,
        lambda location: is_free_option(location, CIFAR.folder.options.RESUME_MAY_CHANGE),
        resumes=True,
    ),
    Reader(
        "evaluate-cifar",
        CIFAR,
        evaluate_cifar,
        lambda location: location[0] in CIFAR.folder.run_state.RUN_KEYS,
    ),
    Reader(
        "resume-training",
        TRAINING,
        resume_training,
        lambda location: is_free_option(
            location, (*TRAINING.folder.train_options.RESUME_MAY_CHANGE, "epochs")
        ),
        resumes=True,
    ),
    # Files from elsewhere may have any keys beside the weights, and lack class names and so on.
    Reader(
        "evaluation",
        EVALUATION,
        predict,
        lambda location: len(location) == 1 and location[0] != "state_dict",
    ),
)


def prepare_readers(attempt: Attempt) -> None:
    """Write an undamaged checkpoint for each reader, and the result of reading it."""
    training.write_data(attempt.shared / "images")
    cifar = [*cifar_argv(attempt, attempt.folder / "cifar"), "--epochs", "3"]
    imagenet = training.command_line(
        attempt.shared / "images", attempt.folder / "training", "--ema", "0.9"
    )
    expect_success(attempt.run(CIFAR, cifar))
    expect_success(attempt.run(TRAINING, imagenet, use_small_network))
    torch.manual_seed(0)
    network = torchvision.models.get_model(NETWORK, num_classes=3)
    metadata = {"arch": NETWORK, "class_names": ["cat", "dog", "eel"]}
    content = {"state_dict": network.state_dict(), "epoch": 3, **metadata}
    torch.save(content, attempt.folder / "evaluation")
    sources = ("cifar/checkpoint.pt", "cifar/checkpoint.pt", "training/checkpoint.pt", "evaluation")
    for reader, source in zip(READERS, sources, strict=True):
        path = shutil.copy(attempt.folder / source, attempt.shared / f"{reader.name}.pt")
        result = reader.read(attempt, Path(path))
        expect_success(result)
        (attempt.shared / f"{reader.name}.digest").write_text(digests(result))
        if reader.resumes:
            run = attempt.folder / "run"
            shutil.copy(run / "checkpoint.pt", attempt.shared / f"{reader.name}.resumed")
            shutil.rmtree(run)
