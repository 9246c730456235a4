"""Data folders that are not as they should be, or larger or deeper than most."""

import os
import re
from pathlib import Path

import training
from synthetic import write_image

from torture.attempts import Attempt, Fault, expect, expect_done, expect_refused
from torture.children import Ended
from torture.readers import NETWORK, prepare_readers
from torture.runs import use_small_network
from torture.scripts import CIFAR, EVALUATION, TRAINING

MANY = 50_000


def train(attempt: Attempt, root: Path, script=CIFAR) -> Ended:
    """Train an epoch on a folder, whose test images the CIFAR side finds in val/ too."""
    save = attempt.folder / f"run-{script.module}"
    if script == TRAINING:
        words = training.command_line(root, save, "--epochs", "1")
        return attempt.run(script, words, use_small_network)
    words = "--dataset folder --image-size 8 --depth 10 --width 0.25 --epochs 1 --dataroot".split()
    return attempt.run(script, [*words, str(root), "--save", str(save)])


def evaluate(attempt: Attempt, root: Path, *more: str) -> Ended:
    weights = attempt.shared / "evaluation.pt"
    words = f"-a {NETWORK} --image-size 32 -j 0 --device cpu --model_path {weights} {root}".split()
    return attempt.run(EVALUATION, [*words, *more], limit_s=150)


def empty_class(attempt: Attempt, root: Path) -> None:
    split = attempt.draws.choice(["train", "val"])
    (root / split / "ant").mkdir()
    (root / split / "ant" / "notes.txt").touch()
    for script in (CIFAR, TRAINING):
        expect_refused(train(attempt, root, script), "ant", "no image in this class")
    if split == "val":
        expect_refused(evaluate(attempt, root), "ant")


def one_class(attempt: Attempt, root: Path) -> None:
    for split in ("train", "val"):
        for name in ("cat", "dog"):
            (root / split / name).rename(attempt.folder / f"{split}-{name}")
    for script in (CIFAR, TRAINING):
        expect_refused(train(attempt, root, script), "eel", "class")


def only_in_test(attempt: Attempt, root: Path) -> None:
    write_image(root / "val" / "fox" / "fox.png")
    for script in (CIFAR, TRAINING):
        expect_refused(train(attempt, root, script), "fox", "class")
    expect_refused(evaluate(attempt, root), "fox")


def only_in_training(attempt: Attempt, root: Path) -> None:
    write_image(root / "train" / "fox" / "fox.png")
    expect_done(train(attempt, root))
    ended = train(attempt, root, TRAINING)
    expect_counts(ended, 14, 5)


def nested(attempt: Attempt, root: Path) -> None:
    deep = root / "val" / "eel" / "/".join("abcdefgh"[: attempt.draws.randint(1, 8)])
    write_image(deep / "eel.png")
    (deep / "back").symlink_to(root / "val" / "eel")
    ended = evaluate(attempt, root)
    expect_done(ended)
    expect(re.search("^6 images in", ended.out, re.MULTILINE), "expected 6 images", ended)
    ended = train(attempt, root, TRAINING)
    expect_counts(ended, 13, 6)


def expect_counts(ended: Ended, images: int, validation: int) -> None:
    expect_done(ended)
    found = re.search(r"(\d+) images of .* to train on, (\d+) to validate", ended.out)
    counted = found and (int(found[1]), int(found[2]))
    expect(counted == (images, validation), f"expected {images} and {validation}", ended)


def flat(attempt: Attempt, root: Path) -> None:
    """50,000 names in val/ itself, as the official archive unpacks."""
    val, stored = attempt.folder / "flat" / "val", []
    val.mkdir(parents=True)
    for number in range(MANY):
        if number % 10_000 == 0:  # file systems limit the names of one file
            stored.append(write_image(attempt.folder / f"{number}.png", number, size=(8, 8)))
        os.link(stored[-1], val / f"ILSVRC2012_val_{number + 1:08}.png")
    expect_refused(evaluate(attempt, val.parent), f"{MANY} images", "--val-labels")
    labels = attempt.folder / "labels.txt"
    lines = [f"ILSVRC2012_val_{number + 1:08}.png n01440764" for number in range(MANY - 3)]
    labels.write_text("\n".join(lines))
    expect_refused(evaluate(attempt, val.parent, "--val-labels", str(labels)), "for 3 image")


KINDS = (empty_class, one_class, only_in_test, only_in_training, nested, flat)


def odd_folder(attempt: Attempt) -> None:
    """Train on it and evaluate it."""
    root = training.write_data(attempt.folder / "data")
    KINDS[attempt.index % len(KINDS)](attempt, root)


FAULTS = [
    Fault(
        "folders",
        "data folders: an empty class, one class, classes in one part only, nested with a loop, "
        "50,000 names in val/ itself",
        20,
        "a run that counts them right, or one line",
        odd_folder,
        prepare_readers,
    ),
]
