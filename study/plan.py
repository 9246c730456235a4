"""The plan of each study: network, data, rows and comparisons."""

from dataclasses import dataclass, field

from common.options import METHODS

# A row is named after its method and what it changes: options of `main.py`, or classes 21 to 40.
CHANGES = {
    "top-down": {"direction": "top-down"},
    "bottom-up": {"direction": "bottom-up"},
    "dropout": {"dropout": True},
    "bfloat16": {"dtype": "bfloat16"},
    "smoothing": {"label_smoothing": 0.1},
    "cutmix": {"cutmix": 1.0},
}


@dataclass(frozen=True)
class Preset:
    """A study.

    Attributes:
        options: of `main.py`; the others have their defaults.
        rows: and their numbers of seeds.
        pairs: rows to compare seed by seed, such as `dks − ds`.
        primary: number of pairs, the first ones, that are tests: their p-values are corrected.
        beside: rows of the scaled study that are reported beside these.
        settings: in which the gain of DKS is reported: the ends of the rows' names, by label.
    """

    options: dict
    rows: dict[str, int]
    pairs: tuple[str, ...] = ()
    primary: int = 0
    beside: dict[str, int] = field(default_factory=dict)
    settings: dict[str, str] = field(default_factory=dict)


# Chosen by time and by the baseline's training error: README.md. Tests take longer than training.
SMALL = {"dataset": "folder", "image_size": 16, "depth": 16, "width": 1.0, "epochs": 625}
SMALL |= {"batch_size": 64, "test_every": 5}
MAIN, DROPOUT = dict.fromkeys(METHODS, 5), {"baseline-dropout": 3, "dks-dropout": 3}

SCALED = Preset(
    SMALL,
    MAIN | {"dks-top-down": 3, "dks-bottom-up": 3} | DROPOUT | {"dks-bfloat16": 3},
    (
        *("dks − ds", "dks − baseline", "ds − baseline"),  # the first two are the main comparisons
        *("dks-top-down − dks", "dks-bottom-up − dks", "dks-dropout − baseline-dropout"),
        "dks-bfloat16 − dks",
    ),
)
FOLLOW_UP = Preset(
    SMALL,
    {f"{method}-21to40": 5 for method in METHODS}
    | {f"{method}-smoothing": 3 for method in METHODS}
    | {f"{method}-cutmix": 3 for method in METHODS},
    (
        *("dks-21to40 − ds-21to40", "dks-21to40 − baseline-21to40"),
        *("dks-smoothing − baseline-smoothing", "dks-cutmix − baseline-cutmix"),
        *("dks − baseline-smoothing", "dks − baseline-cutmix", "ds-21to40 − baseline-21to40"),
        *("dks-smoothing − ds-smoothing", "ds-smoothing − baseline-smoothing"),
        *("baseline-smoothing − baseline", "ds-smoothing − ds", "dks-smoothing − dks"),
        *("dks-cutmix − ds-cutmix", "ds-cutmix − baseline-cutmix"),
        *("baseline-cutmix − baseline", "ds-cutmix − ds", "dks-cutmix − dks"),
    ),
    primary=6,
    beside=MAIN | DROPOUT,
    settings={
        "plain recipe, classes 1 to 20": "",
        "classes 21 to 40": "-21to40",
        "dropout": "-dropout",
        "label smoothing 0.1": "-smoothing",
        "CutMix, α = 1": "-cutmix",
    },
)
FULL_SIZE = Preset(
    {"dataset": "folder", "arch": "resnet", "depth": 32, "dtype": "bfloat16", "test_every": 2},
    dict.fromkeys(METHODS, 2),
)
PRESETS = {"scaled": SCALED, "follow-up": FOLLOW_UP, "cifar100": FULL_SIZE}
