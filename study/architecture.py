"""Draw WRN-28-10 with its auxiliary branches, as the code builds it for CIFAR-100.

    python study/architecture.py --images images

writes architecture.png and architecture.svg. All shapes come from a forward pass of the network,
and the branches leave the backbone where the table of branches says.
"""

import argparse
import sys
from collections.abc import Sequence
from itertools import combinations
from pathlib import Path
from typing import NamedTuple

# The repository's folder, and the script folder that the figure is about.
sys.path.insert(0, str(Path(__file__).parents[1]))
sys.path.insert(0, str(Path(__file__).parents[1] / "wrn_DKS"))

import matplotlib
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Circle, FancyArrowPatch, FancyBboxPatch
from torch import Tensor, nn

from common.command_line import ArgumentParser, exit_status
from common.run_logs import classifier_names
from wide_resnet import WideResNet, branch_specs

IMAGES = Path(__file__).parents[1] / "images"
DEPTH, WIDTH, NUM_CLASSES, IMAGE_SIZE = 28, 10, 100, 32
FACES = ("#dbe7f6", "#fde3cf", "#dff0d8")  # backbone, shallow branch, deep branch
EDGES = ("#2f5f9e", "#b8621b", "#3f7f35")
MATCHING, INK = "#c0142c", "#222222"
CAPTION = """Each classifier learns from the labels and, along the red arrows, from the \
probabilities p of every other one:
a Kullback-Leibler divergence for each direction of each pair. The branches are dropped after \
training."""
# Lengths in inches.
BOX = (1.08, 0.66)
COLUMN, ROW = 1.34, 1.0
LEFT, BOTTOM = 0.68, 0.98
RADIUS = 0.17


class Chain(NamedTuple):
    """The backbone or a branch: texts of its boxes from left to right, the classifier last."""

    name: str
    column: int  # of its first box
    boxes: list[str]


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line and return the exit status."""
    return exit_status(lambda: run(parse(argv)))


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = ArgumentParser(
        prog="study/architecture.py", description="Draw WRN-28-10 with its branches."
    )
    parser.add_argument(
        "--images", type=Path, default=IMAGES, metavar="DIR", help="folder for both files"
    )
    return parser.parse_args(argv)


def run(options: argparse.Namespace) -> None:
    """Draw the network and write both files.

    Raises:
        OSError: a file cannot be written.
    """
    options.images.mkdir(parents=True, exist_ok=True)
    figure = draw(build_chains(DEPTH, WIDTH, NUM_CLASSES, IMAGE_SIZE))
    # Without a date and with a fixed salt, the file is the same each time.
    with matplotlib.rc_context({"svg.hashsalt": "architecture"}):
        figure.savefig(options.images / "architecture.svg", metadata={"Date": None})
    figure.savefig(options.images / "architecture.png", dpi=200)
    print(f"figures: {options.images / 'architecture.png'} and .svg")


def build_chains(depth: int, width: float, num_classes: int, image_size: int) -> list[Chain]:
    """Return the backbone and its branches, shallow first, with the shapes of a forward pass."""
    shapes: dict[nn.Module, str] = {}

    def record_shape(module: nn.Module, inputs: tuple, output: Tensor | tuple) -> None:
        if isinstance(output, Tensor):  # the network itself returns a tuple
            shapes[module] = shape_text(output)

    with torch.device("meta"), torch.no_grad():
        model = WideResNet(depth, width, num_classes).eval()
        for module in model.modules():
            module.register_forward_hook(record_shape)
        image = torch.empty(1, 3, image_size, image_size)
        model(image)

    def blocks(stages: Sequence[nn.Module], title: str) -> list[str]:
        return [
            f"{title.format(i)}\n{len(stage)} block{'s' * (len(stage) > 1)}\n{shapes[stage]}"
            for i, stage in enumerate(stages, 1)
        ]

    def classifier(module: nn.Module) -> str:
        return f"classifier\n{module.fc.in_features} → {module.fc.out_features}"

    names = classifier_names(1 + len(model.branches))
    start = [f"image\n{shape_text(image)}", f"3×3 conv\n{shapes[model.stem]}"]
    middle = blocks(model.groups, "group {}")
    chains = [Chain(names[0], 0, [*start, *middle, classifier(model.classifier)])]
    table = branch_specs(depth, width)
    for name, row, branch in zip(names[1:], table, model.branches, strict=True):
        boxes = [*blocks(branch.stages, "stage {}"), classifier(branch.classifier)]
        chains.append(Chain(name, len(start) + row.group + 1, boxes))
    return chains


def shape_text(output: Tensor) -> str:
    """Return channels, height and width, such as `16×32×32`."""
    return "×".join(map(str, output.shape[1:]))


def draw(chains: list[Chain]) -> Figure:
    """Draw the chains as rows, the backbone on top, and the matching of their probabilities."""
    count, columns = len(chains), len(chains[0].boxes)
    size = (LEFT + COLUMN * columns + 0.66, BOTTOM + ROW * (count - 1) + 0.78)
    figure = Figure(figsize=size, facecolor="white")  # also on a dark page
    axes = figure.add_axes((0, 0, 1, 1), xlim=(0, size[0]), ylim=(0, size[1]))
    axes.axis("off")
    for index, chain in enumerate(chains):
        y = row_height(index, count)
        draw_chain(axes, chain, y, index)
        label(axes, center(columns), y, "p", index, RADIUS)
        arrow(axes, (center(columns - 1) + BOX[0] / 2, y), (center(columns) - RADIUS, y))
        if index:
            top = row_height(0, count) - BOX[1] / 2
            draw_exit(axes, chain, y, top, EDGES[index])
    for one, other in combinations(range(count), 2):
        draw_match(axes, center(columns), row_height(one, count), row_height(other, count))
    axes.text(center(0) - BOX[0] / 2, size[1] - 0.3, chains[0].name, color=EDGES[0], fontsize=10)
    axes.text(size[0] / 2, 0.14, CAPTION, ha="center", fontsize=9, linespacing=1.4)
    return figure


def center(column: int) -> float:
    return LEFT + COLUMN * column


def row_height(index: int, count: int) -> float:
    """Return y of a chain: the backbone (index 0) on top, then the deep and the shallow branch."""
    return BOTTOM + ROW * (index - 1 if index else count - 1)


def draw_chain(axes: Axes, chain: Chain, y: float, index: int) -> None:
    """Draw a row of boxes with arrows between them."""
    for column, text in enumerate(chain.boxes, chain.column):
        label(axes, center(column), y, text, index)
        if column > chain.column:
            arrow(axes, (center(column - 1) + BOX[0] / 2, y), (center(column) - BOX[0] / 2, y))


def draw_exit(axes: Axes, chain: Chain, y: float, top: float, color: str) -> None:
    """Draw how a branch leaves the backbone, from below the box left of its column."""
    x = center(chain.column - 1)
    axes.plot([x, x], [top, y], color=INK, linewidth=1)
    arrow(axes, (x, y), (center(chain.column) - BOX[0] / 2, y))
    text = f"{chain.name},\nonly in training"
    axes.text(x - 0.1, y, text, ha="right", va="center", color=color, fontsize=10)


def draw_match(axes: Axes, x: float, y: float, other: float) -> None:
    """Draw a two-way arrow between the probabilities of two classifiers, around any in between."""
    far = abs(y - other) > 1.5 * ROW
    side = RADIUS if far else 0
    turn = RADIUS * (1 if y > other else -1) * (not far)
    arrow(
        axes, (x + side, y - turn), (x + side, other + turn), style="<|-|>", color=MATCHING,
        linewidth=1.8, connectionstyle=f"arc3,rad={-0.2 if far else 0}",
    )  # fmt: skip


def label(
    axes: Axes, x: float, y: float, text: str, index: int, radius: float | None = None
) -> None:
    """Draw a text in a box, or in a circle if a radius is given."""
    colors = {"facecolor": FACES[index], "edgecolor": EDGES[index]}
    if radius:
        axes.add_patch(Circle((x, y), radius, **colors))
    else:
        corner = (x - BOX[0] / 2, y - BOX[1] / 2)
        axes.add_patch(FancyBboxPatch(corner, *BOX, "round,pad=0,rounding_size=0.07", **colors))
    axes.text(x, y, text, ha="center", va="center", fontsize=9, color=INK)


def arrow(
    axes: Axes, start: tuple[float, float], end: tuple[float, float], style: str = "-|>",
    color: str = INK, **more,
) -> None:  # fmt: skip
    axes.add_patch(
        FancyArrowPatch(
            start, end, arrowstyle=style, color=color, mutation_scale=10,
            shrinkA=0, shrinkB=0, **more,
        )
    )  # fmt: skip


if __name__ == "__main__":
    sys.exit(main())
