"""The command line of `report.py`: tables of runs and, with `--figure`, their error curves.

Errors are those of the last tested epoch. Runs of the same code that differ only in the seed form
a group.
"""

import json
import os
import sys
from collections.abc import Sequence
from itertools import cycle
from pathlib import Path
from statistics import mean, stdev
from typing import NamedTuple

from .command_line import FREE, LOCAL, ArgumentParser, Incomplete, UserError, one_line
from .evaluation import Scores
from .logs import LOG, read_log
from .options import METHODS, UNUSED, TrainingConfig

NOT_FIXED = (  # options of the script folders that do not decide the result
    "dataroot data workers cache evaluate predict per_class export json val_labels".split()
)
COLORS = {"baseline": "gray", "ds": "blue", "dks": "red"}  # of the first label that begins so
OTHER_COLORS = "orange green purple brown pink olive cyan".split()
# 0.975 quantiles of Student's t distribution with 1, 2, … 10 degrees of freedom
T_QUANTILES = (12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228)


class Run(NamedTuple):
    """A run with a tested epoch. Errors are in percent."""

    folder: Path
    seed: int
    settings: dict  # what decides the result, apart from the seed, and the name of the data
    errors: dict[str, float]  # of the backbone, by column of the table
    others: dict[str, float]  # test errors of the branches and of the ensemble
    curve: list[tuple]  # epoch, training error, test error or None


def main(argv: Sequence[str] | None = None) -> None:
    """Print the tables of the runs in the given folders and draw their error curves."""
    parser = ArgumentParser(prog="report.py", description="Compare runs, averaged over seeds.")
    text = "folder of a run (its --save), or one that contains several at any depth"
    parser.add_argument("folders", nargs="+", type=Path, metavar="DIR", help=text)
    text = "draw the error curves into this .png, .svg or .pdf file"
    parser.add_argument("--figure", type=Path, metavar="FILE", help=text)
    given = parser.parse_given(argv)
    if given.get("figure", Path("x.png")).suffix.lower() not in (".png", ".svg", ".pdf"):
        raise UserError(f"--figure {given['figure']}: expected a .png, .svg or .pdf file")
    groups = group_runs(read_runs(given["folders"]))
    print(*error_table(groups), *difference_table(groups), sep="\n\n", flush=True)
    if "figure" in given:
        curves = {label: [run.curve for run in group] for label, group in groups.items()}
        draw(curves, given["figure"])


def read_runs(folders: Sequence[Path]) -> list[Run]:
    """Read the runs below the folders, each once. Raise `UserError` if there are none."""
    runs: dict[Path, Run | None] = {}
    for folder in folders:
        paths = [path.resolve() for path in sorted(folder.rglob(LOG))]
        if not paths:
            problem = f"no {LOG} in it" if folder.is_dir() else "no such folder"
            raise UserError(f"{folder}: {problem}; give the --save folder of a run")
        runs |= {path: read_run(path) for path in paths if path not in runs}
    if not any(runs.values()):
        raise UserError("no run has a tested epoch; try again after the first test")
    return [run for run in runs.values() if run]


def read_run(path: Path) -> Run | None:
    """Read the log of a run. If no epoch is tested, say so on standard error and return None."""
    records = read_log(path)
    tested = [record for record in records if "test" in record]
    if not tested:
        print(f"{path.parent}: no epoch is tested yet; left out", file=sys.stderr)
        return None
    try:
        last, untested = tested[-1], {"top1_errors": [None]}
        parts = [(each["epoch"], each["train"], each.get("test", untested)) for each in records]
        curve = [(epoch, *(part["top1_errors"][0] for part in pair)) for epoch, *pair in parts]
        branches = Scores(**last["test"]).by_name()
        top1, top5 = branches.pop("backbone")
        errors = {"test error": top1, "top-5": top5, "train error": last["train"]["top1_errors"][0]}
        if last["data"]["classes"] <= 5:
            del errors["top-5"]
        if "ema" in last:
            errors["EMA weights"] = last["ema"]["top1_errors"][0]
        others = {name.removesuffix(" branch"): pair[0] for name, pair in branches.items()}
        seed = last["options"]["seed"]
        return Run(path.parent, seed, read_settings(last), errors, others, curve)
    except (LookupError, TypeError, ValueError, AttributeError) as error:
        raise UserError(f"{path}: not the log of a run ({error!r})") from error


def read_settings(record: dict) -> dict:
    """Return what must be equal in the runs of a group."""
    options = TrainingConfig().to_dict() | record["options"]  # an older log lacks some
    network, data = record["network"]["name"], options.get("dataset", "folder")
    if data == "folder":
        data = Path(options.get("dataroot") or options["data"]).absolute().name
    known = {"method": options["method"], "network": network, "data": data}
    epoch, epochs = record["epoch"], options["epochs"]
    known["epochs"] = f"{epoch}" if epoch == epochs else f"{epoch} of {epochs}"
    known |= {"network details": record["network"], "data details": record["data"]}
    known["code"] = record.get("software", {}).get("code")
    left_out = {"arch", "depth", "width", "dataset", "seed", *NOT_FIXED, *known}
    left_out |= {*TrainingConfig.names(FREE, LOCAL), *UNUSED.get(options["method"], ())}
    return known | {name: value for name, value in options.items() if name not in left_out}


def group_runs(runs: Sequence[Run]) -> dict[str, list[Run]]:
    """Group runs that differ only in the seed. If a seed is repeated, each run is a group."""
    found: dict[str, list[Run]] = {}
    for run in sorted(runs, key=lambda run: METHODS.index(run.settings["method"])):
        found.setdefault(json.dumps(run.settings | {"data": ""}, sort_keys=True), []).append(run)
    settings = [group[0].settings for group in found.values()]
    labels = [make_label(each, settings) for each in settings]
    common = os.path.commonpath([run.folder.parent for run in runs])
    groups: dict[str, list[Run]] = {}
    for label, group in zip(labels, found.values(), strict=True):
        repeated = len({run.seed for run in group}) < len(group)
        for run in group:
            folder = str((run if repeated else group[0]).folder.relative_to(common))
            folder += "" if repeated or len(group) == 1 else f" and {len(group) - 1} more"
            unclear = repeated or labels.count(label) > 1
            groups.setdefault(f"{label}, {folder}" if unclear else label, []).append(run)
    return groups


def make_label(settings: dict, groups: Sequence[dict]) -> str:
    """Return the method and, unless it is long, what differs between groups of the same network."""
    words, defaults = [settings["method"]], TrainingConfig().to_dict()
    alike = [each for each in groups if each["network"] == settings["network"]]
    for name, value in settings.items():
        others = groups if name in ("network", "data") else alike
        differs = any(each.get(name, value) != value for each in others)
        is_off = not value and not defaults.get(name)  # as by default
        if differs and not is_off and name not in ("method", "epochs") and "details" not in name:
            text = f"{name} {value}" if value else f"no {name}"
            words.append(text.removeprefix("network ").removesuffix(" True"))
    return ", ".join(words if sum(map(len, words)) <= 40 else words[:1])


def error_table(groups: dict[str, list[Run]]) -> list[str]:
    """Return a title, the table of errors, a note, and the table of the other classifiers."""
    runs = [run for group in groups.values() for run in group]
    about = [dict.fromkeys(run.settings[name] for run in runs) for name in ("network", "data")]
    networks, data = map(", ".join, about)
    title = f"Errors of {networks} on {data} in percent, top-1 unless named"
    note = "The errors are those of the last tested epoch."
    note += " ±: sample standard deviation over n seeds." * (len(groups) < len(runs))
    others = ["Test errors of the branches and of the ensemble", error_rows(groups, "others")]
    return [title, error_rows(groups, "errors"), note, *others * any(run.others for run in runs)]


def error_rows(groups: dict[str, list[Run]], field: str) -> str:
    """Tabulate the means of a field of `Run` over each group that has it."""
    found = {label: [getattr(run, field) for run in group] for label, group in groups.items()}
    names = dict.fromkeys(name for errors in found.values() for each in errors for name in each)
    rows = [["runs", "n", "epochs", *names]]
    for label, errors in found.items():
        values = [[each[name] for each in errors if name in each] for name in names]
        cells = [mean_std(each) if each else "–" for each in values]
        if any(values):
            rows.append([label, str(len(errors)), groups[label][0].settings["epochs"], *cells])
    return markdown(rows)


def difference_table(groups: dict[str, list[Run]]) -> list[str]:
    """Return a title, the table of paired differences to the baseline, and a note, if any."""
    rows = [["runs", "seeds", "difference", "95 % interval"]]
    blank = dict.fromkeys(("method", "data", "network details", "code", *UNUSED["baseline"]))
    baselines = {k: v for k, v in groups.items() if v[0].settings["method"] == "baseline"}
    for label, group in groups.items():
        own = group[0].settings["code"]
        same = {k: v for k, v in baselines.items() if v[0].settings["code"] == own}
        for name, baseline in (same or baselines).items():
            both = [{run.seed: run.errors["test error"] for run in g} for g in (group, baseline)]
            pairs = [[each[seed] for each in both] for seed in both[0] if seed in both[1]]
            alike = baseline[0].settings | blank == group[0].settings | blank
            if alike and label not in baselines and len(pairs) > 1:
                center, half = paired_difference(*zip(*pairs, strict=True))
                interval = f"{center - half:+.2f} to {center + half:+.2f}"
                interval = interval if len(pairs) > 2 else "–"  # of two seeds, it says nothing
                cells = [str(len(pairs)), f"{center:+.2f}", interval]
                rows.append([f"{label} − {name}", *cells])
    title = "Difference to the baseline: top-1 test error, in percentage points"
    note = (
        "Mean difference of runs with the same seed; of three or more, its interval (Student's t)."
    )
    return [title, markdown(rows), note] if len(rows) > 1 else []


def mean_std(values: Sequence[float]) -> str:
    """Format mean ± sample standard deviation, or a single value as it is."""
    return f"{mean(values):.2f}" + (f" ± {stdev(values):.2f}" if len(values) > 1 else "")


def paired_difference(one: Sequence[float], other: Sequence[float]) -> tuple[float, float]:
    """Return the mean of `one - other` and half the width of its 95 % interval (Student's t)."""
    differences = [a - b for a, b in zip(one, other, strict=True)]
    n = len(differences)
    quantile = T_QUANTILES[min(n - 2, 9)]  # of more, the interval is a little wider
    return mean(differences), quantile * stdev(differences) / n**0.5


def markdown(rows: Sequence[Sequence[str]]) -> str:
    """Format a Markdown table with aligned columns. The first row is the header."""
    rows = [[cell.replace("|", "\\|") for cell in row] for row in rows]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    rows.insert(1, ["-" * width for width in widths])
    return "\n".join(f"| {' | '.join(map(str.ljust, row, widths))} |" for row in rows)


def plot_errors(axes, curves: dict[str, list[list[tuple]]]) -> None:
    """Plot the mean and the range of test (solid) and training errors (dashed) of `Run.curve`s."""
    axes.set(xlabel="epoch", ylabel="top-1 error, %")
    axes.xaxis.get_major_locator().set_params(integer=True, min_n_ticks=1)
    axes.grid(alpha=0.3)
    free, others = dict(COLORS), cycle(OTHER_COLORS)
    for label, runs in curves.items():
        color = f"tab:{free.pop(label.split(',')[0], None) or next(others)}"
        for part, style, width, dot in ((2, "-", 1.5, "."), (1, "--", 0.8, "x")):
            errors = [{row[0]: row[part] for row in run if row[part] is not None} for run in runs]
            epochs = sorted(set.intersection(*map(set, errors)))
            values = [[run[epoch] for run in errors] for epoch in epochs]
            (line,) = axes.plot(epochs, [*map(mean, values)], style, color=color, linewidth=width)
            line.set(marker=dot if len(epochs) <= 10 else "", label=label if part == 2 else None)
            band = [*map(min, values)], [*map(max, values)]
            axes.fill_between(epochs, *band, color=color, alpha=0.1 * part, linewidth=0)


def draw(curves: dict[str, list[list[tuple]]], path: Path) -> None:
    """Draw the error curves into a file. Raise `Incomplete` if that fails."""
    os.environ.pop("MPLBACKEND", None)  # not used, but an unknown one makes the import fail
    try:
        from matplotlib.figure import Figure

        figure = Figure(figsize=(10, 4.5), layout="constrained")
        whole, right = figure.subplots(1, 2)
        half = max(row[0] for runs in curves.values() for run in runs for row in run) / 2
        late = {k: [[row for row in run if row[0] >= half] for run in v] for k, v in curves.items()}
        plot_errors(whole, curves)
        plot_errors(right, late)
        right.set_title("second half", fontsize=10)
        whole.set_ylim(bottom=0)
        columns = max(1, 130 // max(len(label) + 8 for label in curves))
        place = {"loc": "upper center", "bbox_to_anchor": (0.5, 0), "ncols": columns}
        several = any(len(runs) > 1 for runs in curves.values())
        band = ", mean over the seeds; band: from lowest to highest"
        title = f"test error (dashed: training){band * several}"
        figure.legend(*whole.get_legend_handles_labels(), title=title, **place)
        figure.savefig(path, dpi=150, bbox_inches="tight")
    except Exception as error:  # matplotlib can be missing or broken in many ways
        raise Incomplete(f"--figure {path}: can't be drawn ({one_line(error, 200)})") from error
    print(f"\nerror curves: {path}")
