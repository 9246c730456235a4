"""The figures of the study."""

from collections.abc import Sequence
from statistics import mean

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from common.error_figure import COLORS, plot_errors
from common.run_logs import BACKBONE, classifier_names, read_txt_record
from study.comparisons import confidence_interval
from study.gains import draw_gains, read_gains
from study.logs import Study, tested_epochs
from study.plan import Preset
from study.presets import METHODS

BANDS = "mean over the seeds, band from the lowest to the highest; dotted: the learning rate falls"


def figures(study: Study, preset: Preset) -> dict[str, Figure]:
    """Draw every figure for which a run is finished; return them by file name."""
    if preset.settings:
        gains = read_gains(study, preset)
        return {"study_gains.png": draw_gains(gains)} if gains else {}
    methods = {row.name: study[row.name] for row in METHODS if row.name in study}
    branched = {name: runs for name, runs in methods.items() if name != "baseline"}
    drawn = {"study_methods.png": draw_rows(study)}
    if methods:
        drawn["study_error.png"] = draw_methods(methods)
    if branched:
        drawn["synergy_matrix.png"] = draw_divergences(branched)
    return drawn


def draw_methods(study: Study) -> Figure:
    """Draw error against epoch, a line and a band over the seeds per row; whole and enlarged."""
    curves = {
        name: [[read_txt_record(record) for record in run.epochs] for run in runs.values()]
        for name, runs in study.items()
    }
    drops = milestones(study)
    late = [
        epoch.tested[BACKBONE].top1
        for run in sum(curves.values(), [])
        for epoch in run
        if epoch.tested and epoch.epoch >= drops[0]
    ]
    figure = Figure(figsize=(10, 4.5), layout="constrained")
    whole, enlarged = figure.subplots(1, 2)
    for axes in (whole, enlarged):
        plot_errors(axes, curves)
        draw_milestones(axes, drops)
    whole.set_ylim(bottom=0)
    whole.legend(title="test error (dashed: training)")
    enlarged.set_ylim(min(late) - 1, max(late) + 2)
    enlarged.set_title("enlarged", fontsize=10)
    figure.suptitle(BANDS, fontsize=9)
    return figure


def milestones(study: Study) -> list[int]:
    """Return the 1-based epochs at whose start the learning rate drops."""
    runs = next(iter(study.values()))
    return next(iter(runs.values())).options["epoch_step"]


def draw_milestones(axes: Axes, epochs: Sequence[int]) -> None:
    for epoch in epochs:
        axes.axvline(epoch, color="gray", linestyle=":", linewidth=0.8)


def draw_rows(study: Study) -> Figure:
    """Draw the last test error: a dot per seed, and the mean with its 95 % interval per row."""
    figure = Figure(figsize=(7, 1.2 + 0.5 * len(study)), layout="constrained")
    axes = figure.add_subplot(xlabel="test error of the last epoch, %")
    for y, runs in enumerate(study.values()):
        errors = [100 - run.epochs[-1]["test_acc"] for run in runs.values()]
        color = COLORS[next(iter(runs.values())).options["method"]]
        # Each seed at its own height, because two may have the same error.
        heights = [y - 0.15 - 0.06 * index for index in range(len(errors))]
        axes.plot(errors, heights, "o", color=color, alpha=0.6, markersize=4)
        low, high = confidence_interval(errors) if len(errors) > 1 else (0, 0)
        axes.errorbar(
            mean(errors), y, xerr=(high - low) / 2, fmt="|", color=color,
            markersize=16, markeredgewidth=2, capsize=4,
        )  # fmt: skip
    axes.set_yticks(range(len(study)), [f"{name} (n = {len(study[name])})" for name in study])
    axes.invert_yaxis()
    axes.margins(y=0.12)
    axes.grid(axis="x", alpha=0.3)
    axes.set_title("dots: seeds, the first lowest; bars: mean and its 95 % interval", fontsize=9)
    return figure


def draw_divergences(study: Study) -> Figure:
    """Draw KL(p_j || p_i) on the test images against the epoch, at row j and column i."""
    run = next(iter(next(iter(study.values())).values()))
    names = classifier_names(len(run.epochs[-1]["test_divergences"]))
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
    # The corners have no axes that could carry these labels.
    grid[0][1].tick_params(labelleft=True)
    grid[-2][-1].tick_params(labelbottom=True)
    grid[0][1].legend(fontsize=8)
    figure.supxlabel("epoch", fontsize=10)
    figure.supylabel("KL(p of the first ‖ p of the second), nats, log scale", fontsize=10)
    figure.suptitle(f"on the test images: {BANDS}", fontsize=9)
    return figure


def draw_pair(axes: Axes, study: Study, j: int, i: int) -> None:
    """Draw the mean over the seeds, and a band from the lowest to the highest."""
    for name, runs in study.items():
        records = [tested_epochs(run.epochs) for run in runs.values()]
        curves = [[record["test_divergences"][j][i] for record in run] for run in records]
        epochs = [record["epoch"] for record in records[0]]
        columns = list(zip(*curves, strict=True))
        axes.plot(epochs, [mean(column) for column in columns], color=COLORS[name], label=name)
        lows, highs = [min(column) for column in columns], [max(column) for column in columns]
        axes.fill_between(epochs, lows, highs, color=COLORS[name], alpha=0.2, linewidth=0)
    axes.set_yscale("log")
    draw_milestones(axes, milestones(study))
    axes.grid(alpha=0.3)
