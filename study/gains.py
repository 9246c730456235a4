"""The gain of DKS over its own baseline, in the settings of a study: a table and a figure."""

from statistics import mean
from typing import NamedTuple

from matplotlib.figure import Figure

from common.error_figure import COLORS
from common.flag_groups import METHODS
from common.run_report import format_mean_std
from study.comparisons import confidence_interval, format_interval
from study.logs import Study
from study.presets import Preset

TITLES = (
    "setting", "seeds", "baseline", "DS", "DKS", "DKS − baseline", "95 % interval",
    "− that of the plain recipe, same seeds", "95 % interval",
)  # fmt: skip


class Gain(NamedTuple):
    """What DKS gains in a setting.

    Args:
        label: of the setting.
        by_seed: the last test errors of DKS minus those of the baseline, by seed, in points.
        errors: the last test errors of all runs of each method, in percent.
    """

    label: str
    by_seed: dict[int, float]
    errors: dict[str, list[float]]


def read_gains(study: Study, preset: Preset) -> list[Gain]:
    """Return the gains in the preset's settings for which at least two pairs are finished."""
    gains = []
    for suffix, label in preset.settings:
        errors = {
            method: {
                seed: 100 - run.epochs[-1]["test_acc"]
                for seed, run in sorted(study.get(method + suffix, {}).items())
            }
            for method in METHODS
        }
        dks, baseline = errors["dks"], errors["baseline"]
        by_seed = {seed: dks[seed] - baseline[seed] for seed in dks if seed in baseline}
        if len(by_seed) > 1:
            values = {method: list(each.values()) for method, each in errors.items()}
            gains.append(Gain(label, by_seed, values))
    return gains


def gain_rows(gains: list[Gain]) -> list[tuple[str, ...]]:
    """Return the cells under `TITLES`. The first setting is the plain recipe."""
    lines = []
    plain = gains[0].by_seed if gains else {}
    for index, (label, by_seed, errors) in enumerate(gains):
        values = list(by_seed.values())
        means = [format_mean_std(errors[method]) if errors[method] else "" for method in METHODS]
        cells = [label, f"{len(values)}", *means, f"{mean(values):+.2f}", format_interval(values)]
        seeds = by_seed.keys() & plain.keys()
        if index and len(seeds) > 1:
            change = [by_seed[seed] - plain[seed] for seed in sorted(seeds)]
            cells += [f"{mean(change):+.2f}", format_interval(change)]
        else:
            cells += ["", ""]
        lines.append(tuple(cells))
    return lines


def draw_gains(gains: list[Gain]) -> Figure:
    """Draw a row for each setting: a dot per seed, and the mean with its 95 % interval."""
    figure = Figure(figsize=(7, 1.2 + 0.55 * len(gains)), layout="constrained")
    axes = figure.add_subplot(xlabel="test error of DKS − that of its baseline, points")
    for y, gain in enumerate(gains):
        values = list(gain.by_seed.values())
        # Each seed at its own height, because two may have the same difference.
        heights = [y - 0.15 - 0.06 * index for index in range(len(values))]
        axes.plot(values, heights, "o", color=COLORS["dks"], alpha=0.6, markersize=4)
        low, high = confidence_interval(values)
        axes.errorbar(
            mean(values), y, xerr=(high - low) / 2, fmt="|", color=COLORS["dks"],
            markersize=16, markeredgewidth=2, capsize=4,
        )  # fmt: skip
    axes.axvline(0, color="gray", linewidth=0.8)
    axes.set_yticks(
        range(len(gains)), [f"{gain.label} (n = {len(gain.by_seed)})" for gain in gains]
    )
    axes.invert_yaxis()
    axes.margins(y=0.12)
    axes.grid(axis="x", alpha=0.3)
    axes.set_title("dots: seeds, the first lowest; bars: mean and its 95 % interval", fontsize=9)
    return figure
