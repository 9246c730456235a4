"""Tables and figures of the study, from its logs alone.

    python study_report.py --images ../images

prints Markdown tables of all runs that are done, and draws the figures.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from statistics import mean

import published
from command_line import Parser, exit_status
from epoch_log import classifier_names
from report import Run as Records
from report import spread, tested
from student_t import paired_t
from study_figures import figures
from study_log import Study, read_study
from study_plan import PAIRS, Preset, add_plan_flags, chosen_plan
from study_price import TITLES, price

ACCURACIES = ("test_acc", "test_acc_ep1", "test_acc_ep2")  # in the order of the classifiers


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit status."""
    return exit_status(lambda: report(parse(argv)))


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = Parser(prog="study_report.py", description="Tables and figures of the study.")
    parser.add_argument(
        "--images", type=Path, default=Path("images"), metavar="DIR", help="for the figures"
    )
    add_plan_flags(parser)
    return parser.parse_args(argv)


def report(options: argparse.Namespace) -> None:
    """Print the tables and write the figures.

    Raises:
        Refused: no run is done, or a log is of another plan.
        OSError: a figure can't be written.
    """
    preset, logs = chosen_plan(options)
    study = read_study(logs, preset)
    print(tables(study, preset), end="\n\n")
    options.images.mkdir(parents=True, exist_ok=True)
    for name, figure in figures(study).items():
        figure.savefig(options.images / name, dpi=150)
        print(f"figure: {options.images / name}")


def tables(study: Study, preset: Preset) -> str:
    """All tables, with their titles."""
    parts = (
        ("Top-1 error, %", errors(study, preset)),
        ("Difference of test errors, seed by seed", differences(study)),
        ("Test error of each classifier, %", classifiers(study)),
        ("Price", markdown(*TITLES, lines=price(study, preset))),
    )
    return "\n\n".join(f"**{title}**\n\n{table}" for title, table in parts)


def errors(study: Study, preset: Preset) -> str:
    """Last and best epoch, training and test, beside the paper's; mean ± std over the seeds."""
    planned = {row.name: row.seeds for row in preset.rows}
    lines = []
    for name, runs in study.items():
        best = [min(tested(run.epochs), key=test_error) for run in runs.values()]
        lines.append(
            (
                name,
                f"{len(runs)} of {planned[name]}",
                spread([test_error(run.epochs[-1]) for run in runs.values()]),
                spread([100 - run.epochs[-1]["train_acc"] for run in runs.values()]),
                spread([test_error(record) for record in best]),
                between([record["epoch"] for record in best]),
                published.error(name),
            )
        )
    titles = (
        "row", "runs", "test, last epoch", "training", "test, best epoch", "best epoch of a run",
    )  # fmt: skip
    return markdown(*titles, "paper, WRN-28-10, CIFAR-100", lines=lines)


def between(epochs: list[int]) -> str:
    low, high = min(epochs), max(epochs)
    return f"{low}" if low == high else f"{low} to {high}"


def test_error(record: dict) -> float:
    """The backbone's, in percent."""
    return 100 - record["test_acc"]


def lowest_error(run: Records) -> float:
    """The best epoch's, in percent."""
    return min(map(test_error, tested(run)))


def differences(study: Study) -> str:
    """Of each pair of rows over the seeds that both have: last epochs, then best epochs."""
    lines = []
    for one, other in PAIRS:
        seeds = sorted(study.get(one, {}).keys() & study.get(other, {}).keys())
        pairs = [(study[one][seed].epochs, study[other][seed].epochs) for seed in seeds]
        last = [test_error(a[-1]) - test_error(b[-1]) for a, b in pairs]
        best = [lowest_error(a) - lowest_error(b) for a, b in pairs]
        averaged = [a[-1]["test_error_ensemble"] - b[-1]["test_error_ensemble"] for a, b in pairs]
        if len(seeds) < 2:
            continue
        test = paired_t(last)
        interval = f"{test.low:+.2f} to {test.high:+.2f}"
        lines.append(
            (f"{one} − {other}", test.n, f"{test.mean:+.2f}", interval, p_value(test.p),
             f"{mean(best):+.2f}", f"{mean(averaged):+.2f}", *published.difference(one, other))
        )  # fmt: skip
    return markdown(
        "pair", "seeds", "mean", "95 % interval", "p (paired t)", "mean of best epochs",
        "mean of averaged probabilities",
        "paper, WRN-28-10, CIFAR-100", "paper, ResNet-18, -50, -152, ImageNet", lines=lines,
    )  # fmt: skip


def p_value(p: float) -> str:
    return f"{p:.3f}" if p >= 0.001 else "< 0.001"


def classifiers(study: Study) -> str:
    """The last epoch's error of each classifier and of the averaged probabilities."""
    lines = []
    for name, runs in study.items():
        last = [run.epochs[-1] for run in runs.values()]
        if last[0]["test_acc_ep1"] is None:
            continue
        own = [spread([100 - record[key] for record in last]) for key in ACCURACIES]
        lines.append((name, *own, spread([record["test_error_ensemble"] for record in last])))
    return markdown("row", *classifier_names(3), "averaged probabilities", lines=lines)


def markdown(*titles: str, lines: Sequence[Sequence[object]]) -> str:
    rows = [titles, ["---"] * len(titles), *lines]
    return "\n".join(f"| {' | '.join(map(str, row))} |" for row in rows)


if __name__ == "__main__":
    sys.exit(main())
