"""Malformed, large and deeply nested data folders."""

import os
import re
from pathlib import Path

import training
from synthetic import write_image

from torture.attempts import Attempt, Fault, expect, expect_success, expect_user_error
from torture.children import ProcessResult
from torture.readers import NETWORK, prepare_readers
from torture.runs import use_small_network
from torture.scripts import CIFAR, EVALUATION, TRAINING

IMAGES = 50_000  # of ImageNet's validation set


def train(attempt: Attempt, root: Path, script=CIFAR) -> ProcessResult:
    """Train one epoch on a folder. wrn_DKS/main.py accepts val/ for its test images."""
    save = attempt.folder / f"run-{script.module}"
    if script == TRAINING:
        argv = training.command_line(root, save, "--epochs", "1")
        return attempt.run(script, argv, use_small_network)
    argv = "--dataset folder --image-size 8 --depth 10 --width 0.25 --epochs 1 --dataroot".split()
    return attempt.run(script, [*argv, str(root), "--save", str(save)])


def evaluate(attempt: Attempt, root: Path, *more: str) -> ProcessResult:
    weights = attempt.shared / "evaluation.pt"
    argv = f"-a {NETWORK} --image-size 32 -j 0 --device cpu --model_path {weights} {root}".split()
    return attempt.run(EVALUATION, [*argv, *more], limit_s=150)


def empty_class(attempt: Attempt, root: Path) -> None:
    split = attempt.rng.choice(["train", "val"])
    (root / split / "ant").mkdir()
    (root / split / "ant" / "notes.txt").touch()
    for script in (CIFAR, TRAINING):
        expect_user_error(train(attempt, root, script), "ant", "no image in this class")
    if split == "val":
        expect_user_error(evaluate(attempt, root), "ant")


def one_class(attempt: Attempt, root: Path) -> None:
    for split in ("train", "val"):
        for name in ("cat", "dog"):
            (root / split / name).rename(attempt.folder / f"{split}-{name}")
    for script in (CIFAR, TRAINING):
        expect_user_error(train(attempt, root, script), "eel", "class")


def only_in_test(attempt: Attempt, root: Path) -> None:
    write_image(root / "val" / "fox" / "fox.png")
    for script in (CIFAR, TRAINING):
        expect_user_error(train(attempt, root, script), "fox", "class")
    expect_user_error(evaluate(attempt, root), "fox")


def only_in_training(attempt: Attempt, root: Path) -> None:
    write_image(root / "train" / "fox" / "fox.png")
    expect_success(train(attempt, root))
    result = train(attempt, root, TRAINING)
    expect_counts(result, 14, 5)


def nested(attempt: Attempt, root: Path) -> None:
    deep = root / "val" / "eel" / "/".join("abcdefgh"[: attempt.rng.randint(1, 8)])
    write_image(deep / "eel.png")
    (deep / "back").symlink_to(root / "val" / "eel")
    result = evaluate(attempt, root)
    expect_success(result)
    expect(re.search("^6 images in", result.out, re.MULTILINE), "expected 6 images", result)
    result = train(attempt, root, TRAINING)
    expect_counts(result, 13, 6)


def expect_counts(result: ProcessResult, images: int, validation: int) -> None:
    expect_success(result)
    match = re.search(r"(\d+) training images of .* (\d+) validation images", result.out)
    counts = match and (int(match[1]), int(match[2]))
    expect(counts == (images, validation), f"expected {images} and {validation} images", result)


def flat(attempt: Attempt, root: Path) -> None:
    """50,000 images in val/ itself, as in the official archive."""
    val, files = attempt.folder / "flat" / "val", []
    val.mkdir(parents=True)
    for number in range(IMAGES):
        if number % 10_000 == 0:  # file systems limit the number of hard links
            files.append(write_image(attempt.folder / f"{number}.png", number, size=(8, 8)))
        os.link(files[-1], val / f"ILSVRC2012_val_{number + 1:08}.png")
    expect_user_error(evaluate(attempt, val.parent), f"{IMAGES:,} images", "--val-labels")
    labels = attempt.folder / "labels.txt"
    lines = [f"ILSVRC2012_val_{number + 1:08}.png n01440764" for number in range(IMAGES - 3)]
    labels.write_text("\n".join(lines))
    expect_user_error(evaluate(attempt, val.parent, "--val-labels", str(labels)), "for 3 image")


KINDS = (empty_class, one_class, only_in_test, only_in_training, nested, flat)


def odd_folder(attempt: Attempt) -> None:
    """Train on a folder, or evaluate on it."""
    root = training.write_data(attempt.folder / "data")
    KINDS[attempt.index % len(KINDS)](attempt, root)


FAULTS = [
    Fault(
        "folders",
        "data folders: empty class, only one class, classes missing in train/ or val/, nested "
        "folders with a link loop, 50,000 images in val/ itself",
        20,
        "a run with the right number of images, or a one-line error",
        odd_folder,
        prepare_readers,
    ),
]
