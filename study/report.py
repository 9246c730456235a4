"""Print the study's tables and draw its figures, from the logs alone.

    python study/report.py --images images

prints Markdown tables of all finished runs and draws the figures.
"""

import argparse
import sys
import warnings
from collections.abc import Sequence
from pathlib import Path
from statistics import mean

# The repository's folder, and the script folder that the study uses.
sys.path.insert(0, str(Path(__file__).parents[1]))
sys.path.insert(0, str(Path(__file__).parents[1] / "wrn_DKS"))

from scipy.stats import ttest_rel

from common.command_line import ArgumentParser, exit_status
from common.run_logs import classifier_names
from common.run_report import format_mean_std
from study import published
from study.cost import COLUMNS, cost_rows
from study.figures import figures
from study.logs import Study, read_study, tested_epochs
from study.plan import Preset, add_plan_flags, chosen_plan

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
    for name, figure in figures(study).items():
        figure.savefig(options.images / name, dpi=150)
        print(f"figure: {options.images / name}")


def tables(study: Study, preset: Preset) -> str:
    """Return all tables with their titles."""
    parts = (
        ("Top-1 error, %", errors(study, preset)),
        ("Difference of test errors, seed by seed", differences(study, preset)),
        ("Test error of each classifier, %", classifiers(study)),
        ("Cost", markdown(*COLUMNS, lines=cost_rows(study, preset))),
    )
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


def differences(study: Study, preset: Preset) -> str:
    """Tabulate the differences of each pair of rows over the seeds that both have."""
    lines = []
    for one, other in preset.pairs:
        seeds = sorted(study.get(one, {}).keys() & study.get(other, {}).keys())
        if len(seeds) < 2:
            continue
        pairs = [(study[one][seed].epochs, study[other][seed].epochs) for seed in seeds]
        last = [(test_error(a[-1]), test_error(b[-1])) for a, b in pairs]
        best = [(lowest_error(a), lowest_error(b)) for a, b in pairs]
        ensemble = [tuple(each[-1]["test_error_ensemble"] for each in pair) for pair in pairs]
        means = [f"{mean(a - b for a, b in errors):+.2f}" for errors in (last, best, ensemble)]
        lines.append(
            (f"{one} − {other}", len(seeds), means[0], *paired_t_test(last), *means[1:],
             *published.difference(one, other))
        )  # fmt: skip
    return markdown(
        "pair", "seeds", "mean", "95 % interval", "p (paired t)", "mean of best epochs",
        "mean of ensemble errors",
        "paper, WRN-28-10, CIFAR-100", "paper, ResNet-18, -50, -152, ImageNet", lines=lines,
    )  # fmt: skip


def paired_t_test(pairs: Sequence[tuple[float, float]]) -> tuple[str, str]:
    """Return the 95 % confidence interval of the mean difference and the two-sided p-value."""
    with warnings.catch_warnings(action="ignore"):  # about differences that are all equal
        test = ttest_rel(*zip(*pairs, strict=True))
    low, high = test.confidence_interval(0.95)
    p = test.pvalue if any(a != b for a, b in pairs) else 1.0  # nan in SciPy
    return f"{low:+.2f} to {high:+.2f}", f"{p:.3f}" if p >= 0.001 else "< 0.001"


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
    rows = [titles, ["---"] * len(titles), *lines]
    return "\n".join(f"| {' | '.join(map(str, row))} |" for row in rows)


if __name__ == "__main__":
    sys.exit(main())
