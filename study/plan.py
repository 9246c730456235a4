"""The plan of the study: data, network, recipe, and the runs."""

import argparse
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from common.command_line import UserError, bounded_number
from evaluate import check_network
from options import Config, parse

# Sizes of the scaled study, chosen by time and by the baseline's training error: study/README.md.
NUM_CLASSES = 20  # the first ones by name
TRAIN_IMAGES = 50  # of each class, the first ones by name; all others are test images
IMAGE_SIZE = 16  # side in pixels
DEPTH = 16
WIDTH = 1
EPOCHS = 625
BATCH_SIZE = 64
TEST_EVERY = 5  # epochs; there are five times as many test images as training images

LOGS = Path(__file__).parent  # holds one folder of logs per preset
MILESTONES = (0.3, 0.6, 0.8)  # fractions of the epochs: the paper's 60, 120 and 160 of 200


@dataclass(frozen=True)
class Row:
    """Runs that differ only in the seed, which goes from 1 to `seeds`."""

    name: str
    method: str
    seeds: int = 5
    direction: str = "bidirectional"
    dropout: bool = False
    dtype: str = "float32"
    first_class: int = 0  # of a split of the data, counted from 0


@dataclass(frozen=True)
class Preset:
    """A study: data, network, recipe, and groups of rows, the most important group first.

    Attributes:
        pairs: rows to compare seed by seed.
        primary: number of pairs, the first ones, whose p-values are corrected for multiple
            comparisons.
        earlier: name of the preset whose runs of `METHODS` are reported beside those of this one.
    """

    dataset: str
    depth: int
    width: float
    image_size: int
    epochs: int
    batch_size: int
    groups: tuple[tuple[Row, ...], ...]
    pairs: tuple[tuple[str, str], ...]
    primary: int = 0
    earlier: str | None = None
    test_every: int = 1
    split: tuple[int, int] | None = None  # classes, training images per class; None: all

    @property
    def rows(self) -> tuple[Row, ...]:
        return sum(self.groups, ())

    @property
    def reported_rows(self) -> tuple[Row, ...]:
        """The rows of the report: the earlier preset's `METHODS`, then those of this preset."""
        return (METHODS if self.earlier else ()) + self.rows

    @property
    def milestones(self) -> list[int]:
        """The 1-based epochs at whose start the learning rate drops."""
        return [max(1, round(fraction * self.epochs)) for fraction in MILESTONES]

    def runs(self) -> "Iterator[Run]":
        """Yield all runs group by group, and within a group seed by seed."""
        for group in self.groups:
            for seed in range(1, 1 + max((row.seeds for row in group), default=0)):
                yield from (Run(row, seed) for row in group if seed <= row.seeds)

    def reduced(self, names: Sequence[str] | None, **sizes: float | None) -> "Preset":
        """Return the preset with only the named rows and with other sizes or `seeds`.

        Args:
            names: of the rows; None keeps all of them.
            sizes: fields of the preset, or `seeds`; None keeps the preset's value.

        Raises:
            UserError: a row does not exist.
        """
        known = [row.name for row in self.rows]
        names = names or known
        if unknown := [name for name in names if name not in known]:
            raise UserError(f"--rows {unknown[0]}: no such row; choose from {', '.join(known)}")
        given = {key: value for key, value in sizes.items() if value is not None}
        seeds = {"seeds": given.pop("seeds")} if "seeds" in given else {}
        groups = (
            tuple(replace(row, **seeds) for row in group if row.name in names)
            for group in self.groups
        )
        # Runs of other sizes can't be compared with the earlier ones.
        return replace(self, groups=tuple(groups), earlier=None if given else self.earlier, **given)

    def __str__(self) -> str:
        data = self.dataset
        if self.split:
            num_classes, images = self.split
            data = f"{num_classes} classes × {images} images of {self.image_size}×{self.image_size}"
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
        """Return the arguments of `main.py` that start or resume the run."""
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
        dropout = ["--dropout"] if self.row.dropout else []
        return [f"--{flag}={value}" for flag, value in values.items()] + dropout

    def config(self, preset: Preset) -> Config:
        """Return the options of the run; its paths are placeholders."""
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
DTYPES = (Row("dks-bfloat16", "dks", 3, dtype="bfloat16"),)


def variants(suffix: str, seeds: int, **changes: object) -> tuple[Row, ...]:
    """Return the rows of `METHODS` with other options, named with a suffix."""
    return tuple(
        replace(row, name=f"{row.name}-{suffix}", seeds=seeds, **changes) for row in METHODS
    )


REPLICATION = variants("21to40", 5, first_class=NUM_CLASSES)

MAIN_PAIRS = (("dks", "ds"), ("dks", "baseline"), ("ds", "baseline"))
DROPOUT_PAIR = ("dks-dropout", "baseline-dropout")

SCALED = Preset(
    dataset="folder",
    depth=DEPTH,
    width=WIDTH,
    image_size=IMAGE_SIZE,
    epochs=EPOCHS,
    batch_size=BATCH_SIZE,
    groups=(METHODS, DIRECTIONS, DROPOUT, DTYPES),
    pairs=(
        *MAIN_PAIRS,  # the first two are the study's main comparisons
        ("dks-top-down", "dks"),
        ("dks-bottom-up", "dks"),
        DROPOUT_PAIR,
        ("dks-bfloat16", "dks"),
    ),
    test_every=TEST_EVERY,
    split=(NUM_CLASSES, TRAIN_IMAGES),
)
PRESETS = {
    "scaled": SCALED,
    "follow-up": replace(
        SCALED,
        groups=(REPLICATION,),
        pairs=(("dks-21to40", "ds-21to40"), ("dks-21to40", "baseline-21to40")),
        primary=2,
        earlier="scaled",
    ),
    "paper": Preset(
        dataset="CIFAR100",
        depth=28,
        width=10,
        image_size=32,
        epochs=200,
        batch_size=128,
        groups=(METHODS, tuple(replace(row, seeds=5) for row in DROPOUT)),
        pairs=(*MAIN_PAIRS, DROPOUT_PAIR),
    ),
}


def add_plan_flags(parser: argparse.ArgumentParser) -> None:
    """Add the flags that choose a preset or reduce it."""
    plan = parser.add_argument_group("plan")
    text = "scaled: small networks on images, for a CPU; paper: WRN-28-10 on CIFAR-100, for a GPU"
    plan.add_argument("--preset", choices=PRESETS, default="scaled", help=text)
    plan.add_argument("--rows", nargs="+", metavar="NAME", help="only these rows (default: all)")
    for flag, number, text in (
        ("--seeds", bounded_number(int, 1), "runs of each row"),
        ("--epochs", bounded_number(int, 1), "epochs of each run"),
        ("--depth", bounded_number(int, 10), "depth of the network, 6n + 4"),
        ("--width", bounded_number(float, 1 / 16), "widening factor of the network"),
    ):
        plan.add_argument(flag, type=number, help=f"{text} (default: the preset's)")
    plan.add_argument(
        "--logs",
        type=Path,
        metavar="DIR",
        help="folder of the study's logs; choose a new one for a different plan, or together with "
        f"a new --out to train everything again (default: {LOGS.name}/PRESET)",
    )


def chosen_plan(options: argparse.Namespace) -> tuple[Preset, Path]:
    """Return the preset, reduced by the flags, and the folder of its logs.

    Raises:
        UserError: a row or a network of that size does not exist.
    """
    sizes = {name: getattr(options, name) for name in ("seeds", "epochs", "depth", "width")}
    preset = PRESETS[options.preset].reduced(options.rows, **sizes)
    for run in preset.runs():
        check_network(run.config(preset))  # refuses what `main.py` would
    return preset, options.logs or LOGS / options.preset
