"""A table and error curves from the logs of runs.

    python report.py logs/demo --figure logs/demo/error.png

Runs that differ only in the seed form a group. Errors are those of the last tested epoch, never
the best one on the test set.
"""

import sys
from collections.abc import Sequence
from pathlib import Path
from statistics import mean, stdev

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from common.command_line import ArgumentParser, UserError, exit_status
from common.run_folder import Log
from epoch_log import LOG, PREFIX
from options import RESUME_MUST_MATCH
from synergy import METHODS

COLORS = {"baseline": "tab:gray", "ds": "tab:blue", "dks": "tab:red"}  # of groups by label
Run = list[dict]  # the records of a log, one per epoch


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line and return the exit status."""
    return exit_status(lambda: report(**vars(build_parser().parse_args(argv))))


def build_parser() -> ArgumentParser:
    parser = ArgumentParser(
        prog="report.py", description="Print a table of test errors and plot error curves."
    )
    parser.add_argument(
        "folders",
        nargs="+",
        type=Path,
        metavar="DIR",
        help="folder of a run (its --save), or a folder that contains several",
    )
    parser.add_argument(
        "--figure",
        metavar="FILE",
        type=Path,
        default=Path("error.png"),
        help="image file for the error curves, .png or .svg",
    )
    return parser


def report(folders: Sequence[Path], figure: Path) -> None:
    """Print the table of the runs in `folders` and save their error curves to `figure`.

    Raises:
        UserError: a folder has no log, or the figure can't be written.
    """
    groups = group_runs([run for folder in folders for run in read_runs(folder)])
    print(format_table(groups))
    try:
        plot(groups).savefig(figure, dpi=150)
    except (OSError, ValueError) as error:
        raise UserError(f"--figure {figure}: can't be written ({error})") from error
    print(f"\nerror curves: {figure}")


def tested_epochs(run: Run) -> Run:
    """Return the records of the epochs that ended with a test."""
    return [record for record in run if "test_acc" in record]


def read_runs(folder: Path) -> list[Run]:
    """Read all logs in `folder` and its subfolders that have at least one tested epoch.

    Raises:
        UserError: there are none.
    """
    logs = sorted(folder.rglob(LOG)) if folder.is_dir() else []
    runs = [records for path in logs if tested_epochs(records := Log(path, PREFIX).records())]
    if not runs:
        problem = f"no {LOG} with a tested epoch" if folder.is_dir() else "no such folder"
        raise UserError(f"{folder}: {problem}; give the --save folder of a run")
    return runs


def group_runs(runs: list[Run]) -> dict[str, list[Run]]:
    """Group runs that differ only in the seed, baseline first and DKS last.

    Runs with different numbers of tested epochs are in different groups.

    Returns:
        Groups by label: the method and the options in which the groups differ.
    """
    runs = sorted(runs, key=lambda run: [run[-1].get("method") != name for name in METHODS])
    keys = [
        {key: str(run[-1].get(key)) for key in RESUME_MUST_MATCH if key != "seed"} for run in runs
    ]
    for key, run in zip(keys, runs, strict=True):
        key["epochs"] = str(tested_epochs(run)[-1]["epoch"])
    differing = [name for name in keys[0] if len({key[name] for key in keys}) > 1]
    groups: dict[str, list[Run]] = {}
    for key, run in zip(keys, runs, strict=True):
        options = [f"{name} {key[name]}" for name in differing if name != "method"]
        groups.setdefault(", ".join([key["method"], *options]), []).append(run)
    return groups


def format_table(groups: dict[str, list[Run]]) -> str:
    """Format a Markdown table of errors in percent, one row per group."""
    rows = [
        "| runs | n | epochs | test error, % | ensemble, % | training error, % |",
        "|---|---|---|---|---|---|",
    ]
    for label, runs in groups.items():
        last = [tested_epochs(run)[-1] for run in runs]
        epochs, planned = last[0]["epoch"], last[0].get("epochs")
        finished = f"{epochs}" if epochs == planned else f"{epochs} of {planned}"
        ensemble = [record.get("test_error_ensemble") for record in last]
        cells = (
            format_mean_std([100 - record["test_acc"] for record in last]),
            "–" if None in ensemble else format_mean_std(ensemble),
            format_mean_std([100 - record["train_acc"] for record in last]),
        )
        rows.append(f"| {label} | {len(runs)} | {finished} | {' | '.join(cells)} |")
    return "\n".join(rows)


def format_mean_std(values: list[float]) -> str:
    """Format mean ± sample standard deviation, or a single value as it is."""
    if len(values) == 1:
        return f"{values[0]:.2f}"
    return f"{mean(values):.2f} ± {stdev(values):.2f}"


def plot(groups: dict[str, list[Run]]) -> Figure:
    """Plot error against epoch, as in the figure of the released README."""
    figure = Figure(figsize=(7, 4.5), layout="constrained")
    axes = figure.add_subplot()
    plot_errors(axes, groups)
    axes.set_ylim(bottom=0)
    axes.legend(title="test error (dashed: training)")
    return figure


def plot_errors(axes: Axes, groups: dict[str, list[Run]]) -> None:
    """Plot the mean of each group as a line and its range as a band; training error dashed."""
    axes.set(xlabel="epoch", ylabel="top-1 error, %")
    for label, runs in groups.items():
        color = COLORS.get(label)
        for part, style in (("test", "-"), ("train", "--")):
            epochs, errors = error_curves(runs, part)
            (line,) = axes.plot(
                epochs,
                [mean(values) for values in errors],
                style,
                color=color,
                linewidth=1.5 if part == "test" else 0.8,
                label=label if part == "test" else None,
            )
            color = line.get_color()
            lows, highs = [*map(min, errors)], [*map(max, errors)]
            axes.fill_between(epochs, lows, highs, color=color, alpha=0.2, linewidth=0)
    axes.grid(alpha=0.3)


def error_curves(runs: list[Run], part: str) -> tuple[list[int], list[list[float]]]:
    """Return the epochs that all runs have and, for each epoch, the errors (%) of the runs.

    Args:
        runs: the runs.
        part: `train` or `test`.
    """
    key = f"{part}_acc"
    by_epoch = [
        {record["epoch"]: 100 - record[key] for record in run if key in record} for run in runs
    ]
    epochs = sorted(set.intersection(*(set(errors) for errors in by_epoch)))
    return epochs, [[errors[epoch] for errors in by_epoch] for epoch in epochs]


if __name__ == "__main__":
    sys.exit(main())
