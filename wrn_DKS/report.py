"""Tables and error curves from the logs of runs.

    python report.py logs/demo --figure logs/demo/error.png

Runs that differ in nothing but the seed are one group. The error of a run is its last epoch's,
never the best one on the test set.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from statistics import mean, stdev

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from common.command_line import Parser, UserError, exit_status
from common.run_folder import Log
from epoch_log import LOG, PREFIX
from options import RESUME_MUST_MATCH
from synergy import METHODS

COLORS = {"baseline": "tab:gray", "ds": "tab:blue", "dks": "tab:red"}  # others: matplotlib's own
Run = list[dict]  # the records of a log, an epoch each


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit status."""
    return exit_status(lambda: report(parse(argv)))


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = Parser(prog="report.py", description="A table and error curves from logs of runs.")
    parser.add_argument(
        "folders", nargs="+", type=Path, metavar="DIR", help="folder of a run, or of several"
    )
    parser.add_argument(
        "--figure", type=Path, default=Path("error.png"), help="file for the curves (.png, .svg)"
    )
    return parser.parse_args(argv)


def report(options: argparse.Namespace) -> None:
    """Print the table and draw the figure.

    Raises:
        UserError: there is no log in one of the folders, or the figure can't be written.
    """
    groups = grouped([run for folder in options.folders for run in read_runs(folder)])
    print(table(groups))
    figure = draw(groups)
    try:
        figure.savefig(options.figure, dpi=150)
    except (OSError, ValueError) as error:
        raise UserError(f"--figure {options.figure}: can't be written ({error})") from error
    print(f"\nerror curves: {options.figure}")


def tested(run: Run) -> Run:
    """The epochs after which the network was tested."""
    return [record for record in run if "test_acc" in record]


def read_runs(folder: Path) -> list[Run]:
    """The logs in the folder and below it that hold at least one tested epoch."""
    logs = sorted(folder.rglob(LOG)) if folder.is_dir() else []
    runs = [records for path in logs if tested(records := Log(path, PREFIX).records())]
    if not runs:
        found = "no log.txt of a tested run in it" if folder.is_dir() else "no such folder"
        raise UserError(f"{folder}: {found}; give the --save folder of a run")
    return runs


def grouped(runs: list[Run]) -> dict[str, list[Run]]:
    """The runs by a label that names the options, seed apart, in which they differ.

    Baseline comes first, DKS last. Runs that have come to different epochs are in different groups.
    """
    runs = sorted(runs, key=lambda run: [run[-1].get("method") != name for name in METHODS])
    keys = [
        {key: str(run[-1].get(key)) for key in RESUME_MUST_MATCH if key != "seed"} for run in runs
    ]
    for key, run in zip(keys, runs, strict=True):
        key["epochs"] = str(tested(run)[-1]["epoch"])
    differing = [name for name in keys[0] if len({key[name] for key in keys}) > 1]
    groups: dict[str, list[Run]] = {}
    for key, run in zip(keys, runs, strict=True):
        others = [f"{name} {key[name]}" for name in differing if name != "method"]
        groups.setdefault(", ".join([key["method"], *others]), []).append(run)
    return groups


def table(groups: dict[str, list[Run]]) -> str:
    """Markdown: a row a group, errors in percent as mean ± standard deviation over its runs."""
    rows = [
        "| runs | n | epochs | test error, % | averaged classifiers, % | training error, % |",
        "|---|---|---|---|---|---|",
    ]
    for label, runs in groups.items():
        last = [tested(run)[-1] for run in runs]
        epochs, planned = last[0]["epoch"], last[0].get("epochs")
        done = f"{epochs}" if epochs == planned else f"{epochs} of {planned}"
        averaged = [record.get("test_error_ensemble") for record in last]
        cells = (
            spread([100 - record["test_acc"] for record in last]),
            "–" if None in averaged else spread(averaged),
            spread([100 - record["train_acc"] for record in last]),
        )
        rows.append(f"| {label} | {len(runs)} | {done} | {' | '.join(cells)} |")
    return "\n".join(rows)


def spread(values: list[float]) -> str:
    """Mean ± sample standard deviation; the value alone where there is one."""
    if len(values) == 1:
        return f"{values[0]:.2f}"
    return f"{mean(values):.2f} ± {stdev(values):.2f}"


def draw(groups: dict[str, list[Run]]) -> Figure:
    """Error against epoch: a line and a band from the lowest to the highest run a group.

    As in the released README's figure for CIFAR. Training errors are dashed.
    """
    figure = Figure(figsize=(7, 4.5), layout="constrained")
    axes = figure.add_subplot()
    draw_errors(axes, groups)
    axes.set_ylim(bottom=0)
    axes.legend(title="test error (dashed: training)")
    return figure


def draw_errors(axes: Axes, groups: dict[str, list[Run]]) -> None:
    """The curves of `draw`."""
    axes.set(xlabel="epoch", ylabel="top-1 error, %")
    for label, runs in groups.items():
        color = COLORS.get(label)
        for part, style in (("test", "-"), ("train", "--")):
            epochs, errors = curves(runs, part)
            middle = [mean(column) for column in errors]
            (line,) = axes.plot(
                epochs,
                middle,
                style,
                color=color,
                linewidth=1.5 if part == "test" else 0.8,
                label=label if part == "test" else None,
            )
            color = line.get_color()
            lows, highs = [min(c) for c in errors], [max(c) for c in errors]
            axes.fill_between(epochs, lows, highs, color=color, alpha=0.2, linewidth=0)
    axes.grid(alpha=0.3)


def curves(runs: list[Run], part: str) -> tuple[list[int], list[list[float]]]:
    """The epochs that all of the runs have, and at each the errors (%) of the runs."""
    key = f"{part}_acc"
    by_epoch = [
        {record["epoch"]: 100 - record[key] for record in run if key in record} for run in runs
    ]
    epochs = sorted(set.intersection(*(set(errors) for errors in by_epoch)))
    return epochs, [[errors[epoch] for errors in by_epoch] for epoch in epochs]


if __name__ == "__main__":
    sys.exit(main())
