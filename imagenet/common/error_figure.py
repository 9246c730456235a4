"""The figure of `report.py`: error against epoch, as in the released README.

Functions import matplotlib, because --help and the table do not need it.
"""

import textwrap
from collections.abc import Sequence
from pathlib import Path
from statistics import mean
from typing import TYPE_CHECKING

from .command_line import UserError, one_line, require_writable_file
from .run_logs import BACKBONE, Epoch

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

COLORS = {"baseline": "tab:gray", "ds": "tab:blue", "dks": "tab:red"}  # by label
FEW_EPOCHS = 10  # with at most this many, each has a marker
LEGEND_CHARACTERS = 84  # of average width that fit into the width of the figure
LEGEND_ENTRY = 6  # characters that the line in front of a label is wide

Curves = dict[str, Sequence[Sequence[Epoch]]]  # the epochs of each run, by label of the group


def check_figure_path(path: Path) -> None:
    """Raise `UserError` if `path` has an unsupported extension or its folder does not exist."""
    from matplotlib.backend_bases import FigureCanvasBase

    require_writable_file("--figure", path)
    if path.suffix[1:].lower() not in FigureCanvasBase.get_supported_filetypes():
        raise UserError(
            f"--figure {path}: not an image format that can be written; choose a name that ends "
            "in .png, .svg or .pdf"
        )


def save_figure(figure: "Figure", path: Path) -> None:
    """Write the figure.

    Raises:
        UserError: the file can't be written.
    """
    try:
        figure.savefig(path, dpi=150)
    except (OSError, ValueError) as error:
        raise UserError(f"--figure {path}: can't be written ({one_line(error)})") from error


def draw_errors(curves: Curves, images: str) -> "Figure":
    """Draw the curves and a legend, which stands below the axes if it is large.

    Args:
        curves: the epochs of each run, by label of the group.
        images: what the runs were tested on: `test` or `validation`.
    """
    from matplotlib import colormaps
    from matplotlib.figure import Figure

    labels = [textwrap.fill(label, LEGEND_CHARACTERS - LEGEND_ENTRY) for label in curves]
    longest = LEGEND_ENTRY + max(len(line) for label in labels for line in label.splitlines())
    columns = min(LEGEND_CHARACTERS // longest, len(labels))
    below = len(labels) > 4 or longest > LEGEND_CHARACTERS / 3
    lines = sum(1 + label.count("\n") for label in labels) / columns + 1.5
    figure = Figure(figsize=(7, 4.5 + 0.17 * lines * below), layout="constrained")
    axes = figure.add_subplot()
    axes.set_prop_cycle(color=colormaps["tab10" if len(labels) <= 10 else "tab20"].colors)
    plot_errors(axes, curves)
    fit_limits(axes)
    options = {"title": f"{images} error (dashed: training)", "alignment": "left"}
    options |= {"fontsize": 9, "title_fontsize": 9}
    if below:
        options |= {"loc": "outside lower center", "ncols": columns}
    handles, _ = axes.get_legend_handles_labels()
    (figure if below else axes).legend(handles, labels, **options)
    return figure


def fit_limits(axes: "Axes") -> None:
    """Let the y axis start at 0 if the errors come near it, and give one epoch some width."""
    (left, low), (right, high) = axes.dataLim.get_points()
    if low < 0.25 * high:
        axes.set_ylim(bottom=0)
    if left == right:
        axes.set_xlim(left - 1, right + 1)


def plot_errors(axes: "Axes", curves: Curves) -> None:
    """Plot the mean of each group as a line and its range as a band; training error dashed."""
    from matplotlib.ticker import MaxNLocator

    axes.set(xlabel="epoch", ylabel="top-1 error, %")
    axes.xaxis.set_major_locator(MaxNLocator("auto", steps=[1, 2, 5, 10], integer=True))
    last = max(run[-1].epoch for runs in curves.values() for run in runs)
    for label, runs in curves.items():
        color = COLORS.get(label)
        for tested, style in ((True, "-"), (False, "--")):
            epochs, errors = error_curves(runs, tested)
            (line,) = axes.plot(
                epochs,
                [mean(values) for values in errors],
                style,
                color=color,
                linewidth=1.5 if tested else 0.8,
                marker="o" if len(epochs) == 1 or last <= FEW_EPOCHS else None,
                markersize=4,
                markerfacecolor=None if tested else "none",
                label=label if tested else None,
            )
            color = line.get_color()
            lows, highs = [*map(min, errors)], [*map(max, errors)]
            axes.fill_between(epochs, lows, highs, color=color, alpha=0.2, linewidth=0)
    axes.grid(alpha=0.3)


def error_curves(
    runs: Sequence[Sequence[Epoch]], tested: bool
) -> tuple[list[int], list[list[float]]]:
    """Return the epochs that all runs have and, for each epoch, the backbone's errors (%).

    Args:
        runs: the epochs of each run.
        tested: whether to return the errors of the tests, or those in training.
    """
    by_epoch = [
        {
            epoch.epoch: epoch.tested[BACKBONE].top1 if tested else epoch.training
            for epoch in run
            if epoch.tested or not tested
        }
        for run in runs
    ]
    epochs = sorted(set.intersection(*map(set, by_epoch)))
    return epochs, [[errors[epoch] for errors in by_epoch] for epoch in epochs]
