"""The command line of `report.py`: a table of runs and, with `--figure`, their error curves.

Errors are those of the last tested epoch, never the best one on the test set.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path
from statistics import mean, stdev

from .command_line import ArgumentParser, exit_status
from .error_figure import check_figure_path, draw_errors, save_figure
from .run_groups import Groups, group_runs, settings
from .run_logs import AVERAGED, BACKBONE, ENSEMBLE, Epoch, read_runs


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line and return the exit status."""
    return exit_status(lambda: report(**vars(parse(argv))))


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = ArgumentParser(
        prog="report.py",
        description="Print a table of the errors of runs, of wrn_DKS and imagenet, and draw error "
        "curves. Runs that differ only in the seed are averaged.",
    )
    parser.add_argument(
        "folders",
        nargs="+",
        type=Path,
        metavar="DIR",
        help="folder of a run (its --save), or a folder that contains several at any depth",
    )
    parser.add_argument(
        "--figure",
        metavar="FILE",
        type=Path,
        help="draw the error curves into this file, such as .png, .svg or .pdf",
    )
    return parser.parse_args(argv)


def report(folders: Sequence[Path], figure: Path | None) -> None:
    """Print the table of the runs in `folders` and save their error curves to `figure`, if given.

    Raises:
        UserError: a folder has no log, or the figure can't be written.
    """
    if figure:
        check_figure_path(figure)
    groups, notes = group_runs(read_runs(folders))
    print(format_title(groups), format_table(groups), *notes, sep="\n\n")
    if figure:
        curves = {label: [run.epochs for run in runs] for label, runs in groups.items()}
        save_figure(draw_errors(curves, tested_images(groups)), figure)
    print(f"\nerror curves: {figure}" if figure else "\n--figure FILE draws the error curves")


def tested_images(groups: Groups) -> str:
    """Return `validation` if all runs are of imagenet, otherwise `test`."""
    logs = {run.path.suffix for runs in groups.values() for run in runs}
    return "validation" if logs == {".jsonl"} else "test"


def format_title(groups: Groups) -> str:
    """Describe the numbers of the table, and the network and data if all runs have the same."""
    runs = [run for runs in groups.values() for run in runs]
    same = [
        f" {word} {values.pop()}"
        for word, name in (("of", "network"), ("on", "dataset"))
        if len(values := {settings(run).get(name, "") for run in runs}) == 1 and "" not in values
    ]
    top5 = any(errors.top5 is not None for run in runs for errors in run.tested[-1].tested.values())
    return (
        f"Errors{''.join(same)} after the last tested epoch, in percent{', top-1 / top-5' * top5}"
    )


def format_table(groups: Groups) -> str:
    """Format a Markdown table of errors in percent, one row per group."""
    last = {label: [run.tested[-1] for run in runs] for label, runs in groups.items()}
    found = dict.fromkeys(name for epochs in last.values() for e in epochs for name in e.tested)
    names = sorted(found, key=column_order)
    others = [name.removesuffix(" branch") for name in names[1:]]
    error = f"{tested_images(groups)} error" + ", last weights" * (AVERAGED in found)
    rows = [["runs", "n", "epochs", error, *others, "training error"]]
    for label, runs in groups.items():
        cells = [format_errors(last[label], name) for name in names]
        training = format_mean_std([epoch.training for epoch in last[label]])
        rows.append([label, str(len(runs)), runs[0].progress, *cells, training])
    return format_markdown(rows)


def column_order(name: str) -> int:
    """Return the place of a classifier in the table: branches stand between the named ones."""
    return {BACKBONE: 0, AVERAGED: 1, ENSEMBLE: 3}.get(name, 2)


def format_errors(epochs: Sequence[Epoch], name: str) -> str:
    """Format the errors of a classifier over runs: top-1, or top-1 / top-5 if all logs have it."""
    errors = [epoch.tested.get(name) for epoch in epochs]
    if None in errors:
        return "–"
    both = [[e.top1 for e in errors], [e.top5 for e in errors]]
    return " / ".join(format_mean_std(values) for values in both if None not in values)


def format_mean_std(values: Sequence[float]) -> str:
    """Format mean ± sample standard deviation, or a single value as it is."""
    if len(values) == 1:
        return f"{values[0]:.2f}"
    return f"{mean(values):.2f} ± {stdev(values):.2f}"


def format_markdown(rows: Sequence[Sequence[str]]) -> str:
    """Format a Markdown table, of which the first row is the title, with aligned columns."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    padded = [[cell.ljust(width) for cell, width in zip(row, widths, strict=True)] for row in rows]
    lines = ["| " + " | ".join(row) + " |" for row in padded]
    return "\n".join([lines[0], "|" + "|".join("-" * (w + 2) for w in widths) + "|", *lines[1:]])
