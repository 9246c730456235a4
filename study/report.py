"""Print the study's tables and draw its figures, from the logs alone.

    python study/report.py --images images

prints Markdown tables of all finished runs and draws the figures.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from statistics import mean

# The repository's folder, and the script folder that the study uses.
sys.path.insert(0, str(Path(__file__).parents[1]))
sys.path.insert(0, str(Path(__file__).parents[1] / "wrn_DKS"))

from common.command_line import ArgumentParser, exit_status
from common.run_logs import classifier_names
from common.run_report import format_mean_std
from study import published
from study.comparisons import format_interval, format_p, holm, p_value
from study.cost import COLUMNS, cost_rows
from study.figures import figures
from study.gains import TITLES, gain_rows, read_gains
from study.logs import Study, read_study, tested_epochs
from study.plan import Preset
from study.presets import add_plan_flags, chosen_plan

ACCURACIES = ("test_acc", "test_acc_ep1", "test_acc_ep2")  # in the order of the classifiers
IMAGES = Path(__file__).parents[1] / "images"


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line and return the exit status."""
    return exit_status(lambda: report(parse(argv)))


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = ArgumentParser(prog="study/report.py", description="Tables and figures of the study.")
    parser.add_argument(
        "--images", type=Path, default=IMAGES, metavar="DIR", help="folder for the figures"
    )
    add_plan_flags(parser)
    return parser.parse_args(argv)


def report(options: argparse.Namespace) -> None:
    """Print the tables and write the figures.

    Raises:
        UserError: no run is finished, or a log is of another plan.
        OSError: a figure cannot be written.
    """
    preset, logs = chosen_plan(options)
    study = read_study(logs, preset)
    print(tables(study, preset), end="\n\n")
    options.images.mkdir(parents=True, exist_ok=True)
    for name, figure in figures(study, preset).items():
        figure.savefig(options.images / name, dpi=150)
        print(f"figure: {options.images / name}")


def tables(study: Study, preset: Preset) -> str:
    """Return all tables with their titles."""
    parts = [
        ("Top-1 error, %", errors(study, preset)),
        ("Difference of test errors, seed by seed", differences(study, preset)),
        ("Test error of each classifier, %", classifiers(study)),
        ("Cost", markdown(*COLUMNS, lines=cost_rows(study, preset))),
    ]
    if read_gains(study, preset):
        parts.insert(1, ("Gain of DKS over its own baseline", gains(study, preset)))
    return "\n\n".join(f"**{title}**\n\n{table}" for title, table in parts)


def errors(study: Study, preset: Preset) -> str:
    """Tabulate the errors of the last and the best epoch, mean ± std, and the paper's."""
    planned = {row.name: row.seeds for row in preset.reported_rows}
    lines = []
    for name, runs in study.items():
        best = [min(tested_epochs(run.epochs), key=test_error) for run in runs.values()]
        lines.append(
            (
                name,
                f"{len(runs)} of {planned[name]}",
                format_mean_std([test_error(run.epochs[-1]) for run in runs.values()]),
                format_mean_std([100 - run.epochs[-1]["train_acc"] for run in runs.values()]),
                format_mean_std([test_error(record) for record in best]),
                epoch_range([record["epoch"] for record in best]),
                published.error(name),
            )
        )
    titles = (
        "row", "runs", "test, last epoch", "training", "test, best epoch", "best epoch of a run",
    )  # fmt: skip
    return markdown(*titles, "paper, WRN-28-10, CIFAR-100", lines=lines)


def epoch_range(epochs: list[int]) -> str:
    low, high = min(epochs), max(epochs)
    return f"{low}" if low == high else f"{low} to {high}"


def test_error(record: dict) -> float:
    """Return the backbone's error in percent."""
    return 100 - record["test_acc"]


def lowest_error(epochs: list[dict]) -> float:
    """Return the best epoch's error in percent."""
    return min(map(test_error, tested_epochs(epochs)))


def gains(study: Study, preset: Preset) -> str:
    """Tabulate what DKS gains in each setting."""
    return markdown(*TITLES, lines=gain_rows(read_gains(study, preset)))


def differences(study: Study, preset: Preset) -> str:
    """Tabulate the differences of each pair of rows over the seeds that both have."""
    lines, last = [], []
    for one, other in preset.pairs:
        seeds = sorted(study.get(one, {}).keys() & study.get(other, {}).keys())
        if len(seeds) < 2:
            continue
        pairs = [(study[one][seed].epochs, study[other][seed].epochs) for seed in seeds]
        last.append([test_error(a[-1]) - test_error(b[-1]) for a, b in pairs])
        best = [lowest_error(a) - lowest_error(b) for a, b in pairs]
        ensemble = [a[-1]["test_error_ensemble"] - b[-1]["test_error_ensemble"] for a, b in pairs]
        lines.append(
            (f"{one} − {other}", len(seeds), f"{mean(last[-1]):+.2f}", format_interval(last[-1]),
             format_p(p_value(last[-1])), f"{mean(best):+.2f}", f"{mean(ensemble):+.2f}",
             *published.difference(one, other))
        )  # fmt: skip
    titles = (
        "pair", "seeds", "mean", "95 % interval", "p (paired t)", "mean of best epochs",
        "mean of ensemble errors",
        "paper, WRN-28-10, CIFAR-100", "paper, ResNet-18, -50, -152, ImageNet",
    )  # fmt: skip
    if preset.primary:
        lines, titles = with_holm(lines, titles, last, preset)
    return markdown(*titles, lines=lines)


def with_holm(lines: list, titles: tuple, differences: list, preset: Preset) -> tuple:
    """Insert a column after p: Holm's correction for the primary pairs, which are tests.

    The other pairs are descriptions. Their p is left out.
    """
    primary = [f"{one} − {other}" for one, other in preset.pairs[: preset.primary]]
    tested = [index for index, line in enumerate(lines) if line[0] in primary]
    corrected = holm([p_value(differences[index]) for index in tested], preset.primary)
    column = dict(zip(tested, map(format_p, corrected), strict=True))
    at = titles.index("p (paired t)") + 1
    lines = [
        (*line[:at], column[index], *line[at:])
        if index in column
        else (*line[: at - 1], "", "", *line[at:])
        for index, line in enumerate(lines)
    ]
    return lines, (*titles[:at], f"p, Holm, {preset.primary} tests", *titles[at:])


def classifiers(study: Study) -> str:
    """Tabulate the last epoch's error of each classifier and of their ensemble."""
    lines = []
    for name, runs in study.items():
        last = [run.epochs[-1] for run in runs.values()]
        if last[0]["test_acc_ep1"] is None:
            continue
        own = [format_mean_std([100 - record[key] for record in last]) for key in ACCURACIES]
        lines.append(
            (name, *own, format_mean_std([record["test_error_ensemble"] for record in last]))
        )
    return markdown("row", *classifier_names(3), "ensemble", lines=lines)


def markdown(*titles: str, lines: Sequence[Sequence[object]]) -> str:
    """Return a Markdown table, without the columns that are empty."""
    columns = zip(titles, *lines, strict=True)
    if lines:
        columns = [cells for cells in columns if any(cell != "" for cell in cells[1:])]
    titles, *lines = zip(*columns, strict=True)
    rows = [titles, ["---"] * len(titles), *lines]
    return "\n".join(f"| {' | '.join(map(str, row))} |" for row in rows)


if __name__ == "__main__":
    sys.exit(main())
