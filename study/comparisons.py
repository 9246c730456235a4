"""Paired comparisons: Student's t-test, confidence intervals, and Holm's correction."""

import warnings
from collections.abc import Sequence
from statistics import mean

from scipy import stats


def confidence_interval(differences: Sequence[float]) -> tuple[float, float]:
    """Return the 95 % confidence interval of the mean of at least two values."""
    n = len(differences)
    half = stats.t.ppf(0.975, n - 1) * stats.sem(differences)
    return mean(differences) - half, mean(differences) + half


def p_value(differences: Sequence[float]) -> float:
    """Return the two-sided p-value of the paired t-test with these differences."""
    if not any(differences):
        return 1.0  # nan in SciPy
    with warnings.catch_warnings(action="ignore"):  # about differences that are all equal
        return float(stats.ttest_1samp(differences, 0).pvalue)


def holm(p_values: Sequence[float], count: int) -> list[float]:
    """Correct p-values with Holm's method (1979) for `count` tests.

    There may be fewer values than tests, while some are not known yet. They are then taken to be
    the smallest ones, which corrects them at most too much.
    """
    corrected, largest = [0.0] * len(p_values), 0.0
    for rank, index in enumerate(sorted(range(len(p_values)), key=p_values.__getitem__)):
        largest = max(largest, min(1.0, (count - rank) * p_values[index]))
        corrected[index] = largest
    return corrected


def format_interval(differences: Sequence[float]) -> str:
    """Return the 95 % confidence interval of the mean as text."""
    low, high = confidence_interval(differences)
    return f"{low:+.2f} to {high:+.2f}"


def format_p(p: float) -> str:
    return f"{p:.3f}" if p >= 0.001 else "< 0.001"
