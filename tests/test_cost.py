"""docs/cost.md: the table follows from the networks and the published rates in its text."""

import re
from functools import partial

import pytest
from conftest import ROOT

RATES = r"([\d,]+) images per second in mixed\s+precision and ([\d,]+) in TF32"
RESNET50_MULTIPLY_ADDS = 4_089_184_256  # of a forward pass on an image of 224x224 pixels


def number(text: str) -> float:
    return float(text.replace(",", ""))


@pytest.fixture(scope="module")
def text():
    return (ROOT / "docs" / "cost.md").read_text()


def test_published_rates_are_these_shares_of_the_peak(text):
    rates = re.search(
        RATES + r", which are (\d+) % "
        r"and (\d+) % of its peak \((\d+) and\s+(\d+) TFLOP/s\)",
        text,
    )
    *rates, mixed_share, tf32_share, mixed_peak, tf32_peak = map(number, rates.groups())
    for rate, share, peak in zip(
        rates, (mixed_share, tf32_share), (mixed_peak, tf32_peak), strict=True
    ):
        operations = 2 * 3 * RESNET50_MULTIPLY_ADDS * rate  # forward and backward
        assert round(100 * operations / (peak * 1e12)) == share


NAMES = ["WRN-28-10, baseline", "WRN-28-10, DKS", "ResNet-18, DKS", "ResNet-50, DKS"]


def gpu_hours(text, images, multiply_adds):
    """The hours on an A100 in mixed precision and in TF32."""
    rates = map(number, re.search(RATES, text).groups())
    return [images / (rate * RESNET50_MULTIPLY_ADDS / multiply_adds) / 3600 for rate in rates]


def describe(hours):
    return f"{hours:.1f} h" if hours < 10 else f"{hours:.0f} h"


def test_hours_of_the_studies(wrn, study, text):
    presets = {name: study.presets.PRESETS[name] for name in ("paper", "modern")}
    assert len({(p.depth, p.width, p.epochs) for p in presets.values()}) == 1  # the same networks
    hours, size = {}, presets["paper"]
    for branches in (False, True):
        network = partial(wrn.wide_resnet.WideResNet, size.depth, size.width, 100)
        cost = wrn.metrics.cost(partial(network, branches=branches), 32)
        hours[branches] = gpu_hours(text, size.epochs * 50_000, cost.multiply_adds)
    for name, preset in presets.items():
        runs = [hours[run.row.method != "baseline"] for run in preset.runs()]
        mixed, tf32 = map(describe, map(sum, zip(*runs, strict=True)))
        assert f"| `--preset {name}` | {len(runs)} | {mixed} | {tf32} |" in text


@pytest.mark.parametrize("name", [*NAMES, "ResNet-152, DKS"])
def test_row_of_a_network(wrn, imagenet, text, name):
    """Compare all but the activations with the values computed from the network."""
    row = next(line for line in text.splitlines() if line.startswith(f"| {name} |"))
    cells = [cell.strip() for cell in row.strip("| ").split("|")]
    epochs, images = map(number, cells[1].split(" × "))
    if name.startswith("WRN"):
        branches = name.endswith("DKS")
        network = partial(wrn.wide_resnet.WideResNet, 28, 10, 100, branches=branches)
        cost = wrn.metrics.cost(network, 32)
    else:
        arch = name.split(",")[0].replace("-", "").lower()
        cost = imagenet.metrics.cost(partial(imagenet.resnet.build, arch), 224)
    hours = gpu_hours(text, epochs * images, cost.multiply_adds)
    assert cells[2:4] == list(map(describe, hours))
    if cells[4]:
        decoded = number(re.search(r"crops (\d+) photographs", text)[1])
        assert number(cells[4]) == -(-epochs * images / hours[0] / 3600 // decoded)
    assert cells[6] == f"{12 * cost.parameters / 2**30:.1f}"  # three numbers of four bytes each
