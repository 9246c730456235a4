"""What a study consists of: data, network, recipe, rows, and the runs of each row."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from common.command_line import UserError
from options import Config, parse

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
    label_smoothing: float = 0.0
    cutmix: float = 0.0  # alpha; 0: off


@dataclass(frozen=True)
class Preset:
    """A study: data, network, recipe, and groups of rows, the most important group first.

    Attributes:
        pairs: rows to compare seed by seed.
        primary: number of pairs, the first ones, whose p-values are corrected for multiple
            comparisons.
        earlier: name of a preset with runs to report beside those of this one, and their rows.
        settings: in which the gain of DKS is reported: the ends of the rows' names, and labels.
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
    earlier: tuple[str, tuple[Row, ...]] | None = None
    settings: tuple[tuple[str, str], ...] = ()
    test_every: int = 1
    split: tuple[int, int] | None = None  # classes, training images per class; None: all

    @property
    def rows(self) -> tuple[Row, ...]:
        return sum(self.groups, ())

    @property
    def reported_rows(self) -> tuple[Row, ...]:
        """The rows of the report: those of the earlier preset, then those of this preset."""
        return (self.earlier[1] if self.earlier else ()) + self.rows

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
            "label-smoothing": self.row.label_smoothing,
            "cutmix": self.row.cutmix,
            "seed": self.seed,
            "save": save,
            "resume": "auto",
        }
        dropout = ["--dropout"] if self.row.dropout else []
        return [f"--{flag}={value}" for flag, value in values.items()] + dropout

    def config(self, preset: Preset) -> Config:
        """Return the options of the run; its paths are placeholders."""
        return parse(self.command_line(preset, Path("data"), Path("run")))
