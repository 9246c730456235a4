"""The figures of the study."""

from collections.abc import Sequence
from math import sqrt
from statistics import mean, stdev

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from epoch_log import classifier_names
from report import COLORS, draw_errors, tested
from student_t import quantile
from study_log import Study
from study_plan import METHODS

BANDS = "mean over the seeds, band from the lowest to the highest; dotted: the learning rate falls"


def figures(study: Study) -> dict[str, Figure]:
    """Every figure for which a run is done, by the name of its file."""
    methods = {row.name: study[row.name] for row in METHODS if row.name in study}
    branched = {name: runs for name, runs in methods.items() if name != "baseline"}
    drawn = {"study_methods.png": draw_rows(study)}
    if methods:
        drawn["study_error.png"] = draw_methods(methods)
    if branched:
        drawn["synergy_matrix.png"] = draw_divergences(branched)
    return drawn


def draw_methods(study: Study) -> Figure:
    """Error against epoch: a line and a band over the seeds each; all of it, and enlarged."""
    runs = {name: [run.epochs for run in runs.values()] for name, runs in study.items()}
    milestones = falls(study)
    late = [
        100 - record["test_acc"]
        for run in sum(runs.values(), [])
        for record in tested(run)
        if record["epoch"] >= milestones[0]
    ]
    figure = Figure(figsize=(10, 4.5), layout="constrained")
    whole, enlarged = figure.subplots(1, 2)
    for axes in (whole, enlarged):
        draw_errors(axes, runs)
        mark(axes, milestones)
    whole.set_ylim(bottom=0)
    whole.legend(title="test error (dashed: training)")
    enlarged.set_ylim(min(late) - 1, max(late) + 2)
    enlarged.set_title("enlarged", fontsize=10)
    figure.suptitle(BANDS, fontsize=9)
    return figure


def falls(study: Study) -> list[int]:
    """The epochs, counted from 1, at whose start the learning rate falls."""
    runs = next(iter(study.values()))
    return next(iter(runs.values())).options["epoch_step"]


def mark(axes: Axes, epochs: Sequence[int]) -> None:
    for epoch in epochs:
        axes.axvline(epoch, color="gray", linestyle=":", linewidth=0.8)


def draw_rows(study: Study) -> Figure:
    """The last epoch's test error: a dot a seed, the mean and its 95 % interval a row."""
    figure = Figure(figsize=(7, 1.2 + 0.5 * len(study)), layout="constrained")
    axes = figure.add_subplot(xlabel="test error of the last epoch, %")
    for place, runs in enumerate(study.values()):
        errors = [100 - run.epochs[-1]["test_acc"] for run in runs.values()]
        color = COLORS[next(iter(runs.values())).options["method"]]
        # One above the other by seed, since two may have the same error.
        heights = [place - 0.15 - 0.06 * index for index in range(len(errors))]
        axes.plot(errors, heights, "o", color=color, alpha=0.6, markersize=4)
        axes.errorbar(
            mean(errors), place, xerr=half_interval(errors), fmt="|", color=color,
            markersize=16, markeredgewidth=2, capsize=4,
        )  # fmt: skip
    axes.set_yticks(range(len(study)), [f"{name} (n = {len(study[name])})" for name in study])
    axes.invert_yaxis()
    axes.margins(y=0.12)
    axes.grid(axis="x", alpha=0.3)
    axes.set_title("dots: seeds, the first lowest; bars: mean and its 95 % interval", fontsize=9)
    return figure


def half_interval(values: Sequence[float], confidence: float = 0.95) -> float:
    """Half of the confidence interval of the mean, by Student's t; 0 where there is one value."""
    n = len(values)
    return quantile(confidence, n - 1) * stdev(values) / sqrt(n) if n > 1 else 0.0


def draw_divergences(study: Study) -> Figure:
    """KL(p_j || p_i) on the test images against the epoch, j down and i across."""
    options = next(iter(next(iter(study.values())).values()))
    names = classifier_names(len(options.epochs[-1]["test_divergences"]))
    count = len(names)
    figure = Figure(figsize=(7.5, 6), layout="constrained")
    grid = figure.subplots(count, count, sharex=True, sharey=True)
    for j in range(count):
        for i in range(count):
            axes = grid[j][i]
            if i == j:
                axes.axis("off")
                axes.text(0.5, 0.5, names[i], ha="center", va="center", transform=axes.transAxes)
            else:
                draw_pair(axes, study, j, i)
                axes.set_title(f"{names[j]} ‖ {names[i]}", fontsize=8)
    # The corners have no axes to carry these for them.
    grid[0][1].tick_params(labelleft=True)
    grid[-2][-1].tick_params(labelbottom=True)
    grid[0][1].legend(fontsize=8)
    figure.supxlabel("epoch", fontsize=10)
    figure.supylabel("KL(p of the first ‖ p of the second), nats, log scale", fontsize=10)
    figure.suptitle(f"on the test images: {BANDS}", fontsize=9)
    return figure


def draw_pair(axes: Axes, study: Study, j: int, i: int) -> None:
    """The mean over the seeds, with a band from the lowest to the highest."""
    for name, runs in study.items():
        records = [tested(run.epochs) for run in runs.values()]
        curves = [[record["test_divergences"][j][i] for record in run] for run in records]
        epochs = [record["epoch"] for record in records[0]]
        columns = list(zip(*curves, strict=True))
        axes.plot(epochs, [mean(column) for column in columns], color=COLORS[name], label=name)
        lows, highs = [min(column) for column in columns], [max(column) for column in columns]
        axes.fill_between(epochs, lows, highs, color=COLORS[name], alpha=0.2, linewidth=0)
    axes.set_yscale("log")
    mark(axes, falls(study))
    axes.grid(alpha=0.3)
