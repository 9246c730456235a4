"""The study's own logs: one small file a run, to be committed, from which all is reported.

The first line, epoch 0, holds the options and sizes of the run; then comes a line an epoch. The
keys are those of `log.txt`. A file is written when its run has ended, so that a run is done when
it is there.
"""

import json
import os
from pathlib import Path
from typing import NamedTuple

import torch

from command_line import Refused
from epoch_log import PREFIX
from options import DECISIVE
from report import Run as Records
from run_folder import Log
from study_plan import Preset, Run

SIZES = ("num_classes", "n_parameters", "train_images", "test_images")
EACH_EPOCH = (
    "epoch", "train_loss", "train_acc", "test_loss", "test_acc", "test_acc_ep1", "test_acc_ep2",
    "test_error_ensemble", "test_divergences", "train_time", "test_time", "peak_memory_mib",
)  # fmt: skip


class Logged(NamedTuple):
    """A run that is done."""

    options: dict  # with its sizes
    epochs: Records


Study = dict[str, dict[int, Logged]]  # by row, then by seed


def log_path(folder: Path, run: Run) -> Path:
    return folder / f"{run.name}.jsonl"


def keep(source: Path, target: Path) -> None:
    """Write what the study needs of a run's `log.txt` into `target`.

    Raises:
        OSError: it can't be read or written.
    """
    full = Log(source, PREFIX).records()
    last = full[-1]
    options = {key: last[key] for key in ("epochs", *DECISIVE, *SIZES)}
    records = [{"epoch": 0, "torch": torch.__version__, **options}]
    records += [{key: rounded(r[key]) for key in EACH_EPOCH if key in r} for r in full]
    temporary = target.with_name(target.name + ".tmp")
    temporary.write_text("".join(json.dumps(record) + "\n" for record in records))
    os.replace(temporary, target)


def rounded(value: object) -> object:
    """Numbers, or lists of them, to four decimals."""
    if isinstance(value, list):
        return [rounded(each) for each in value]
    return round(value, 4) if isinstance(value, float) else value


def read_run(folder: Path, run: Run, preset: Preset) -> Logged | None:
    """The log of a run that is done; None where it isn't.

    Raises:
        Refused: the log is of a run with other options.
    """
    path = log_path(folder, run)
    if not path.exists():
        return None
    options, *epochs = Log(path).records() or [{}]
    config = run.config(preset)
    wanted = {"epochs": config.epochs, **config.decisive()}
    if preset.split:
        classes, images = preset.split
        wanted |= {"num_classes": classes, "train_images": classes * images}
    for key, value in wanted.items():
        if options.get(key) != value:
            raise Refused(
                f"{path}: a run with {key} {options.get(key)}, not {value}; give --logs another "
                "folder"
            )
    done = epochs and epochs[-1]["epoch"] == config.epochs
    return Logged(options, epochs) if done else None


def read_study(folder: Path, preset: Preset) -> Study:
    """Every run that is done: by row, in the order of the rows, then by seed.

    Raises:
        Refused: none is done, or a log is of a run with other options.
    """
    study: Study = {}
    for row in preset.rows:
        runs = {run.seed: read_run(folder, run, preset) for run in preset.runs() if run.row == row}
        if done := {seed: logged for seed, logged in runs.items() if logged}:
            study[row.name] = done
    if not study:
        raise Refused(f"{folder}: no log of a run that is done; study.py writes them there")
    return study
