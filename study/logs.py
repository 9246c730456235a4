"""The study's logs: one small file per run, committed, from which everything is reported.

The first line, epoch 0, holds the options and sizes of the run. Each further line holds one epoch
under the keys of `log.txt`. The file is written when the run ends, so a run with a file is done.
"""

import json
import os
from pathlib import Path
from typing import NamedTuple

import torch

from common.command_line import UserError
from common.flag_groups import NO_REGULARIZATION
from common.json_log import Log
from epoch_log import PREFIX
from options import RESUME_MUST_MATCH
from study.plan import Preset, Run
from study.presets import LOGS, PRESETS

SIZES = ("num_classes", "n_parameters", "train_images", "test_images")
EPOCH_KEYS = (
    "epoch", "train_loss", "train_acc", "test_loss", "test_acc", "test_acc_ep1", "test_acc_ep2",
    "test_error_ensemble", "test_divergences", "train_time", "test_time", "peak_memory_mib",
)  # fmt: skip
# What identifies the random numbers and the data; the first logs do not hold it.
IDENTITY = ("random_scheme", "data_fingerprint")
# Values of options that the first logs do not hold.
ABSENT = {"first_class": 0, **NO_REGULARIZATION}


class LoggedRun(NamedTuple):
    """A finished run."""

    options: dict  # includes the sizes
    epochs: list[dict]


Study = dict[str, dict[int, LoggedRun]]  # by row, then by seed


def log_path(folder: Path, run: Run) -> Path:
    return folder / f"{run.name}.jsonl"


def write_log(run: Run, source: Path, target: Path) -> None:
    """Write what the study needs of the run's `log.txt`, which is `source`, to `target`.

    Raises:
        OSError: a file cannot be read or written.
    """
    full = Log(source, PREFIX).records()
    last = full[-1]
    options = {key: last[key] for key in ("epochs", *RESUME_MUST_MATCH, *SIZES)}
    options["first_class"] = run.row.first_class
    options |= {key: last[key] for key in IDENTITY if key in last}
    records = [{"epoch": 0, "torch": torch.__version__, **options}]
    records += [{key: rounded(r[key]) for key in EPOCH_KEYS if key in r} for r in full]
    temporary = target.with_name(target.name + ".tmp")
    temporary.write_text("".join(json.dumps(record) + "\n" for record in records))
    os.replace(temporary, target)


def rounded(value: object) -> object:
    """Round floats, also in nested lists, to four decimals."""
    if isinstance(value, list):
        return [rounded(each) for each in value]
    return round(value, 4) if isinstance(value, float) else value


def read_run(folder: Path, run: Run, preset: Preset) -> LoggedRun | None:
    """Return a finished run, or None if it is not finished.

    Raises:
        UserError: the log is of a run with other options.
    """
    path = log_path(folder, run)
    if not path.exists():
        return None
    options, *epochs = Log(path).records() or [{}]
    config = run.config(preset)
    expected = {"epochs": config.epochs, **config.resume_options()}
    expected["first_class"] = run.row.first_class
    if preset.split:
        num_classes, images = preset.split
        expected |= {"num_classes": num_classes, "train_images": num_classes * images}
    for key, value in expected.items():
        if options.get(key, ABSENT.get(key)) != value:
            raise UserError(
                f"{path}: log of a run with {key} {options.get(key)}, not {value}; choose another "
                "--logs folder"
            )
    done = epochs and epochs[-1]["epoch"] == config.epochs
    return LoggedRun(options, epochs) if done else None


def tested_epochs(records: list[dict]) -> list[dict]:
    """Return the records of the epochs that ended with a test."""
    return [record for record in records if "test_acc" in record]


def read_study(folder: Path, preset: Preset) -> Study:
    """Return all finished runs, by row in the order of the plan, then by seed.

    The runs of the earlier preset to report beside them come first.

    Raises:
        UserError: no run is finished, or a log is of a run with other options.
    """
    study = finished_runs(folder, preset)
    if not study:
        raise UserError(f"{folder}: no log of a finished run; study/run.py writes the logs")
    if preset.earlier:
        name, rows = preset.earlier
        reported = PRESETS[name].reduced([row.name for row in rows])
        return finished_runs(LOGS / name, reported) | study
    return study


def finished_runs(folder: Path, preset: Preset) -> Study:
    """Return the finished runs of the preset's own rows."""
    study: Study = {}
    for row in preset.rows:
        runs = {run.seed: read_run(folder, run, preset) for run in preset.runs() if run.row == row}
        if done := {seed: logged for seed, logged in runs.items() if logged}:
            study[row.name] = done
    return study
