"""What a checkpoint and the log beside it say about the training of a network."""

from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

from common import checkpoint
from common.json_log import Log
from epoch_log import LOG
from train_state import KEYS


class TrainingRun(NamedTuple):
    """What is known of the training of a network."""

    options: Mapping  # of train.py
    epoch: int  # number of finished epochs
    step: int  # number of finished steps
    images: int  # number of training images
    processes: int  # of the last start
    averaged: bool  # the weights are the moving average
    record: dict | None  # of the log, for exactly these weights


def read_run(path: Path) -> TrainingRun | None:
    """Return the training of a checkpoint of `train.py`; None for any other file."""
    content = {} if path.suffix == ".safetensors" else checkpoint.load(path)
    if not all(isinstance(content.get(key), kind) for key, kind in KEYS.items()):
        return None
    step = content["step"]
    return TrainingRun(
        content["options"],
        content["epoch"],
        step,
        content["images"],
        content["processes"],
        bool(content["ema"]),
        find_record(path.parent, step),
    )


def find_record(folder: Path, step: int) -> dict | None:
    """Return the record in the log of a run whose epoch ended with this step, if there is one."""
    log = Log(folder / LOG)
    records = log.records() if log.path.is_file() else []
    return next((record for record in records if record.get("step") == step), None)
