"""study/architecture.py: the figure shows what the code builds, and is legible."""

import re
from io import StringIO
from itertools import combinations

import pytest
from conftest import ROOT
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.patches import FancyBboxPatch


@pytest.fixture(scope="module")
def chains(study):
    own = study.architecture
    return own.build_chains(own.DEPTH, own.WIDTH, own.NUM_CLASSES, own.IMAGE_SIZE)


def test_paper_network(chains):
    backbone, shallow, deep = [[text.split("\n") for text in chain.boxes] for chain in chains]
    assert [box[-1] for box in backbone] == [
        "3×32×32", "16×32×32", "160×32×32", "320×16×16", "640×8×8", "640 → 100"
    ]  # fmt: skip
    assert [box[1:] for box in shallow] == [
        ["4 blocks", "320×16×16"],
        ["2 blocks", "640×8×8"],
        ["640 → 100"],
    ]
    assert [box[1:] for box in deep] == [["4 blocks", "1280×8×8"], ["1280 → 100"]]
    assert [chain.column for chain in chains] == [0, 3, 4]
    assert {chain.column + len(chain.boxes) for chain in chains} == {6}


def test_figure_follows_the_table_of_branches(study, monkeypatch):
    """A branch that is moved and made longer is drawn at its new place."""
    table = (study.wide_resnet.BranchSpec(group=0, stages=((24, 3), (40, 1), (56, 1))),)
    for module in (study.wide_resnet, study.architecture):
        monkeypatch.setattr(module, "branch_specs", lambda depth, width: table)
    _, branch = study.architecture.build_chains(10, 1, 7, 16)
    assert branch.column == 3
    assert branch.boxes == [
        "stage 1\n3 blocks\n24×8×8",
        "stage 2\n1 block\n40×4×4",
        "stage 3\n1 block\n56×2×2",
        "classifier\n56 → 7",
    ]


def test_nothing_overlaps(study, chains):
    figure = study.architecture.draw(chains)
    renderer = FigureCanvasAgg(figure).get_renderer()
    drawn = [text for axes in figure.axes for text in axes.texts]
    extents = [text.get_window_extent(renderer) for text in drawn]
    assert len(drawn) > 15
    assert not [pair for pair in combinations(extents, 2) if pair[0].overlaps(pair[1])]
    boxes = [patch.get_window_extent(renderer) for patch in figure.findobj(FancyBboxPatch)]
    assert not [pair for pair in combinations(boxes, 2) if pair[0].overlaps(pair[1])]
    for text, extent in zip(drawn, extents, strict=True):
        around = [box for box in boxes if box.overlaps(extent)]
        contained = around[0] if around else figure.bbox
        assert len(around) <= 1, text
        assert contained.containsx(extent.x0) and contained.containsx(extent.x1), text
        assert contained.containsy(extent.y0) and contained.containsy(extent.y1), text


def test_committed_figure_is_current(study, chains):
    """Compare the texts, which Matplotlib writes as comments; the rest depends on its version."""
    fresh = StringIO()
    study.architecture.draw(chains).savefig(fresh, format="svg")
    committed = (ROOT / "images" / "architecture.svg").read_text()
    texts, expected = (re.findall(r"<!-- (.*?) -->", svg) for svg in (committed, fresh.getvalue()))
    assert texts == expected and len(expected) > 15


def test_both_files_are_written(study, tmp_path, capsys):
    for folder in ("a", "b"):
        assert study.architecture.main(["--images", str(tmp_path / folder)]) == 0
    first, second = ((tmp_path / f / "architecture.svg").read_bytes() for f in ("a", "b"))
    assert first == second
    assert (tmp_path / "a" / "architecture.png").read_bytes().startswith(b"\x89PNG")
    (tmp_path / "file").touch()
    assert study.architecture.main(["--images", str(tmp_path / "file" / "x")]) == 2
    assert capsys.readouterr().err.count("\n") == 1
