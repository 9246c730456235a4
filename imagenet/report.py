"""A table and error curves from the logs of training runs.

    python report.py runs/r18 runs/r18-baseline --figure error.png

The error of a run is its last epoch's, never the best one on the validation set.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from matplotlib.figure import Figure

from common.command_line import Parser, UserError, exit_status, one_line
from common.run_folder import Log
from epoch_log import CLASSIFIERS, LOG


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit status."""
    return exit_status(lambda: report(parse(argv)))


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = Parser(prog="report.py", description="A table and error curves from training logs.")
    parser.add_argument(
        "folders", nargs="+", type=Path, metavar="DIR", help="--save folder of a run"
    )
    parser.add_argument(
        "--figure", type=Path, default=Path("error.png"), help="file for the curves (.png, .svg)"
    )
    return parser.parse_args(argv)


def report(options: argparse.Namespace) -> None:
    """Print the table and draw the figure.

    Raises:
        UserError: one of the folders has no log, or the figure can't be written.
    """
    runs = {str(folder): read_run(folder) for folder in options.folders}
    print(table(runs))
    try:
        draw(runs).savefig(options.figure, dpi=150)
    except (OSError, ValueError) as error:
        raise UserError(
            f"--figure {options.figure}: can't be written ({one_line(error)})"
        ) from error
    print(f"\nerror curves: {options.figure}")


def read_run(folder: Path) -> list[dict]:
    """The records of a run, an epoch each; at least one."""
    path = folder / LOG
    records = Log(path).records() if path.is_file() else []
    if not records:
        found = f"no {LOG} with a finished epoch" if folder.is_dir() else "no such folder"
        raise UserError(f"{folder}: {found}; give the --save folder of a run")
    return records


def table(runs: dict[str, list[dict]]) -> str:
    """Markdown: a row a run, top-1 / top-5 errors in percent at its last epoch."""
    columns = ("run", "network", "method", "epochs", *CLASSIFIERS, "averaged", "training, top-1")
    rows = [f"| {' | '.join(columns)} |", "|" + "---|" * len(columns)]
    for name, records in runs.items():
        last = records[-1]
        scores = last["validation"]
        pairs = list(zip(scores["top1_errors"], scores["top5_errors"], strict=True))
        missing = ["–"] * (len(CLASSIFIERS) - len(pairs))
        averaged = (scores["averaged_top1_error"], scores["averaged_top5_error"])
        cells = [name, last["arch"], last["method"], str(last["epoch"])]
        cells += [errors(pair) for pair in pairs] + missing + [errors(averaged)]
        rows.append(f"| {' | '.join(cells)} | {last['train']['top1_errors'][0]:.2f} |")
    return "\n".join(rows)


def errors(pair: tuple[float, float]) -> str:
    return f"{pair[0]:.2f} / {pair[1]:.2f}"


def draw(runs: dict[str, list[dict]]) -> Figure:
    """Top-1 error of the backbone against iterations, as in the released README's figure."""
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
