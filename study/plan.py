"""The plan of each study: network, data and rows, and the runs of each row."""

from dataclasses import dataclass, replace
from pathlib import Path

from common.command_line import choice
from common.options import COUNT, METHODS, run_flag
from flags import Config, with_recipe

LOGS = Path(__file__).parent  # holds a folder of logs for each preset

# A row is named after its method and what it changes: options of `main.py`.
CHANGES = {
    "": {},
    "top-down": {"direction": "top-down"},
    "bottom-up": {"direction": "bottom-up"},
    "dropout": {"dropout": True},
    "bfloat16": {"dtype": "bfloat16"},
    "smoothing": {"label_smoothing": 0.1},
    "cutmix": {"cutmix": 1.0},
    "21to40": {},  # the classes
}


@dataclass(frozen=True)
class Preset:
    """A study.

    Attributes:
        options: of `main.py`; the others have their defaults.
        groups: names of rows, and their number of seeds; the most important group first.
        pairs: rows to compare seed by seed.
        primary: number of pairs, the first ones, that are tests: their p-values are corrected.
        beside: rows of the scaled study that are reported beside these.
        settings: in which the gain of DKS is reported: the ends of the rows' names, by label.
        split: classes, and training images of each class, of a folder of images; None: all.
    """

    name: str
    options: dict
    groups: tuple[tuple[str, int], ...]
    pairs: tuple[str, ...] = ()
    primary: int = 0
    beside: tuple[tuple[str, int], ...] = ()
    settings: dict[str, str] | None = None
    split: tuple[int, int] | None = None

    def runs(self) -> list["Run"]:
        """Return all runs, group by group, and within a group seed by seed."""
        return [
            Run(self, row, seed)
            for rows, seeds in self.groups
            for seed in range(1, seeds + 1)
            for row in rows.split()
        ]

    def __str__(self) -> str:
        config, count = self.runs()[0].config(), len(self.runs())
        data = "CIFAR-100"
        if self.split:
            data = "{} classes × {} images of {}×{}".format(*self.split, *[config.image_size] * 2)
        decays = [1 + finished for finished in config.milestones]
        return (
            f"{config.network_name} on {data}: {config.epochs} epochs in batches of "
            f"{config.batch_size}, the learning rate falls at {decays}; {count} runs"
        )


@dataclass(frozen=True)
class Run:
    """One run of `main.py`."""

    preset: Preset
    row: str
    seed: int

    @property
    def name(self) -> str:
        return f"{self.row}-seed{self.seed}"

    @property
    def first_class(self) -> int:
        """The first class of the split, counted from 0."""
        return 20 if self.row.endswith("21to40") else 0

    def options(self) -> dict:
        """Return the options of `main.py` that differ from its defaults."""
        method, _, change = self.row.partition("-")
        return self.preset.options | {"method": method, "seed": self.seed} | CHANGES[change]

    def config(self) -> Config:
        """Return all options, except for the paths."""
        return with_recipe(Config(**self.options()))


def rows(suffix: str) -> str:
    return " ".join(f"{method}-{suffix}" for method in METHODS)


MAIN, DROPOUT = ("baseline ds dks", 5), ("baseline-dropout dks-dropout", 3)
MAIN_PAIRS = ("dks − ds", "dks − baseline", "ds − baseline")
DROPOUT_PAIR = "dks-dropout − baseline-dropout"
TRICKS = ("smoothing", "cutmix")
TRICK_TESTS = (
    *(f"dks-{trick} − baseline-{trick}" for trick in TRICKS),
    *(f"dks − baseline-{trick}" for trick in TRICKS),
)
TRICK_PAIRS = tuple(
    pair
    for trick in TRICKS
    for pair in (
        f"dks-{trick} − ds-{trick}",
        f"ds-{trick} − baseline-{trick}",
        *(f"{method}-{trick} − {method}" for method in METHODS),
    )
)
TRICK_SETTINGS = {"label smoothing 0.1": "-smoothing", "CutMix, α = 1": "-cutmix"}

SCALED = Preset(
    "scaled",
    # Chosen by time and by the baseline's training error: README.md. There are five times as many
    # test images as training images.
    {"dataset": "folder", "image_size": 16, "depth": 16, "width": 1.0, "epochs": 625}
    | {"batch_size": 64, "test_every": 5},
    (MAIN, ("dks-top-down dks-bottom-up", 3), DROPOUT, ("dks-bfloat16", 3)),
    (
        *MAIN_PAIRS,  # the first two are the study's main comparisons
        "dks-top-down − dks",
        "dks-bottom-up − dks",
        DROPOUT_PAIR,
        "dks-bfloat16 − dks",
    ),
    split=(20, 50),
)
FOLLOW_UP = replace(
    SCALED,
    name="follow-up",
    groups=((rows("21to40"), 5), (rows("smoothing"), 3), (rows("cutmix"), 3)),
    pairs=(
        "dks-21to40 − ds-21to40",
        "dks-21to40 − baseline-21to40",
        *TRICK_TESTS,
        "ds-21to40 − baseline-21to40",
        *TRICK_PAIRS,
    ),
    primary=6,
    beside=(MAIN, DROPOUT),
    settings={"plain recipe, classes 1 to 20": "", "classes 21 to 40": "-21to40"}
    | {"dropout": "-dropout"}
    | TRICK_SETTINGS,
)
FULL_SIZE = Preset(
    "cifar100",
    {"dataset": "folder", "arch": "resnet", "depth": 32, "dtype": "bfloat16", "test_every": 2},
    (("dks baseline ds", 2),),
)
# The defaults of main.py are the paper's WRN-28-10 on CIFAR-100.
PAPER = Preset("paper", {}, (MAIN, (DROPOUT[0], 5)), (*MAIN_PAIRS, DROPOUT_PAIR))
MODERN = Preset(
    "modern",
    {},
    (MAIN, (rows("smoothing"), 5), (rows("cutmix"), 5)),
    (*MAIN_PAIRS[:2], *TRICK_TESTS, MAIN_PAIRS[2], *TRICK_PAIRS),
    primary=6,
    settings={"plain recipe": "", **TRICK_SETTINGS},
)
PRESETS = {each.name: each for each in (SCALED, FOLLOW_UP, FULL_SIZE, PAPER, MODERN)}


@dataclass(frozen=True)
class PlanOptions:
    """The options that choose a plan."""

    preset: str = run_flag(
        "scaled",
        choice(*PRESETS),
        "scaled: small networks on images, for a CPU; follow-up: the same on other classes, with "
        "label smoothing and with CutMix; cifar100: ResNet-32 on a folder of CIFAR-100; paper: "
        "WRN-28-10 on CIFAR-100, for a GPU; modern: that with label smoothing and with CutMix",
    )
    epochs: int | None = run_flag(None, COUNT, "epochs of each run")
    logs: Path | None = run_flag(None, Path, "folder of the study's logs (default: study/PRESET)")

    def plan(self) -> tuple[Preset, Path]:
        """Return the preset, with --epochs if they are given, and the folder of its logs."""
        preset = PRESETS[self.preset]
        if self.epochs:  # can't be compared with the scaled study
            preset = replace(preset, options=preset.options | {"epochs": self.epochs}, beside=())
        return preset, self.logs or LOGS / self.preset
