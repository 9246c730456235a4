"""Every way in which a checkpoint is read, and whether a damaged one was used."""

import hashlib
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import torch
import torchvision
import training

from torture.attempts import Attempt, expect_done
from torture.children import Ended
from torture.runs import cifar_words, first_difference, load, use_small_network
from torture.scripts import CIFAR, EVALUATION, TRAINING, Script

NETWORK = "shufflenet_v2_x0_5"  # the smallest that torchvision has


def print_loaded(script: Script) -> None:
    """Print a digest of each network once weights are loaded into it."""
    checkpoint = script.folder.checkpoint
    load_weights = checkpoint.load_weights

    def load_and_print(model, *arguments) -> None:
        load_weights(model, *arguments)
        values = b"".join(value.numpy().tobytes() for value in model.state_dict().values())
        print("loaded", hashlib.sha256(values).hexdigest())

    checkpoint.load_weights = load_and_print


class Reader(NamedTuple):
    """A command line that reads a checkpoint.

    `unread(place)` tells whether it has no use for what is at a place, such as
    `("optimizer", "state", 3)`; whatever is there may be damaged without being noticed.
    """

    name: str
    script: Script
    words: Callable[[Attempt, Path], list[str]]
    unread: Callable[[Sequence], bool]
    resumes: bool = False

    def read(self, attempt: Attempt, path: Path) -> Ended:
        """Let it read the file."""

        def before() -> None:
            if self.script == TRAINING:
                use_small_network()
            print_loaded(self.script)

        return attempt.run(self.script, self.words(attempt, path), before)

    def difference(self, attempt: Attempt, ended: Ended) -> str:
        """How the result differs from that of the whole file; empty if it does not."""
        if not self.resumes:
            expected = (attempt.shared / f"{self.name}.digest").read_text()
            return "" if loaded(ended) == expected else "the weights"
        own = load(attempt.folder / "run" / "checkpoint.pt")
        other = load(attempt.shared / f"{self.name}.resumed")
        own["options"] = other["options"] = None
        return first_difference(own, other)


def loaded(ended: Ended) -> str:
    return " ".join(line for line in ended.out.splitlines() if line.startswith("loaded "))


def resume_cifar(attempt: Attempt, path: Path) -> list[str]:
    return [*cifar_words(attempt, attempt.folder / "run"), "--resume", str(path)]


def evaluate_cifar(attempt: Attempt, path: Path) -> list[str]:
    return [*cifar_words(attempt, attempt.folder / "run"), "--evaluate", "--resume", str(path)]


def resume_training(attempt: Attempt, path: Path) -> list[str]:
    words = ["--epochs", "3", "--ema", "0.9", "--resume", str(path)]
    return training.command_line(attempt.shared / "images", attempt.folder / "run", *words)


def predict(attempt: Attempt, path: Path) -> list[str]:
    image = attempt.shared / "images" / "val" / "cat" / "cat_0.png"
    words = f"-a {NETWORK} --image-size 32 -j 0 --device cpu --predict {image}".split()
    return [*words, "--model_path", str(path)]


def other_options(place: Sequence, free: Sequence[str]) -> bool:
    """Options that a resumed run may change, and the optimizer's copy of options."""
    own_group = tuple(place[:2]) == ("optimizer", "param_groups") and place[-1] != "params"
    return own_group or (len(place) > 1 and place[0] == "options" and place[1] in free)


READERS = (
    Reader(
        "resume-cifar",
        CIFAR,
        resume_cifar,
        lambda place: other_options(place, CIFAR.folder.options.RESUME_MAY_CHANGE),
        resumes=True,
    ),
    Reader(
        "evaluate-cifar",
        CIFAR,
        evaluate_cifar,
        lambda place: place[0] in CIFAR.folder.run_state.RUN_KEYS,
    ),
    Reader(
        "resume-training",
        TRAINING,
        resume_training,
        lambda place: other_options(
            place, (*TRAINING.folder.train_options.RESUME_MAY_CHANGE, "epochs")
        ),
        resumes=True,
    ),
    # Others' files hold anything around the weights; class names and the like may be missing.
    Reader(
        "evaluation",
        EVALUATION,
        predict,
        lambda place: len(place) == 1 and place[0] != "state_dict",
    ),
)


def prepare_readers(attempt: Attempt) -> None:
    """A whole checkpoint for every reader, and what it makes of it."""
    training.write_data(attempt.shared / "images")
    words = {
        CIFAR: [*cifar_words(attempt, attempt.folder / "cifar"), "--epochs", "3"],
        TRAINING: training.command_line(
            attempt.shared / "images", attempt.folder / "training", "--ema", "0.9"
        ),
    }
    expect_done(attempt.run(CIFAR, words[CIFAR]))
    expect_done(attempt.run(TRAINING, words[TRAINING], use_small_network))
    torch.manual_seed(0)
    network = torchvision.models.get_model(NETWORK, num_classes=3)
    names = {"arch": NETWORK, "class_names": ["cat", "dog", "eel"]}
    content = {"state_dict": network.state_dict(), "epoch": 3, **names}
    torch.save(content, attempt.folder / "evaluation")
    sources = ("cifar/checkpoint.pt", "cifar/checkpoint.pt", "training/checkpoint.pt", "evaluation")
    for reader, source in zip(READERS, sources, strict=True):
        path = shutil.copy(attempt.folder / source, attempt.shared / f"{reader.name}.pt")
        ended = reader.read(attempt, Path(path))
        expect_done(ended)
        (attempt.shared / f"{reader.name}.digest").write_text(loaded(ended))
        if reader.resumes:
            run = attempt.folder / "run"
            shutil.copy(run / "checkpoint.pt", attempt.shared / f"{reader.name}.resumed")
            shutil.rmtree(run)
