"""Print the tables of a study and draw its figures, from the logs alone.

    python study/report.py --preset follow-up

prints Markdown tables of all finished runs.
"""

import sys
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import mean, median

sys.path.insert(1, str(Path(__file__).parents[1] / "wrn_DKS"))  # after the folder of this file

from scipy import stats

from common.command_line import build_parser, run_script
from common.evaluation import classifier_names
from common.options import METHODS, run_flag
from common.report import mean_std
from logs import LoggedRun, Study, read_study
from plan import FULL_SIZE, PlanOptions, Preset

BACKBONE = classifier_names(1)[0]
# Top-1 errors in percent that the paper reports.
WRN = {  # WRN-28-10 on CIFAR-100: mean and standard deviation of five runs
    "baseline": (18.72, 0.24),
    "dks": (17.24, 0.22),
    "baseline-dropout": (18.64, 0.19),
    "dks-dropout": (16.71, 0.17),
}
IMAGENET = {  # ResNet-18, ResNet-50 and ResNet-152
    "baseline": (31.06, 25.47, 22.45),
    "ds": (30.46, 25.09, 21.99),
    "dks": (28.68, 23.53, 20.98),
}
RESNET32 = {"baseline": 29.97, "ds": 29.89, "dks": 26.81}  # on CIFAR-100; from readers' notes


@dataclass(frozen=True)
class Options(PlanOptions):
    images: Path = run_flag(Path(__file__).parents[1] / "images", Path, "folder for the figures")


def main(argv: Sequence[str] | None = None) -> None:
    from figures import figures  # needs matplotlib

    parser = build_parser(Options, "study/report.py", "Print tables and draw figures of the study.")
    options = Options(**parser.parse_given(argv))
    preset, logs = options.plan()
    print(tables(preset, logs), end="\n\n")
    options.images.mkdir(parents=True, exist_ok=True)
    for name, figure in figures(preset, logs).items():
        figure.savefig(options.images / name, dpi=150)
        print(f"figure: {options.images / name}")


def tables(preset: Preset, logs: Path) -> str:
    """Return all tables with their titles."""
    if preset.name == FULL_SIZE.name:
        parts = {"ResNet-32 on CIFAR-100": full_size(read_study(preset, logs, unfinished=True))}
    else:
        study = read_study(preset, logs)
        parts = {
            "Top-1 error, %": errors(preset, study),
            "Gain of DKS over its own baseline": gains(preset, study),
            "Difference of test errors, seed by seed": differences(preset, study),
            "Test error of each classifier, %": classifiers(study),
            "Cost of training": costs(study),
        }
    return "\n\n".join(f"**{title}**\n\n{text}" for title, text in parts.items() if text)


def table(titles: Sequence[str], lines: Sequence[Sequence[object]]) -> str:
    """Return a Markdown table without its empty columns; nothing if it has no lines."""
    columns = zip(titles, *lines, strict=True)
    kept = [cells for cells in columns if any(cell != "" for cell in cells[1:])]
    rows = [" | ".join(map(str, row)) for row in zip(*kept, strict=True)]
    rows[1:1] = [" | ".join("---" for _ in kept)] * bool(rows)
    return "\n".join(f"| {row} |" for row in rows)


def errors(preset: Preset, study: Study) -> str:
    """Tabulate the errors of the last and the best epoch, and the paper's."""
    planned = {row: seeds for rows, seeds in preset.beside + preset.groups for row in rows.split()}
    titles = "row", "runs", "test, last epoch", "training", "test, best epoch"
    titles += "best epoch of a run", "paper, WRN-28-10, CIFAR-100"
    lines = []
    for row, runs in study.items():
        means = [mean_of(runs, name) for name in (BACKBONE, "training", "best")]
        best = sorted({run.best_epoch["epoch"] for run in runs.values()})
        epochs = f"{best[0]} to {best[-1]}" if best[1:] else f"{best[0]}"
        paper = "{:.2f} ± {:.2f}".format(*WRN[row]) if row in WRN else ""
        lines.append((row, f"{len(runs)} of {planned[row]}", *means, epochs, paper))
    return table(titles, lines)


def mean_of(runs: dict[int, LoggedRun], name: str) -> str:
    """Return the mean and the standard deviation of an error over the runs that have it."""
    values = [run.errors[name] for run in runs.values() if name in run.errors]
    return mean_std(values) if values else ""


def differences(preset: Preset, study: Study) -> str:
    """Tabulate the differences of each pair of rows over the seeds that both have.

    With primary pairs, only these are tests: the p-values of the others are left out.
    """
    titles = "pair", "seeds", "mean", "95 % interval", "p (paired t)"
    titles += f"p, Holm, {preset.primary} tests", "mean of best epochs", "mean of ensemble errors"
    titles += "paper, WRN-28-10, CIFAR-100", "paper, ResNet-18, -50, -152, ImageNet"
    found = {
        pair: [[*by_seed(study, pair, name).values()] for name in (BACKBONE, "best", "ensemble")]
        for pair in preset.pairs
    }
    found = {pair: values for pair, values in found.items() if len(values[0]) > 1}
    tests = preset.pairs[: preset.primary or None]
    p = {pair: p_value(values[0]) for pair, values in found.items() if pair in tests}
    corrected = holm(p, preset.primary) if preset.primary else {}
    lines = []
    for pair, (error, best, ensemble) in found.items():
        cells = [format_p(each[pair]) if pair in each else "" for each in (p, corrected)]
        cells += f"{mean(best):+.2f}", f"{mean(ensemble):+.2f}", *paper_difference(pair)
        lines.append((pair, len(error), *mean_and_interval(error), *cells))
    return table(titles, lines)


def by_seed(study: Study, pair: str, name: str = BACKBONE) -> dict[int, float]:
    """Return the differences of an error of a pair of rows, over the seeds that both have."""
    one, other = (study.get(row, {}) for row in pair.split(" − "))
    return {s: one[s].errors[name] - other[s].errors[name] for s in one if s in other}


def paper_difference(pair: str) -> tuple[str, str]:
    """Return the paper's difference of a pair on CIFAR-100 and on ImageNet, where it has one."""
    one, other = pair.split(" − ")
    cifar = f"{WRN[one][0] - WRN[other][0]:+.2f}" if one in WRN and other in WRN else ""
    networks = zip(IMAGENET.get(one, ()), IMAGENET.get(other, ()), strict=False)
    return cifar, ", ".join(f"{a - b:+.2f}" for a, b in networks)


def interval(values: Sequence[float]) -> tuple[float, float]:
    """Return the 95 % confidence interval of the mean of at least two values."""
    half = stats.t.ppf(0.975, len(values) - 1) * stats.sem(values)
    return mean(values) - half, mean(values) + half


def mean_and_interval(values: Sequence[float]) -> tuple[str, str]:
    return f"{mean(values):+.2f}", "{:+.2f} to {:+.2f}".format(*interval(values))


def p_value(differences: Sequence[float]) -> float:
    """Return the two-sided p-value of the paired t-test with these differences."""
    if not any(differences):
        return 1.0  # nan in SciPy
    with warnings.catch_warnings(action="ignore"):  # about differences that are all equal
        return float(stats.ttest_1samp(differences, 0).pvalue)


def format_p(p: float) -> str:
    return f"{p:.3f}" if p >= 0.001 else "< 0.001"


def holm(p_values: dict[str, float], count: int) -> dict[str, float]:
    """Correct p-values with Holm's method (1979) for `count` tests.

    There may be fewer values than tests, while some are not known yet. They are then taken to be
    the smallest ones, which corrects them at most too much.
    """
    corrected, largest = {}, 0.0
    for rank, name in enumerate(sorted(p_values, key=p_values.__getitem__)):
        largest = max(largest, min(1.0, (count - rank) * p_values[name]))
        corrected[name] = largest
    return corrected


def gains_by_setting(preset: Preset, study: Study) -> dict[str, dict[int, float]]:
    """Return what DKS gains over its baseline by setting, if there are two pairs, and seed."""
    settings = preset.settings or {}
    found = {label: by_seed(study, f"dks{x} − baseline{x}") for label, x in settings.items()}
    return {label: gain for label, gain in found.items() if len(gain) > 1}


def gains(preset: Preset, study: Study) -> str:
    """Tabulate what DKS gains in each setting. The first setting is the plain recipe."""
    titles = "setting", "seeds", "baseline", "DS", "DKS", "DKS − baseline", "95 % interval"
    titles += "− that of the plain recipe, same seeds", "95 % interval"
    lines, plain = [], {}
    for label, gain in gains_by_setting(preset, study).items():
        rows = [study.get(method + preset.settings[label], {}) for method in METHODS]
        change = [gain[seed] - plain[seed] for seed in gain if seed in plain]
        cells = mean_and_interval(change) if len(change) > 1 else ("", "")
        means = [mean_of(runs, BACKBONE) for runs in rows]
        lines.append((label, len(gain), *means, *mean_and_interval([*gain.values()]), *cells))
        plain = plain or gain
    return table(titles, lines)


def classifiers(study: Study) -> str:
    """Tabulate the last epoch's error of each classifier and of their ensemble."""
    names = [*classifier_names(3), "ensemble"]
    lines = [(row, *(mean_of(runs, name) for name in names)) for row, runs in study.items()]
    return table(("row", *names), [line for line in lines if line[2]])


def costs(study: Study) -> str:
    """Tabulate the time and the memory of training. On a CPU, that is mostly PyTorch's own."""
    titles = "row", "parameters", "s an epoch (median)", "process's peak, MiB"
    lines = []
    for row, runs in study.items():
        epochs = [epoch for run in runs.values() for epoch in run.epochs]
        parameters = next(iter(runs.values())).options["n_parameters"]
        time_s = median(epoch["train_time"] for epoch in epochs)
        peak = max(epoch["peak_memory_mib"] for epoch in epochs)
        lines.append((row, f"{parameters:,}", f"{time_s:.2f}", f"{peak:.0f}"))
    return table(titles, lines)


def full_size(study: Study) -> str:
    """Tabulate the runs of ResNet-32, finished or not, beside the paper's errors."""
    names = [*classifier_names(3)[1:], "ensemble", "training"]
    titles = "run", "epochs", "test error, %", "paper", "difference", *names, "images/s (median)"
    lines = []
    runs = ((method, *each) for method in METHODS for each in sorted(study.get(method, {}).items()))
    for method, seed, run in runs:
        last, paper, error = run.tested[-1]["epoch"], RESNET32[method], run.errors[BACKBONE]
        progress = last if run.is_finished else f"epoch {last} of {run.options['epochs']}"
        difference = f"{error - paper:+.2f}" if run.is_finished else ""
        others = [f"{run.errors[name]:.2f}" if name in run.errors else "" for name in names]
        if method == "baseline":
            others[names.index("ensemble")] = ""  # of one classifier
        rate = run.options["train_images"] / median(each["train_time"] for each in run.epochs)
        cells = f"{error:.2f}", f"{paper:.2f}", difference, *others, f"{rate:.0f}"
        lines.append((f"{method}, seed {seed}", progress, *cells))
    return table(titles, lines)


if __name__ == "__main__":
    run_script(main)
