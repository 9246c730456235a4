"""What an evaluation came to: lines for people, and the same as JSON."""

import json
from dataclasses import fields
from pathlib import Path

import torch
import torchvision

from common.checkpoint import write_atomically
from common.distributed import world_size
from epoch_log import CLASSIFIERS
from evaluate import Errors, Scores
from options import Config
from weights import sha256


def show(config: Config, scores: Scores, seconds: float) -> None:
    """Print the speed, the branches' errors where they were asked for, and the backbone's."""
    if scores.unreadable:
        print(f"{scores.unreadable} image(s) could not be read and do not count")
    print(f"{scores.images} images in {seconds:.1f} s, {scores.images / seconds:.1f} images/s")
    if config.branches:
        for name, errors in named(scores).items():
            print(f"[{name}] {line(errors)}")
    print(f"[Error rate] {line(scores.classifiers[0])}")


def line(errors: Errors) -> str:
    return f"Top-1: {errors.top1:.4f}%, Top-5: {errors.top5:.4f}%"


def named(scores: Scores) -> dict[str, Errors]:
    """The errors of every classifier and of the averaged probabilities, by name."""
    return {**dict(zip(CLASSIFIERS, scores.classifiers, strict=False)), "average": scores.ensemble}


def write(config: Config, checkpoint: Path | None, scores: Scores, seconds: float) -> None:
    """Write `config.json`: errors in percent, counts, time, checkpoint and options.

    Raises:
        UserError: it can't be written.
    """
    options = {field.name: getattr(config, field.name) for field in fields(config)}
    backbone = scores.classifiers[0]
    result = {
        "top1_error": backbone.top1,
        "top5_error": backbone.top5,
        "classifiers": {name: errors._asdict() for name, errors in named(scores).items()},
        "images": scores.images,
        "unreadable": scores.unreadable,
        "seconds": seconds,
        "images_per_s": scores.images / seconds,
        "checkpoint": str(checkpoint) if checkpoint else None,
        "sha256": sha256(checkpoint) if checkpoint else None,
        "processes": world_size(),
        "torch": torch.__version__,
        "torchvision": torchvision.__version__,
        "options": options,
    }
    text = json.dumps(result, indent=2, default=str) + "\n"
    write_atomically(config.json, lambda file: file.write(text.encode()))
