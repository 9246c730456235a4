"""The logs of the study: a small file for each run, committed, from which all is reported.

The first line, epoch 0, holds the options and sizes of the run. Each further line holds an epoch
under the released code's keys; `ep1` is the shallow branch and `ep2` the deep one.
"""

import json
from dataclasses import replace
from itertools import zip_longest
from pathlib import Path
from typing import NamedTuple

import torch

from common.checkpoint import write_atomically
from common.command_line import UserError
from common.evaluation import classifier_names
from common.logs import read_log
from plan import LOGS, SCALED, Preset, Run
from weights import build_network

ACCURACIES = ("test_acc", "test_acc_ep1", "test_acc_ep2")  # in the order of the classifiers
OPTIONS = (
    "epochs", "dataset", "image_size", "arch", "depth", "width", "dropout", "method", "direction",
    "aux_weight", "synergy_weight", "label_smoothing", "mixup", "cutmix", "batch_size", "lr",
    "weight_decay", "seed", "dtype",
)  # fmt: skip
# Values of options that the first logs do not hold.
ABSENT = {"arch": "wrn", "first_class": 0, "label_smoothing": 0.0, "mixup": 0.0, "cutmix": 0.0}


class LoggedRun(NamedTuple):
    """A log."""

    options: dict  # and sizes
    epochs: list[dict]

    @property
    def is_finished(self) -> bool:
        return bool(self.epochs) and self.epochs[-1]["epoch"] == self.options["epochs"]

    @property
    def tested(self) -> list[dict]:
        """The epochs that ended with a test."""
        return [epoch for epoch in self.epochs if "test_acc" in epoch]

    @property
    def best_epoch(self) -> dict:
        return max(self.tested, key=lambda epoch: epoch["test_acc"])

    @property
    def errors(self) -> dict[str, float]:
        """The errors in percent after the last test, by classifier; and the best epoch's."""
        last = self.tested[-1]
        accuracies = [last[key] for key in ACCURACIES if last[key] is not None]
        names = classifier_names(len(accuracies))
        return {name: 100 - each for name, each in zip(names, accuracies, strict=True)} | {
            "ensemble": last["test_error_ensemble"],
            "training": 100 - last["train_acc"],
            "best": 100 - self.best_epoch["test_acc"],
        }


Study = dict[str, dict[int, LoggedRun]]  # by row, then by seed


def write_log(run: Run, source: Path, target: Path) -> None:
    """Write what the study needs of the run's `log.jsonl`, which is `source`, to `target`."""
    records = read_log(source)
    options, data = records[-1]["options"], records[-1]["data"]
    with torch.device("meta"):
        network = build_network(run.config(), data["classes"], options["method"] != "baseline")
    first = {
        "epoch": 0,
        "torch": torch.__version__,
        **compact_options(options, run),
        "num_classes": data["classes"],
        "n_parameters": sum(parameter.numel() for parameter in network.parameters()),
        "train_images": data["train_images"],
        "test_images": data["test_images"],
        "random_scheme": 2,  # the first logs are of another one: README.md
        "data_fingerprint": data["identity"],
    }
    lines = [json.dumps(each) + "\n" for each in (first, *map(compact_record, records))]
    write_atomically(target, lambda file: file.write("".join(lines).encode()))


def compact_options(options: dict, run: Run) -> dict:
    """Return the options that decide the result, from all options of the run."""
    return {
        **{name: options[name] for name in OPTIONS},
        "epoch_step": [1 + finished for finished in options["milestones"]],
        "lr_decay_ratio": options["lr_factor"],
        "first_class": run.first_class,
    }


def compact_record(record: dict) -> dict:
    """Return an epoch from its record in `log.jsonl`, with four decimals."""
    train, test, times = record["train"], record.get("test"), record["times"]
    compact = {"epoch": record["epoch"], "train_loss": train["losses"]["total"]}
    compact["train_acc"] = 100 - train["top1_errors"][0]
    if test:
        compact["test_loss"] = test["losses"]["total"]
        compact |= zip_longest(ACCURACIES, [100 - error for error in test["top1_errors"]])
        compact["test_error_ensemble"] = test["ensemble_top1_error"]
        compact["test_divergences"] = test["divergences"]
        compact["test_time"] = times["test_s"]
    compact |= {"train_time": times["train_s"], "peak_memory_mib": record["peak_memory_mib"]}
    return json.loads(json.dumps(compact), parse_float=lambda text: round(float(text), 4))


def read_run(folder: Path, run: Run) -> LoggedRun | None:
    """Return the log of a run, which may not be finished; None if there is none.

    Raises:
        UserError: the log is of a run with other options.
    """
    path = folder / f"{run.name}.jsonl"
    if not path.exists():
        return None
    options, *epochs = read_log(path) or [{}]
    expected = compact_options(run.config().to_dict(), run)
    if run.preset.split:
        classes, images = run.preset.split
        expected |= {"num_classes": classes, "train_images": classes * images}
    for name, value in expected.items():
        if (found := (ABSENT | options).get(name)) != value:
            raise UserError(
                f"{path}: log of a run with {name} {found}, not {value}; choose another --logs "
                "folder"
            )
    return LoggedRun(ABSENT | options, epochs)


def read_study(preset: Preset, folder: Path, unfinished: bool = False) -> Study:
    """Return the finished runs of a preset, and those of the scaled study to report beside them.

    With `unfinished`, return those too that have been tested.

    Raises:
        UserError: there is no run, or a log is of a run with other options.
    """
    study: Study = {}
    if preset.beside:
        study |= read_study(replace(SCALED, groups=preset.beside), LOGS / SCALED.name)
    count = len(study)
    for run in preset.runs():
        log = read_run(folder, run)
        if log and (log.is_finished or unfinished and log.tested):
            study.setdefault(run.row, {})[run.seed] = log
    if len(study) == count:
        raise UserError(f"{folder}: no log of a finished run; study/run.py writes the logs")
    return study
