"""Print the result of an evaluation, or write it as JSON."""

import json
from dataclasses import fields
from pathlib import Path

import torch
import torchvision

from common.checkpoint import write_atomically
from common.distributed import world_size
from evaluate import CLASSIFIERS, Errors, Scores
from options import Config
from weights import sha256


def print_scores(config: Config, scores: Scores, seconds: float) -> None:
    """Print throughput and errors. The last line has the format of the released code."""
    if scores.unreadable:
        print(f"skipped {scores.unreadable} image(s) that could not be read")
    print(f"{scores.images} images in {seconds:.1f} s, {scores.images / seconds:.1f} images/s")
    if config.branches:
        for name, errors in {**errors_by_name(scores), "ensemble": scores.ensemble}.items():
            print(f"[{name}] {format_errors(errors)}")
    print(f"[Error rate] {format_errors(scores.classifiers[0])}")


def format_errors(errors: Errors) -> str:
    return f"Top-1: {errors.top1:.4f}%, Top-5: {errors.top5:.4f}%"


def errors_by_name(scores: Scores) -> dict[str, Errors]:
    """Return the errors of each classifier by its name."""
    return dict(zip(CLASSIFIERS, scores.classifiers, strict=False))


def write_json(config: Config, checkpoint: Path | None, scores: Scores, seconds: float) -> None:
    """Write errors (in percent), counts, time, checkpoint and options to `config.json`.

    Raises:
        UserError: the file cannot be written.
    """
    options = {field.name: getattr(config, field.name) for field in fields(config)}
    backbone = scores.classifiers[0]
    classifiers = {**errors_by_name(scores), "average": scores.ensemble}
    result = {
        "top1_error": backbone.top1,
        "top5_error": backbone.top5,
        "classifiers": {name: errors._asdict() for name, errors in classifiers.items()},
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
