"""Print the tables of a study and draw its figures, from the logs alone.

python study/report.py --preset follow-up
"""

import sys
from collections.abc import Sequence
from itertools import accumulate
from pathlib import Path
from statistics import mean, median

sys.path.insert(1, str(Path(__file__).parents[1] / "wrn_DKS"))  # after the folder of this file

from scipy import stats

from common.command_line import ArgumentParser, choice, run_script
from common.options import METHODS
from common.report import mean_std
from figures import figures
from logs import CLASSIFIERS, LOGS, LoggedRun, Study, differences, gains, read_study
from plan import FULL_SIZE, PRESETS, Preset

# Top-1 errors on CIFAR-100 that the paper reports, in percent; ± over five runs.
WRN = {
    "baseline": "18.72 ± 0.24",
    "dks": "17.24 ± 0.22",
    "baseline-dropout": "18.64 ± 0.19",
    "dks-dropout": "16.71 ± 0.17",
}
RESNET32 = {"baseline": "29.97", "ds": "29.89", "dks": "26.81"}  # from readers' notes
# The differences that it reports: of WRN-28-10, and of ResNet-18, -50 and -152 on ImageNet.
DIFFERENCES = {
    "dks − ds": ["", "-1.78, -1.56, -1.01"],
    "dks − baseline": ["-1.48", "-2.38, -1.94, -1.47"],
    "ds − baseline": ["", "-0.60, -0.38, -0.46"],
    "dks-dropout − baseline-dropout": ["-1.93", ""],
}


def main(argv: Sequence[str] | None = None) -> None:
    parser = ArgumentParser(prog="study/report.py", description="Print tables, draw figures.")
    add, images = parser.add_argument, Path(__file__).parents[1] / "images"
    add("--preset", type=choice(*PRESETS), default="scaled", help="or follow-up, or cifar100")
    add("--images", type=Path, default=images, help="folder for the figures (default: images)")
    given = parser.parse_given(argv)
    preset, images = PRESETS[given["preset"]], given["images"]
    study = read_study(preset, LOGS / given["preset"])
    for title, text in {
        "Top-1 error, %": error_table(preset, study),
        "Gain of DKS over its own baseline": gain_table(preset, study),
        "Difference of test errors, seed by seed": difference_table(preset, study),
        "Test error of each classifier, %": classifier_table(study),
        "Cost of training": cost_table(study),
    }.items():
        if text:
            print(f"**{title}**\n\n{text}\n")
    for name, figure in figures(preset, study).items():
        figure.savefig(images / name, dpi=150)
        print(f"figure: {images / name}")


def table(titles: Sequence[str], lines: Sequence[Sequence[object]]) -> str:
    """Return a Markdown table without its empty columns; nothing if it has no lines."""
    columns = zip(titles, *lines, strict=True)
    kept = [cells for cells in columns if any(cell != "" for cell in cells[1:])]
    rows = [" | ".join(map(str, row)) for row in zip(*kept, strict=True)]
    rows[1:1] = [" | ".join("---" for _ in kept)] * bool(rows)
    return "\n".join(f"| {row} |" for row in rows)


def error_table(preset: Preset, study: Study) -> str:
    """Tabulate the errors of the last and the best epoch, and the paper's."""
    network, paper = ("ResNet-32", RESNET32) if preset is FULL_SIZE else ("WRN-28-10", WRN)
    titles = "row", "runs", "test, last epoch", "training", "test, best epoch"
    titles += "best epoch of a run", f"paper, {network}, CIFAR-100"
    lines = []
    for row, runs in study.items():
        means = [mean_of(runs, name) for name in ("backbone", "training", "best")]
        best = sorted({run.best_epoch["epoch"] for run in runs.values()})
        epochs = f"{best[0]} to {best[-1]}" if best[1:] else f"{best[0]}"
        last = [run.tested[-1]["epoch"] for run in runs.values() if not run.is_finished]
        at = f", at epoch {min(last)}" if last else ""
        count = f"{len(runs)} of {(preset.beside | preset.rows)[row]}{at}"
        lines.append((row, count, *means, epochs, paper.get(row, "")))
    return table(titles, lines)


def mean_of(runs: dict[int, LoggedRun], name: str) -> str:
    """Return the mean and the standard deviation of an error over the runs that have it."""
    values = [run.errors[name] for run in runs.values() if name in run.errors]
    return mean_std(values) if values else ""


def difference_table(preset: Preset, study: Study) -> str:
    """Tabulate the differences of each pair of rows over the seeds that both have.

    With primary pairs, only these are tests: the p-values of the others are left out.
    """
    titles = "pair", "seeds", "mean", "95 % interval", "p (paired t)"
    titles += f"p, Holm, {preset.primary} tests", "mean of best epochs", "mean of ensemble errors"
    titles += "paper, WRN-28-10, CIFAR-100", "paper, ResNet-18, -50, -152, ImageNet"
    found = {pair: [*differences(study, pair).values()] for pair in preset.pairs}
    tests = preset.pairs[: preset.primary or None]
    p = {pair: stats.ttest_1samp(found[pair], 0).pvalue for pair in tests}
    corrected = holm(p) if preset.primary else {}
    lines = []
    for pair, values in found.items():
        cells = [format_p(each[pair]) if pair in each else "" for each in (p, corrected)]
        others = [differences(study, pair, name).values() for name in ("best", "ensemble")]
        cells += [f"{mean(each):+.2f}" for each in others] + DIFFERENCES.get(pair, ["", ""])
        lines.append((pair, len(values), *mean_and_interval(values), *cells))
    return table(titles, lines)


def mean_and_interval(values: Sequence[float]) -> tuple[str, str]:
    """Return the mean of at least two values and its 95 % confidence interval."""
    interval = stats.ttest_1samp(values, 0).confidence_interval()
    return f"{mean(values):+.2f}", "{:+.2f} to {:+.2f}".format(*interval)


def format_p(p: float) -> str:
    return f"{p:.3f}" if p >= 0.001 else "< 0.001"


def holm(p: dict[str, float]) -> dict[str, float]:
    """Correct p-values with Holm's method (1979)."""
    names = sorted(p, key=p.__getitem__)
    corrected = [min(1.0, (len(p) - rank) * p[name]) for rank, name in enumerate(names)]
    return dict(zip(names, accumulate(corrected, max), strict=True))


def gain_table(preset: Preset, study: Study) -> str:
    """Tabulate what DKS gains in each setting. The first setting is the plain recipe."""
    titles = "setting", "seeds", "baseline", "DS", "DKS", "DKS − baseline", "95 % interval"
    titles += "− that of the plain recipe, same seeds", "95 % interval"
    lines, plain = [], {}
    for label, gain in gains(preset, study).items():
        rows = [method + preset.settings[label] for method in METHODS]
        means = [mean_of(study.get(row, {}), "backbone") for row in rows]
        change = [gain[seed] - plain[seed] for seed in gain if plain]
        cells = mean_and_interval(change) if change else ("", "")
        lines.append((label, len(gain), *means, *mean_and_interval([*gain.values()]), *cells))
        plain = plain or gain
    return table(titles, lines)


def classifier_table(study: Study) -> str:
    """Tabulate the last epoch's error of each classifier and of their ensemble."""
    names = [*CLASSIFIERS, "ensemble"]
    lines = [(row, *(mean_of(runs, name) for name in names)) for row, runs in study.items()]
    return table(("row", *names), [line for line in lines if line[2]])


def cost_table(study: Study) -> str:
    """Tabulate the time and the memory of training. On a CPU, that is mostly PyTorch's own."""
    titles = "row", "parameters", "s an epoch (median)", "process's peak, MiB"
    lines = []
    for row, runs in study.items():
        parameters = next(iter(runs.values())).options["n_parameters"]
        epochs = [epoch for run in runs.values() for epoch in run.epochs]
        time_s = median(epoch["train_time"] for epoch in epochs)
        peak = max(epoch["peak_memory_mib"] for epoch in epochs)
        lines.append((row, f"{parameters:,}", f"{time_s:.2f}", f"{peak:.0f}"))
    return table(titles, lines)


if __name__ == "__main__":
    run_script(main)
