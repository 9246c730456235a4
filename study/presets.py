"""The plans of the studies: their sizes, rows and comparisons, and the flags that choose one."""

import argparse
from dataclasses import replace
from pathlib import Path

from common.command_line import bounded_number
from evaluate import check_network
from study.plan import Preset, Row

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
SMOOTHING = variants("smoothing", 3, label_smoothing=0.1)
CUTMIX = variants("cutmix", 3, cutmix=1.0)

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
TRICKS = ("smoothing", "cutmix")
PRIMARY_PAIRS = (  # the six tests of the follow-up
    ("dks-21to40", "ds-21to40"),
    ("dks-21to40", "baseline-21to40"),
    *((f"dks-{trick}", f"baseline-{trick}") for trick in TRICKS),
    *(("dks", f"baseline-{trick}") for trick in TRICKS),
)
TRICK_PAIRS = tuple(
    pair
    for trick in TRICKS
    for pair in (
        (f"dks-{trick}", f"ds-{trick}"),
        (f"ds-{trick}", f"baseline-{trick}"),
        *((f"{row.name}-{trick}", row.name) for row in METHODS),
    )
)
TRICK_SETTINGS = (("-smoothing", "label smoothing 0.1"), ("-cutmix", "CutMix, α = 1"))
PRESETS = {
    "scaled": SCALED,
    "follow-up": replace(
        SCALED,
        groups=(REPLICATION, SMOOTHING, CUTMIX),
        pairs=(
            *PRIMARY_PAIRS,
            ("ds-21to40", "baseline-21to40"),
            *TRICK_PAIRS,
        ),
        primary=len(PRIMARY_PAIRS),
        earlier=("scaled", METHODS + DROPOUT),
        settings=(
            ("", "plain recipe, classes 1 to 20"),
            ("-21to40", "classes 21 to 40"),
            ("-dropout", "dropout"),
            *TRICK_SETTINGS,
        ),
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
PRESETS["modern"] = replace(
    PRESETS["paper"],
    groups=tuple(
        tuple(replace(row, seeds=5) for row in group) for group in (METHODS, SMOOTHING, CUTMIX)
    ),
    pairs=(*MAIN_PAIRS[:2], *PRIMARY_PAIRS[2:], MAIN_PAIRS[2], *TRICK_PAIRS),
    primary=6,
    settings=(("", "plain recipe"), *TRICK_SETTINGS),
)


def add_plan_flags(parser: argparse.ArgumentParser) -> None:
    """Add the flags that choose a preset or reduce it."""
    plan = parser.add_argument_group("plan")
    text = (
        "scaled: small networks on images, for a CPU; follow-up: the same on other classes, with "
        "label smoothing and with CutMix; paper: WRN-28-10 on CIFAR-100, for a GPU; modern: the "
        "same with label smoothing and with CutMix"
    )
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
