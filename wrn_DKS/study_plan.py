"""The plan of the study: its sizes, its rows, and the runs that they make."""

import argparse
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from command_line import Refused, number
from options import Config, parse

# Sizes of the scaled study, chosen by time and by the baseline's training error: study/README.md.
CLASSES = 20  # the first ones by name
TRAIN_IMAGES = 50  # of each class, the first ones by name; all others are for testing
IMAGE_SIZE = 16  # side in pixels
DEPTH = 16
WIDTH = 1
EPOCHS = 625
BATCH_SIZE = 64
TEST_EVERY = 5  # epochs, as there are five times as many images to test as to train on

LOGS = Path(__file__).with_name("study")
MILESTONES = (0.3, 0.6, 0.8)  # shares of the epochs: the paper's 60, 120 and 160 of 200


@dataclass(frozen=True)
class Row:
    """Runs that differ in nothing but the seed, which goes from 1 to `seeds`."""

    name: str
    method: str
    seeds: int = 5
    direction: str = "bidirectional"
    dropout: bool = False
    dtype: str = "float32"


@dataclass(frozen=True)
class Preset:
    """A study: data, network, recipe, and its rows in groups, the most important group first."""

    dataset: str
    depth: int
    width: float
    image_size: int
    epochs: int
    batch_size: int
    groups: tuple[tuple[Row, ...], ...]
    test_every: int = 1
    split: tuple[int, int] | None = None  # classes, training images of each; None: all there are

    @property
    def rows(self) -> tuple[Row, ...]:
        return sum(self.groups, ())

    @property
    def milestones(self) -> list[int]:
        """The epochs, counted from 1, at whose start the learning rate falls."""
        return [max(1, round(share * self.epochs)) for share in MILESTONES]

    def runs(self) -> "Iterator[Run]":
        """All runs, group after group; in a group the runs of a seed come one after the other."""
        for group in self.groups:
            for seed in range(1, max((row.seeds for row in group), default=0) + 1):
                yield from (Run(row, seed) for row in group if seed <= row.seeds)

    def reduced(self, names: Sequence[str] | None, **sizes: float | None) -> "Preset":
        """The preset with these rows only, and with other sizes or `seeds`; None: as it is.

        Raises:
            Refused: there is no such row.
        """
        known = [row.name for row in self.rows]
        names = names or known
        if strangers := [name for name in names if name not in known]:
            raise Refused(f"--rows {strangers[0]}: no such row; there are {', '.join(known)}")
        given = {key: value for key, value in sizes.items() if value is not None}
        seeds = {"seeds": given.pop("seeds")} if "seeds" in given else {}
        groups = (
            tuple(replace(row, **seeds) for row in group if row.name in names)
            for group in self.groups
        )
        return replace(self, groups=tuple(groups), **given)

    def __str__(self) -> str:
        data = self.dataset
        if self.split:
            classes, images = self.split
            data = f"{classes} classes × {images} images of {self.image_size}×{self.image_size}"
        return (
            f"WRN-{self.depth}-{self.width:g} on {data}: {self.epochs} epochs in batches of "
            f"{self.batch_size}, the learning rate falls at {self.milestones}; "
            f"{len(list(self.runs()))} runs"
        )


@dataclass(frozen=True)
class Run:
    """One run of `main.py`."""

    row: Row
    seed: int

    @property
    def name(self) -> str:
        return f"{self.row.name}-seed{self.seed}"

    def command_line(self, preset: Preset, dataroot: Path, save: Path) -> list[str]:
        """The words for `main.py` that start the run, or go on with it."""
        values = {
            "dataset": preset.dataset,
            "dataroot": dataroot,
            "image-size": preset.image_size,
            "depth": preset.depth,
            "width": preset.width,
            "epochs": preset.epochs,
            "batch_size": preset.batch_size,
            "epoch_step": preset.milestones,
            "test_every": preset.test_every,
            "method": self.row.method,
            "direction": self.row.direction,
            "dtype": self.row.dtype,
            "seed": self.seed,
            "save": save,
            "resume": "auto",
        }
        return [f"--{flag}={value}" for flag, value in values.items()] + (
            ["--dropout"] if self.row.dropout else []
        )

    def config(self, preset: Preset) -> Config:
        """What these words mean; its paths are of no meaning."""
        return parse(self.command_line(preset, Path("data"), Path("run")))


METHODS = (Row("baseline", "baseline"), Row("ds", "ds"), Row("dks", "dks"))
DIRECTIONS = (
    Row("dks-top-down", "dks", 3, direction="top-down"),
    Row("dks-bottom-up", "dks", 3, direction="bottom-up"),
)
DROPOUT = (
    Row("baseline-dropout", "baseline", 3, dropout=True),
    Row("dks-dropout", "dks", 3, dropout=True),
)
NUMBER_TYPES = (Row("dks-bfloat16", "dks", 3, dtype="bfloat16"),)

PRESETS = {
    "scaled": Preset(
        "folder",
        DEPTH,
        WIDTH,
        IMAGE_SIZE,
        EPOCHS,
        BATCH_SIZE,
        (METHODS, DIRECTIONS, DROPOUT, NUMBER_TYPES),
        test_every=TEST_EVERY,
        split=(CLASSES, TRAIN_IMAGES),
    ),
    "paper": Preset(
        "CIFAR100",
        depth=28,
        width=10,
        image_size=32,
        epochs=200,
        batch_size=128,
        groups=(METHODS, tuple(replace(row, seeds=5) for row in DROPOUT)),
    ),
}

# Pairs of rows to compare seed by seed; the first two are what the study is for.
PAIRS = (
    ("dks", "ds"),
    ("dks", "baseline"),
    ("ds", "baseline"),
    ("dks-top-down", "dks"),
    ("dks-bottom-up", "dks"),
    ("dks-dropout", "baseline-dropout"),
    ("dks-bfloat16", "dks"),
)


def add_plan_flags(parser: argparse.ArgumentParser) -> None:
    """The flags that choose a preset, or a smaller study of the same kind."""
    plan = parser.add_argument_group("plan")
    plan.add_argument(
        "--preset",
        choices=PRESETS,
        default="scaled",
        help="scaled: small networks on a folder of images, for a CPU; paper: WRN-28-10 on "
        "CIFAR-100, for a GPU",
    )
    plan.add_argument("--rows", nargs="+", metavar="NAME", help="these rows only (all)")
    plan.add_argument("--seeds", type=number(int, 1), help="runs of each row (the preset's)")
    plan.add_argument("--epochs", type=number(int, 1), help="epochs of a run (the preset's)")
    plan.add_argument("--depth", type=number(int, 10), help="6n + 4 (the preset's)")
    plan.add_argument("--width", type=number(float, 1 / 16), help="of the network (the preset's)")
    plan.add_argument(
        "--logs",
        type=Path,
        metavar="DIR",
        help="the study's logs; another folder for "
        f"another plan, or to run it anew with another --out ({LOGS.name}/PRESET)",
    )


def chosen_plan(options: argparse.Namespace) -> tuple[Preset, Path]:
    """The preset as the flags have it, and the folder of its logs.

    Raises:
        Refused: there is no such row or network.
    """
    sizes = {name: getattr(options, name) for name in ("seeds", "epochs", "depth", "width")}
    preset = PRESETS[options.preset].reduced(options.rows, **sizes)
    for run in preset.runs():
        run.config(preset)  # refuses what `main.py` would
    return preset, options.logs or LOGS / options.preset
