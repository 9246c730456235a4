"""The progress bar of wrn_DKS/: one line that fits the terminal; none in redirected output."""

import io
import re

import pytest

COLUMNS = (44, 60, 80, 100, 200)


@pytest.fixture
def render(wrn):
    """Return the bar's line at the given width, at 41 % of an epoch."""

    def render(columns, left_s=7_500.0):
        progress = wrn.progress
        bar = progress.Bar(total=100, desc="epoch 123/200", file=io.StringIO())
        bar.dynamic_ncols, bar.ncols = None, columns
        bar.statuses = progress.status_texts(12.3456, 71.234, 1480.4, left_s)
        bar.update(41)
        line = str(bar)
        bar.close()
        return line

    return render


@pytest.mark.parametrize("columns", COLUMNS)
@pytest.mark.parametrize("left_s", [0.0, 59.0, 3599.0, 86_000.0, 20 * 86_400.0])
def test_bar_fits_with_one_remaining_time(render, columns, left_s):
    line = render(columns, left_s)
    assert len(line) <= columns and line.endswith(" left") and line.count("left") == 1
    assert re.match(r"epoch 123/200  41%\|.{4,}\| ", line)
    assert "?" not in line and "it/s" not in line


def test_more_is_said_where_there_is_room(render):
    assert [render(columns).split("| ")[1] for columns in COLUMNS[:3]] == [
        "2 h 05 min left",
        "error 71.2 %, 2 h 05 min left",
        "loss 12.35 error 71.2 % 1480 img/s, 2 h 05 min left",
    ]


def test_no_bar_in_redirected_output(wrn, capsys):
    with wrn.progress.Progress("epoch 1/2", 3, 3) as progress:
        for _ in progress.over(range(3)):
            progress.show(8, 1.0, 50.0)
    assert capsys.readouterr() == ("", "")


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0.4, "0 s"),
        (59.4, "59 s"),
        (59.6, "1 min 00 s"),
        (3599.4, "59 min 59 s"),
        (3599.6, "1 h 00 min"),
        (86_399.6, "1 d 0 h"),
        (2 * 86_400 + 3 * 3600 + 59 * 60, "2 d 3 h"),
    ],
)
def test_durations_have_two_units_and_are_rounded(wrn, seconds, text):
    assert wrn.progress.format_duration(seconds) == text
