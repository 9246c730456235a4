"""Print a table and draw error curves from the logs of training runs.

    python report.py runs/r18 runs/r18-baseline --figure error.png

Errors are those of the last epoch, never of the best one on the validation set.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from matplotlib.figure import Figure

from common.command_line import ArgumentParser, UserError, exit_status, one_line
from common.run_folder import Log
from epoch_log import LOG
from evaluate import CLASSIFIERS


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line and return the exit status."""
    return exit_status(lambda: report(parse(argv)))


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = ArgumentParser(
        prog="report.py",
        description="Print a table of errors and draw error curves from the logs of training runs.",
    )
    parser.add_argument(
        "folders", nargs="+", type=Path, metavar="DIR", help="--save folder of a run"
    )
    parser.add_argument(
        "--figure",
        metavar="FILE",
        type=Path,
        default=Path("error.png"),
        help="image file for the error curves, such as .png or .svg",
    )
    return parser.parse_args(argv)


def report(options: argparse.Namespace) -> None:
    """Print the table and draw the figure.

    Raises:
        UserError: a folder has no log, or the figure cannot be written.
    """
    runs = {str(folder): read_run(folder) for folder in options.folders}
    print(table(runs))
    try:
        draw(runs).savefig(options.figure, dpi=150)
    except (OSError, ValueError) as error:
        raise UserError(
            f"--figure {options.figure}: cannot write it ({one_line(error)})"
        ) from error
    print(f"\nerror curves: {options.figure}")


def read_run(folder: Path) -> list[dict]:
    """Read the records of a run, one per epoch; at least one."""
    path = folder / LOG
    records = Log(path).records() if path.is_file() else []
    if not records:
        problem = f"no {LOG} with a finished epoch" if folder.is_dir() else "no such folder"
        raise UserError(f"{folder}: {problem}; give the --save folder of a run")
    return records


def table(runs: dict[str, list[dict]]) -> str:
    """Return a Markdown table: one run per row, top-1 / top-5 errors (%) of its last epoch."""
    columns = ("run", "network", "method", "epochs", *CLASSIFIERS, "ensemble", "training, top-1")
    rows = [f"| {' | '.join(columns)} |", "|" + "---|" * len(columns)]
    for name, records in runs.items():
        last = records[-1]
        validation = last["validation"]
        errors = list(zip(validation["top1_errors"], validation["top5_errors"], strict=True))
        missing = ["–"] * (len(CLASSIFIERS) - len(errors))
        ensemble = (validation["averaged_top1_error"], validation["averaged_top5_error"])
        cells = [name, last["arch"], last["method"], str(last["epoch"])]
        cells += [format_errors(pair) for pair in errors] + missing + [format_errors(ensemble)]
        rows.append(f"| {' | '.join(cells)} | {last['train']['top1_errors'][0]:.2f} |")
    return "\n".join(rows)


def format_errors(errors: tuple[float, float]) -> str:
    return f"{errors[0]:.2f} / {errors[1]:.2f}"


def draw(runs: dict[str, list[dict]]) -> Figure:
    """Plot the backbone's top-1 error over steps, as in the figure of the released README."""
    figure = Figure(figsize=(7, 4.5), layout="constrained")
    axes = figure.add_subplot(xlabel="iterations", ylabel="top-1 error, %")
    for name, records in runs.items():
        steps = [record["step"] for record in records]
        validation, training = (
            [record[part]["top1_errors"][0] for record in records]
            for part in ("validation", "train")
        )
        (line,) = axes.plot(steps, validation, label=f"{name} ({records[-1]['method']})")
        axes.plot(steps, training, "--", color=line.get_color(), linewidth=0.8)
    axes.set_ylim(bottom=0)
    axes.grid(alpha=0.3)
    axes.legend(title="validation error (dashed: training)")
    return figure


if __name__ == "__main__":
    sys.exit(main())
