"""Groups of runs that differ only in the seed, and their labels."""

from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from .flag_groups import NO_REGULARIZATION
from .run_logs import Run

METHODS = ("baseline", "ds", "dks")  # in the order of the table

# Options that do not affect the result, of both folders and of the released code; `sync_bn` only as
# the number of processes does.
NO_EFFECT = {
    *("data", "dataroot", "val_labels", "nthread", "workers", "prefetch", "device", "compile"),
    *("skip_unreadable", "sync_bn"),
    *("ngpu", "gpu_id", "save", "resume", "checkpoint_minutes", "log_interval", "test_every"),
    *("evaluate", "predict", "json", "export", "epochs", "seed"),
}
# Options without effect on a method.
UNUSED = {
    "baseline": {"direction", "aux_weight", "synergy_weight"},
    "ds": {"direction", "synergy_weight"},
}
MILESTONES = {"epoch_step", "milestones"}  # follow the number of epochs by default

Settings = dict[str, str]
Groups = dict[str, list[Run]]  # by label


def settings(run: Run) -> Settings:
    """Return as text what runs must have in common to form a group; the method first."""
    unused = UNUSED.get(run.options.get("method"), set())
    options = NO_REGULARIZATION | run.options
    values = {k: v for k, v in options.items() if k not in NO_EFFECT | unused}
    depth, width, network = (values.pop(name, None) for name in ("depth", "width", "arch"))
    if depth is not None:
        network = f"WRN-{depth}" if width is None else f"WRN-{depth}-{width:g}"
    data = values.pop("dataset", None)
    folder = run.options.get("dataroot") or run.options.get("data")
    if data in (None, "folder") and folder:
        data = Path(folder).name or folder
    known = {"method": values.pop("method", "unknown method"), "network": network, "dataset": data}
    known |= {**values, "epochs": run.progress}
    return {name: describe(name, value) for name, value in known.items() if value is not None}


def describe(name: str, value: object) -> str:
    """Return a short text for an option and its value."""
    if name in ("method", "network", "dataset", "direction", "dtype", "augmentation"):
        return str(value)
    if name == "epochs":
        return f"{value} epoch" if value == "1" else f"{value} epochs"
    if isinstance(value, bool):
        return name if value else f"no {name}"
    if isinstance(value, list):
        value = ",".join(map(str, value))
    return f"{name} {value:g}" if isinstance(value, float) else f"{name} {value}"


def group_runs(runs: Sequence[Run]) -> tuple[Groups, list[str]]:
    """Group runs that differ only in the seed, baseline first and DKS last.

    Runs with different numbers of tested epochs are in different groups. Runs of the same settings
    and the same seed are copies, or differ in what the log does not hold. They are not averaged:
    each run with these settings then has a group of its own.

    Returns:
        The groups, and notes on how they were formed.
    """
    by_settings: dict[frozenset, list[Run]] = {}
    for run in sorted(runs, key=method_order):
        by_settings.setdefault(frozenset(settings(run).items()), []).append(run)
    names = dict(zip([run.path for run in runs], short_names(runs), strict=True))
    common = [settings(members[0]) for members in by_settings.values()]
    shown, hidden = differing_settings(common)
    labels = [", ".join(each[name] for name in each if name in shown) for each in common]
    notes = [f"the runs also differ in {', '.join(hidden)}"] if hidden else []
    groups: Groups = {}
    for label, members in zip(labels, by_settings.values(), strict=True):
        seeds = Counter(run.options.get("seed") for run in members)
        repeated = [str(seed) for seed, count in seeds.items() if count > 1]
        if repeated:
            notes.append(f"{label}: several runs with seed {', '.join(repeated)}, so not averaged")
        for run in members:
            named = run if repeated else members[0]
            suffix = f", {names[named.path]}" if repeated or labels.count(label) > 1 else ""
            groups.setdefault(label + suffix, []).append(run)
    return groups, notes


def method_order(run: Run) -> int:
    method = run.options.get("method")
    return METHODS.index(method) if method in METHODS else -1


def differing_settings(groups: Sequence[Settings]) -> tuple[set[str], list[str]]:
    """Return the names of the settings for the labels, and of others in which groups differ.

    The labels have the method, and what differs between groups of the same network and data.
    """
    names = dict.fromkeys(name for each in groups for name in each)
    alike: dict[tuple, list[Settings]] = {}
    for each in groups:
        alike.setdefault((each.get("network"), each.get("dataset")), []).append(each)
    shown = {"method", *(name for name in ("network", "dataset") if differs(name, groups))}
    shown |= {name for name in names if any(differs(name, each) for each in alike.values())}
    if "epochs" in shown:
        shown -= MILESTONES
    # The table has a column for the epochs.
    hidden = [name for name in names if name not in shown | {"epochs"} and differs(name, groups)]
    return shown, hidden


def differs(name: str, groups: Sequence[Settings]) -> bool:
    """Return whether groups that have the setting have different values of it."""
    return len({each[name] for each in groups if name in each}) > 1


def short_names(runs: Sequence[Run]) -> list[str]:
    """Name runs by the ends of their folders, as short as possible but different."""
    paths = [run.path.parent.parts[1:] for run in runs]
    if len(set(paths)) < len(paths):  # both kinds of logs in one folder
        paths = [run.path.parts[1:] for run in runs]
    for count in range(1, max(map(len, paths)) + 1):
        names = ["/".join(parts[-count:]) for parts in paths]
        if len(set(names)) == len(names):
            break
    return names
