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
    mixed, tf32 = (
        rate * RESNET50_MULTIPLY_ADDS / cost.multiply_adds
        for rate in map(number, re.search(RATES, text).groups())
    )
    for cell, rate in ((cells[2], mixed), (cells[3], tf32)):
        hours = epochs * images / rate / 3600
        assert cell == (f"{hours:.1f} h" if hours < 10 else f"{hours:.0f} h")
    if cells[4]:
        decoded = number(re.search(r"crops (\d+) photographs", text)[1])
        assert number(cells[4]) == -(-mixed // decoded)
    assert cells[6] == f"{12 * cost.parameters / 2**30:.1f}"  # three numbers of four bytes each
