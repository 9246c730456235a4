"""The logs of both script folders, read into one form.

This module does not import torch, so that `report.py` does not wait for it.
"""

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from .command_line import UserError
from .json_log import Log

BACKBONE = "backbone"
AVERAGED = "averaged weights"  # the backbone with the moving average of the weights
ENSEMBLE = "ensemble"  # the mean of the classifiers' probabilities

# Values in the records of log.txt that are not options.
NOT_OPTIONS = {"epoch", "learning_rate", "n_parameters", "peak_memory_mib"}


class Errors(NamedTuple):
    """Error rates in percent."""

    top1: float
    top5: float | None = None  # None: the log does not have it


class Epoch(NamedTuple):
    """An epoch of a run."""

    epoch: int  # number of finished epochs
    training: float  # top-1 error of the backbone in percent
    tested: dict[str, Errors]  # by classifier, `ENSEMBLE` and `AVERAGED`; empty without a test


class Run(NamedTuple):
    """The log of a run."""

    path: Path
    options: dict
    epochs: list[Epoch]

    @property
    def tested(self) -> list[Epoch]:
        """The epochs that ended with a test; at least one."""
        return [epoch for epoch in self.epochs if epoch.tested]

    @property
    def progress(self) -> str:
        """The last tested epoch and, if that is not the last planned one, the latter."""
        epoch, planned = self.tested[-1].epoch, self.options.get("epochs")
        return f"{epoch}" if planned in (None, epoch) else f"{epoch} of {planned}"


def classifier_names(count: int) -> list[str]:
    """Return the names of a network's classifiers in the order of the logits."""
    if count <= 3:
        return [BACKBONE, "shallow branch", "deep branch"][:count]
    return [BACKBONE, *(f"branch {i}" for i in range(1, count))]


def read_txt_record(record: dict) -> Epoch:
    """Read a record of wrn_DKS, whose keys for accuracies are those of the released code."""
    keys = ["test_acc", *sorted(key for key in record if key.startswith("test_acc_ep"))]
    accuracies = [record[key] for key in keys if record.get(key) is not None]
    names = classifier_names(len(accuracies))
    tested = {n: Errors(100 - value) for n, value in zip(names, accuracies, strict=True)}
    if "test_error_ensemble" in record:
        tested[ENSEMBLE] = Errors(record["test_error_ensemble"])
    return Epoch(record["epoch"], 100 - record["train_acc"], tested)


def read_jsonl_record(record: dict) -> Epoch:
    """Read a record of imagenet. Older logs call the ensemble `averaged`."""
    validation = record["validation"]
    classifiers = list(map(Errors, validation["top1_errors"], validation["top5_errors"]))
    tested = dict(zip(classifier_names(len(classifiers)), classifiers, strict=True))
    name = "ensemble" if "ensemble_top1_error" in validation else "averaged"
    ensemble = (validation[f"{name}_top1_error"], validation[f"{name}_top5_error"])
    tested[ENSEMBLE] = Errors(*ensemble)
    if "ema" in record:
        tested[AVERAGED] = Errors(record["ema"]["top1_errors"][0], record["ema"]["top5_errors"][0])
    return Epoch(record["epoch"], record["train"]["top1_errors"][0], tested)


def txt_options(record: dict) -> dict:
    """Return the options in a record of wrn_DKS, which holds them beside the metrics."""
    metrics = ("train_", "test_")
    return {k: v for k, v in record.items() if k not in NOT_OPTIONS and not k.startswith(metrics)}


def jsonl_options(record: dict) -> dict:
    """Return the options in a record of imagenet, and what else tells runs apart."""
    names = ("arch", "method", "seed", "data_fingerprint", "decoding")
    own = {"decoding": 1} | {name: record[name] for name in names if name in record}
    return own | record.get("options", {})


FORMATS = {  # prefix of the lines, and how to read a record, by name of the log
    "log.txt": ("json_stats: ", read_txt_record, txt_options),
    "log.jsonl": ("", read_jsonl_record, jsonl_options),
}


def read_log(path: Path) -> Run:
    """Read a log, whose name is one of `FORMATS`.

    Raises:
        UserError: a line is not a record.
    """
    prefix, read_record, options = FORMATS[path.name]
    records = Log(path, prefix).records()
    try:
        epochs = [read_record(record) for record in records]
        return Run(path, options(records[-1]) if records else {}, epochs)
    except (KeyError, TypeError, IndexError) as error:
        raise UserError(f"{path}: not the log of a run ({error!r})") from error


def read_runs(folders: Sequence[Path]) -> list[Run]:
    """Read the runs in `folders` and their subfolders, each once, if an epoch was tested.

    A folder in which no run has a tested epoch is named on standard error.

    Raises:
        UserError: a folder does not exist or has no log, or no folder has such a run.
    """
    runs: dict[Path, Run] = {}
    untested = []
    for folder in folders:
        if not folder.is_dir():
            raise UserError(f"{folder}: no such folder; give the --save folder of a run")
        logs = (path for path in sorted(folder.rglob("log.*")) if path.name in FORMATS)
        found = {path.resolve(): read_log(path.resolve()) for path in logs if path.is_file()}
        if not found:
            raise UserError(
                f"{folder}: no {' or '.join(FORMATS)}; give the --save folder of a run, or a "
                "folder that contains several"
            )
        tested = {path: run for path, run in found.items() if run.tested}
        if not tested:
            untested.append(f"{folder}: no epoch is tested yet")
        runs |= tested
    if not runs:
        raise UserError(f"{untested[0]}; try again after the first test")
    for line in untested:
        print(f"{line}; left out", file=sys.stderr)
    return list(runs.values())
