"""The figures of the study."""

from collections.abc import Callable
from itertools import permutations
from statistics import mean

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from scipy import stats

from common.options import METHODS
from common.report import plot_errors
from logs import CLASSIFIERS, Study, gains
from plan import FULL_SIZE, Preset

COLORS = {"baseline": "tab:gray", "ds": "tab:blue", "dks": "tab:red"}


def figures(preset: Preset, study: Study) -> dict[str, Figure]:
    """Draw the figures of a study; return them by file name."""
    if preset.settings:
        values = {label: [*each.values()] for label, each in gains(preset, study).items()}
        title = "test error of DKS − that of its baseline, points"
        figure = draw_dots(values, title)
        figure.axes[0].axvline(0, color="gray", linewidth=0.8)  # no gain
        return {"study_gains.png": figure}
    methods = {method: study[method] for method in METHODS if method in study}
    if preset is FULL_SIZE:
        return {"cifar100_error.png": draw_errors(methods)}
    values = {row: [run.errors["backbone"] for run in study[row].values()] for row in study}
    return {
        "study_methods.png": draw_dots(values, "test error of the last epoch, %"),
        "study_error.png": draw_errors(methods),
        "synergy_matrix.png": draw_divergences(methods),
    }


def draw_curves(axes: Axes, study: Study, test: Callable, train=lambda epoch: None) -> None:
    """Draw a value of the test and one of the training, both functions of a logged epoch."""
    curves = {row: [] for row in study}
    for row, runs in study.items():
        for run in runs.values():
            tests = {each["epoch"]: test(each) for each in run.tested}
            epochs = [(each["epoch"], train(each)) for each in run.epochs]
            curves[row].append([(epoch, value, tests.get(epoch)) for epoch, value in epochs])
    plot_errors(axes, curves)
    for epoch in run.options["epoch_step"]:  # of any run
        axes.axvline(epoch, color="gray", linestyle=":", linewidth=0.8)


def explain_curves(study: Study) -> str:
    several = any(len(runs) > 1 for runs in study.values())
    text = "mean over the seeds, band from the lowest to the highest; " * several
    return f"{text}dotted: learning-rate decay"


def draw_errors(study: Study) -> Figure:
    """Draw the errors of each method, whole and enlarged."""
    figure = Figure(figsize=(10, 4.5), layout="constrained")
    whole, enlarged = figure.subplots(1, 2)
    for axes in (whole, enlarged):
        draw_curves(axes, study, lambda e: 100 - e["test_acc"], lambda e: 100 - e["train_acc"])
    whole.set_ylim(bottom=0)
    whole.legend(title="test error (dashed: training)")
    best = [run.errors["best"] for runs in study.values() for run in runs.values()]
    enlarged.set(ylim=(min(best) - 1, max(best) + 4), title="enlarged")
    figure.suptitle(explain_curves(study), fontsize=9)
    return figure


def draw_dots(values: dict[str, list[float]], title: str) -> Figure:
    """Draw a row for each label: a dot for each value, and the mean with its 95 % interval."""
    figure = Figure(figsize=(7, 1.2 + 0.5 * len(values)), layout="constrained")
    axes = figure.add_subplot(xlabel=title)
    for y, (label, own) in enumerate(values.items()):
        color = COLORS.get(label.partition("-")[0], COLORS["dks"])
        # Each seed at its own height, because two may have the same value.
        axes.scatter(
            own, [y - 0.15 - 0.06 * seed for seed in range(len(own))], 16, color, alpha=0.6
        )
        low, high = stats.ttest_1samp(own, 0).confidence_interval()
        axes.errorbar(mean(own), y, xerr=(high - low) / 2, fmt="|", ms=14, color=color, capsize=4)
    axes.set_yticks(range(len(values)), [f"{k} (n = {len(v)})" for k, v in values.items()])
    axes.invert_yaxis()
    axes.grid(axis="x", alpha=0.3)
    axes.set_title("dots: seeds, the first lowest; bars: mean and its 95 % interval", fontsize=9)
    return figure


def draw_divergences(study: Study) -> Figure:
    """Draw KL(p_j || p_i) on the test images against the epoch, for each pair of classifiers."""
    branched, names = {row: study[row] for row in ("ds", "dks")}, CLASSIFIERS
    figure = Figure(figsize=(9, 5.5), layout="constrained")
    grid = figure.subplots(2, 3, sharex=True, sharey=True)
    for axes, (j, i) in zip(grid.flat, permutations(range(3), 2), strict=True):
        draw_curves(axes, branched, lambda e, j=j, i=i: e["test_divergences"][j][i])
        axes.set(xlabel="", ylabel="", yscale="log", title=f"{names[j]} ‖ {names[i]}")
    grid[0][0].legend()
    figure.supxlabel("epoch", fontsize=10)
    figure.supylabel("KL(p of the first ‖ p of the second), nats, log scale", fontsize=10)
    figure.suptitle(f"on the test images: {explain_curves(study)}", fontsize=9)
    return figure
