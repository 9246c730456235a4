"""The paired t test: is the mean of some differences other than zero?"""

from collections.abc import Sequence
from math import atan, cos, pi, sin, sqrt
from statistics import mean, stdev
from typing import NamedTuple


class Paired(NamedTuple):
    """The mean of n differences, its confidence interval, and the p-value, two-sided."""

    n: int
    mean: float
    low: float
    high: float
    p: float


def paired_t(differences: Sequence[float], confidence: float = 0.95) -> Paired:
    """Student's t test of differences between pairs, two at least, against a mean of zero."""
    n, middle = len(differences), mean(differences)
    error = stdev(differences) / sqrt(n)
    half = quantile(confidence, n - 1) * error
    p = 1 - central(abs(middle) / error, n - 1) if error else float(not middle)
    return Paired(n, middle, middle - half, middle + half, p)


def central(t: float, freedom: int) -> float:
    """P(|T| <= t) of Student's T with so many degrees of freedom.

    The finite sums of Abramowitz and Stegun, Handbook of Mathematical Functions, 26.7.3 and
    26.7.4, in the angle atan(t / sqrt(freedom)).
    """
    angle = atan(t / sqrt(freedom))
    odd = freedom % 2
    term = cos(angle) if odd else 1.0
    total = 0.0
    for k in range(1 + odd, freedom, 2):  # the powers of the cosine: odd ones, or even ones
        total += term
        term *= cos(angle) ** 2 * k / (k + 1)
    total *= sin(angle)
    return 2 / pi * (angle + total) if odd else total


def quantile(confidence: float, freedom: int) -> float:
    """The t of which P(|T| <= t) is `confidence`, by bisection."""
    low, high = 0.0, 1.0
    while central(high, freedom) < confidence:
        low, high = high, 2 * high
    while (middle := (low + high) / 2) not in (low, high):
        if central(middle, freedom) < confidence:
            low = middle
        else:
            high = middle
    return high
