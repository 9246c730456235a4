"""What a checkpoint and the log beside it say about the training of a network."""

from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

from common.flag_groups import NO_REGULARIZATION
from common.json_log import Log
from epoch_log import LOG
from train_options import RESUME_MAY_CHANGE
from train_state import KEYS, load


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
    content = {} if path.suffix == ".safetensors" else load(path)
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
        find_record(path.parent, step, content["options"]),
    )


def find_record(folder: Path, step: int, options: Mapping) -> dict | None:
    """Return the record of a run whose epoch ended with this step, if the log in `folder` has it.

    The log may be that of another run. The options of the record must therefore be those of the
    run, except what may differ between its starts.
    """
    log = Log(folder / LOG)
    for record in log.records() if log.path.is_file() else []:
        own = fixed_options(record.get("options", {}))
        if record.get("step") == step and own == fixed_options(options):
            return record
    return None


def fixed_options(options: Mapping) -> dict:
    """Return the options that are the same whenever a run is resumed.

    `--init` is one of them, because a resumed run keeps that of its checkpoint.
    """
    free = {*RESUME_MAY_CHANGE, "epochs", "grad_accumulation"} - {"init"}
    if options.get("lr_schedule") == "cosine":  # which depends on the number of epochs
        free.remove("epochs")
    options = NO_REGULARIZATION | {"init": ""} | options  # what older runs do not have
    return {name: value for name, value in options.items() if name not in free}
