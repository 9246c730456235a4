"""Print the result of an evaluation, or write it as JSON."""

from dataclasses import fields
from pathlib import Path

import torch
import torchvision

from common.command_line import plural
from common.distributed import world_size
from common.results import write_json
from common.run_logs import classifier_names
from evaluate import Errors, Scores
from options import Config
from weights import sha256


def print_scores(config: Config, scores: Scores, seconds: float) -> None:
    """Print throughput and errors. The last line is that of the released code."""
    if scores.unreadable:
        print(f"skipped {plural(scores.unreadable, 'image')} that could not be read")
    rate = scores.images / seconds
    print(f"{plural(scores.images, 'image')} in {seconds:.1f} s, {rate:.1f} images/s")
    if config.branches:
        for name, errors in errors_by_name(scores).items():
            print(
                f"[{name}] Top-1 error: {errors.top1_error:.4f}%, "
                f"Top-5 error: {errors.top5_error:.4f}%"
            )
    backbone = scores.classifiers[0]
    print(f"[Error rate] Top-1: {backbone.top1_error:.4f}%, Top-5: {backbone.top5_error:.4f}%")


def errors_by_name(scores: Scores) -> dict[str, Errors]:
    """Return the errors of each classifier and of the ensemble by name."""
    names = classifier_names(len(scores.classifiers))
    return dict(zip(names, scores.classifiers, strict=True)) | {"ensemble": scores.ensemble}


def write_scores(config: Config, checkpoint: Path | None, scores: Scores, seconds: float) -> None:
    """Write errors (in percent), counts, time, checkpoint and options to `config.json`.

    Raises:
        UserError: the file cannot be written.
    """
    result = {
        **scores.classifiers[0]._asdict(),
        "classifiers": {name: e._asdict() for name, e in errors_by_name(scores).items()},
        "images": scores.images,
        "unreadable": scores.unreadable,
        "seconds": seconds,
        "images_per_s": scores.images / seconds,
        "checkpoint": str(checkpoint) if checkpoint else None,
        "sha256": sha256(checkpoint) if checkpoint else None,
        "processes": world_size(),
        "torch": torch.__version__,
        "torchvision": torchvision.__version__,
        "options": {field.name: getattr(config, field.name) for field in fields(config)},
    }
    write_json(config.json, result)
