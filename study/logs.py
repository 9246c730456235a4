"""The committed logs of the study, from which all is reported."""

from pathlib import Path

from common.logs import read_log
from plan import Preset

LOGS = Path(__file__).parent  # holds a folder of logs for each preset
CLASSIFIERS = ("backbone", "shallow branch", "deep branch")
ACCURACIES = ("test_acc", "test_acc_ep1", "test_acc_ep2")  # their keys


class LoggedRun:
    """The committed log of a run, which may not be finished.

    Its first line, epoch 0, holds the options and sizes of the run. Each further line holds an
    epoch under the released code's keys; `ep1` is the shallow branch and `ep2` the deep one.
    """

    def __init__(self, path: Path):
        self.options, *self.epochs = read_log(path)
        self.is_finished = self.epochs[-1]["epoch"] == self.options["epochs"]
        self.tested = [epoch for epoch in self.epochs if "test_acc" in epoch]
        self.best_epoch = max(self.tested, key=lambda epoch: epoch["test_acc"], default=None)

    @property
    def errors(self) -> dict[str, float]:
        """The errors in percent after the last test, by classifier; and the best epoch's."""
        last = self.tested[-1]
        accuracies = zip(CLASSIFIERS, (last[key] for key in ACCURACIES), strict=True)
        return {name: 100 - each for name, each in accuracies if each is not None} | {
            "ensemble": last["test_error_ensemble"],
            "training": 100 - last["train_acc"],
            "best": 100 - self.best_epoch["test_acc"],
        }


Study = dict[str, dict[int, LoggedRun]]  # by row, then by seed


def read_study(preset: Preset, folder: Path) -> Study:
    """Return the runs of a preset, and those of the scaled study to report beside them.

    Of a row without a finished run, return those that have been tested.
    """
    study: Study = {}
    for place, rows in ((LOGS / "scaled", preset.beside), (folder, preset.rows)):
        for row in rows:
            logs = [LoggedRun(path) for path in sorted(place.glob(f"{row}-seed?.jsonl"))]
            logs = [log for log in logs if log.is_finished] or [log for log in logs if log.tested]
            if logs:
                study[row] = {log.options["seed"]: log for log in logs}
    return study


def differences(study: Study, pair: str, name: str = "backbone") -> dict[int, float]:
    """Return the differences of an error of a pair of rows, over the seeds that both have."""
    one, other = (study.get(row, {}) for row in pair.split(" − "))
    return {s: one[s].errors[name] - other[s].errors[name] for s in one if s in other}


def gains(preset: Preset, study: Study) -> dict[str, dict[int, float]]:
    """Return what DKS gains over its own baseline, by setting and seed."""
    pairs = {label: f"dks{end} − baseline{end}" for label, end in preset.settings.items()}
    return {label: differences(study, pair) for label, pair in pairs.items()}
