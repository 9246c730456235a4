"""The figure of report.py: what must be visible for few, many and long runs and labels."""

import numpy as np
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg

LONG_LABELS = [f"dks, no dropout, batch_size {n}, lr 0.1, weight_decay 0.0005" for n in range(8)]


def curves(wrn, labels, epochs, lowest=50.0):
    """Return for each label a run whose error falls to `lowest`."""
    errors = [lowest + epochs - epoch for epoch in range(1, epochs + 1)]
    logs = wrn.run_logs
    run = [logs.Epoch(i, e, {"backbone": logs.Errors(e)}) for i, e in enumerate(errors, 1)]
    return {label: [run] for label in labels}


def render(wrn, *args, **options):
    """Draw; return the figure, its only axes and its legend."""
    figure = wrn.error_figure.draw_errors(curves(wrn, *args, **options), "test")
    FigureCanvasAgg(figure).draw()
    (axes,) = figure.axes
    return figure, axes, axes.get_legend() or figure.legends[0]


def pixels(figure, color):
    """Return the number of pixels of a color."""
    figure.canvas.draw()
    return np.all(np.asarray(figure.canvas.buffer_rgba())[..., :3] == color, axis=-1).sum()


@pytest.mark.parametrize(
    "labels",
    [["dks"], ["baseline", "ds", "dks"], LONG_LABELS, [f"dks, lr {n}" for n in range(20)],
     ["dks, " + "a long folder name/" * 12]],
)  # fmt: skip
def test_the_legend_is_on_the_canvas_and_leaves_the_axes_their_size(wrn, labels):
    figure, axes, legend = render(wrn, labels, 200)
    place, box = axes.get_position(), legend.get_window_extent()
    assert place.width > 0.75 and place.height * figure.get_figheight() > 3
    assert box.x0 >= 0 and box.y0 >= 0
    assert box.x1 <= figure.bbox.x1 and box.y1 <= figure.bbox.y1
    if len(labels) > 4:
        assert box.y1 < axes.get_tightbbox().y0
    texts = [text.get_text().replace("\n", " ") for text in legend.get_texts()]
    assert texts == [label.strip() for label in labels]
    assert len({line.get_color() for line in axes.lines}) == len(labels)


@pytest.mark.parametrize("epochs", [1, 2, 3, 10, 15, 200])
def test_epoch_ticks_are_whole_numbers(wrn, epochs):
    _, axes, _ = render(wrn, ["dks"], epochs)
    low, high = axes.get_xlim()
    ticks = [tick for tick in axes.get_xticks() if low <= tick <= high]
    assert ticks and all(tick == int(tick) for tick in ticks)
    labels = [text.get_text() for text in axes.get_xticklabels()]
    assert not any("." in label for label in labels)


def test_a_run_of_one_epoch_is_visible(wrn):
    """Also beside a long one."""
    for others in ({}, curves(wrn, ["ds"], 200)):
        figure = wrn.error_figure.draw_errors(others | curves(wrn, ["dks"], 1), "test")
        FigureCanvasAgg(figure).draw()
        figure.axes[0].get_legend().remove()
        assert pixels(figure, (214, 39, 40)) > 10  # tab:red


def test_the_error_axis_starts_at_0_only_near_the_data(wrn):
    assert render(wrn, ["dks"], 20, lowest=50.0)[1].get_ylim()[0] > 40
    assert render(wrn, ["dks"], 20, lowest=1.0)[1].get_ylim()[0] == 0
