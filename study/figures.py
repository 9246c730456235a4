"""The figures of the study."""

from pathlib import Path
from statistics import mean

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from common.evaluation import classifier_names
from common.options import METHODS
from common.report import plot_errors
from logs import Study, read_study
from plan import FULL_SIZE, Preset
from report import BACKBONE, gains_by_setting, interval

COLORS = {"baseline": "tab:gray", "ds": "tab:blue", "dks": "tab:red"}
BANDS = "mean over the seeds, band from the lowest to the highest; dotted: the learning rate falls"


def figures(preset: Preset, logs: Path) -> dict[str, Figure]:
    """Draw every figure for which there is a run; return them by file name."""
    study = read_study(preset, logs, unfinished=preset.name == FULL_SIZE.name)
    methods = {method: study[method] for method in METHODS if method in study}
    branched = {method: runs for method, runs in methods.items() if method != "baseline"}
    if preset.name == FULL_SIZE.name:
        return {"cifar100_error.png": draw_full_size(methods)}
    if preset.settings:
        gains = gains_by_setting(preset, study)
        return {"study_gains.png": draw_gains(gains)} if gains else {}
    drawn = {"study_methods.png": draw_rows(study)}
    if methods:
        drawn["study_error.png"] = draw_methods(methods)
    if branched:
        drawn["synergy_matrix.png"] = draw_divergences(branched)
    return drawn


def draw_errors(axes: Axes, study: Study) -> None:
    """Draw error against epoch, and where the learning rate falls."""
    curves = {row: [] for row in study}
    for row, runs in study.items():
        for run in runs.values():
            tests = {each["epoch"]: 100 - each["test_acc"] for each in run.tested}
            epochs = [(each["epoch"], 100 - each["train_acc"]) for each in run.epochs]
            curves[row].append([(epoch, error, tests.get(epoch)) for epoch, error in epochs])
    plot_errors(axes, curves)
    draw_milestones(axes, study)


def draw_milestones(axes: Axes, study: Study) -> None:
    for epoch in milestones(study):
        axes.axvline(epoch, color="gray", linestyle=":", linewidth=0.8)


def milestones(study: Study) -> list[int]:
    """Return the epochs, counted from 1, at whose start the learning rate falls."""
    runs = next(iter(study.values()))
    return next(iter(runs.values())).options["epoch_step"]


def draw_methods(study: Study) -> Figure:
    """Draw the errors of each method, whole and enlarged."""
    tested = [each for runs in study.values() for run in runs.values() for each in run.tested]
    start = milestones(study)[0]
    late = [100 - each["test_acc"] for each in tested if each["epoch"] >= start]
    figure = Figure(figsize=(10, 4.5), layout="constrained")
    whole, enlarged = figure.subplots(1, 2)
    draw_errors(whole, study)
    draw_errors(enlarged, study)
    whole.set_ylim(bottom=0)
    whole.legend(title="test error (dashed: training)")
    enlarged.set_ylim(min(late) - 1, max(late) + 2)
    enlarged.set_title("enlarged", fontsize=10)
    figure.suptitle(BANDS, fontsize=9)
    return figure


def draw_full_size(study: Study) -> Figure:
    """Draw the errors of each method as in the paper's Figure 1, of finished runs if it has any."""
    finished = {
        row: {s: run for s, run in runs.items() if run.is_finished} for row, runs in study.items()
    }
    figure = Figure(figsize=(7, 4.5), layout="constrained")
    axes = figure.add_subplot()
    draw_errors(axes, {row: finished[row] or study[row] for row in study})
    axes.set_ylim(0, 80)
    axes.legend(title="test error (dashed: training)")
    axes.set_title("ResNet-32 on CIFAR-100; dotted: the learning rate falls", fontsize=9)
    return figure


def draw_rows(study: Study) -> Figure:
    """Draw the test errors of the last epoch by row."""
    errors = {row: [run.errors[BACKBONE] for run in runs.values()] for row, runs in study.items()}
    colors = [COLORS[row.partition("-")[0]] for row in study]
    return draw_dots(errors, colors, 0.5, "test error of the last epoch, %")


def draw_gains(gains: dict[str, dict[int, float]]) -> Figure:
    """Draw what DKS gains over its own baseline by setting."""
    values = {label: [*each.values()] for label, each in gains.items()}
    title = "test error of DKS − that of its baseline, points"
    figure = draw_dots(values, [COLORS["dks"]] * len(gains), 0.55, title)
    figure.axes[0].axvline(0, color="gray", linewidth=0.8)
    return figure


def draw_dots(
    values: dict[str, list[float]], colors: list[str], height: float, title: str
) -> Figure:
    """Draw a row for each label: a dot for each value, and the mean with its 95 % interval."""
    figure = Figure(figsize=(7, 1.2 + height * len(values)), layout="constrained")
    axes = figure.add_subplot(xlabel=title)
    for y, (own, color) in enumerate(zip(values.values(), colors, strict=True)):
        # Each seed at its own height, because two may have the same value.
        heights = [y - 0.15 - 0.06 * index for index in range(len(own))]
        axes.plot(own, heights, "o", color=color, alpha=0.6, markersize=4)
        low, high = interval(own) if len(own) > 1 else (0, 0)
        bar = {"color": color, "markersize": 16, "markeredgewidth": 2, "capsize": 4}
        axes.errorbar(mean(own), y, xerr=(high - low) / 2, fmt="|", **bar)
    axes.set_yticks(range(len(values)), [f"{k} (n = {len(v)})" for k, v in values.items()])
    axes.invert_yaxis()
    axes.margins(y=0.12)
    axes.grid(axis="x", alpha=0.3)
    axes.set_title("dots: seeds, the first lowest; bars: mean and its 95 % interval", fontsize=9)
    return figure


def draw_divergences(study: Study) -> Figure:
    """Draw KL(p_j || p_i) on the test images against the epoch, at row j and column i."""
    names = classifier_names(3)
    figure = Figure(figsize=(7.5, 6), layout="constrained")
    grid = figure.subplots(3, 3, sharex=True, sharey=True)
    for j, i in ((j, i) for j in range(3) for i in range(3)):
        if i == j:
            grid[j][i].axis("off")
            middle = {"ha": "center", "va": "center", "transform": grid[j][i].transAxes}
            grid[j][i].text(0.5, 0.5, names[i], **middle)
        else:
            draw_pair(grid[j][i], study, j, i)
            grid[j][i].set_title(f"{names[j]} ‖ {names[i]}", fontsize=8)
    # The corners have no axes that could carry these labels.
    grid[0][1].tick_params(labelleft=True)
    grid[1][2].tick_params(labelbottom=True)
    grid[0][1].legend(fontsize=8)
    figure.supxlabel("epoch", fontsize=10)
    figure.supylabel("KL(p of the first ‖ p of the second), nats, log scale", fontsize=10)
    figure.suptitle(f"on the test images: {BANDS}", fontsize=9)
    return figure


def draw_pair(axes: Axes, study: Study, j: int, i: int) -> None:
    """Draw the mean over the seeds, and a band from the lowest to the highest."""
    for row, runs in study.items():
        curves = [[each["test_divergences"][j][i] for each in r.tested] for r in runs.values()]
        epochs = [each["epoch"] for each in next(iter(runs.values())).tested]
        values = list(zip(*curves, strict=True))
        axes.plot(epochs, [*map(mean, values)], color=COLORS[row], label=row)
        lows, highs = [*map(min, values)], [*map(max, values)]
        axes.fill_between(epochs, lows, highs, color=COLORS[row], alpha=0.2, linewidth=0)
    axes.set_yscale("log")
    draw_milestones(axes, study)
    axes.grid(alpha=0.3)
