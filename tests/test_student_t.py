"""The paired t test, against printed tables and SciPy's."""

import pytest
from scipy import stats


@pytest.mark.parametrize(
    ("freedom", "confidence", "t"),
    [(1, 0.95, 12.706), (2, 0.95, 4.303), (4, 0.95, 2.776), (4, 0.99, 4.604), (30, 0.9, 1.697)],
)
def test_quantiles_of_the_printed_tables(wrn, freedom, confidence, t):
    assert round(wrn.student_t.quantile(confidence, freedom), 3) == t


@pytest.mark.parametrize("freedom", [*range(1, 12), 50, 99])
def test_distribution(wrn, freedom):
    for t in (0.0, 0.1, 1.0, 2.5, 9.0, 40.0):
        expected = 1 - 2 * stats.t.sf(t, freedom)
        assert wrn.student_t.central(t, freedom) == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize(
    "differences", [[-1.2, -0.3], [-0.9, -1.4, 0.2, -0.8, -1.1], [0.1, 0.3, -0.2, 0.0]]
)
def test_paired_test(wrn, differences):
    ours, theirs = wrn.student_t.paired_t(differences), stats.ttest_1samp(differences, 0)
    assert ours.n == len(differences)
    assert ours.p == pytest.approx(theirs.pvalue)
    assert ours[2:4] == pytest.approx(tuple(theirs.confidence_interval(0.95)))


def test_differences_that_are_all_the_same(wrn):
    assert wrn.student_t.paired_t([0.0, 0.0]) == (2, 0, 0, 0, 1)
    assert wrn.student_t.paired_t([-2.0, -2.0, -2.0]) == (3, -2, -2, -2, 0)
