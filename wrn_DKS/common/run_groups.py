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
    *("skip_unreadable", "sync_bn", "cache"),
    *("ngpu", "gpu_id", "save", "resume", "checkpoint_minutes", "log_interval", "test_every"),
    *("evaluate", "predict", "json", "export", "epochs", "seed", "random_scheme"),
}
# Options without effect on a method.
UNUSED = {
    "baseline": {"direction", "aux_weight", "synergy_weight"},
    "ds": {"direction", "synergy_weight"},
}
MILESTONES = {"epoch_step", "milestones"}  # follow the number of epochs by default
DATA = "data_fingerprint"

Settings = dict[str, str]
Groups = dict[str, list[Run]]  # by label


def settings(run: Run) -> Settings:
    """Return as text what runs must have in common to form a group; the method first."""
    unused = UNUSED.get(run.options.get("method"), set())
    options = NO_REGULARIZATION | {"init": ""} | run.options  # what older logs do not have
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
    if name == DATA:
        return f"data {value}"
    if name == "epochs":
        return f"{value} epoch" if value == "1" else f"{value} epochs"
    if isinstance(value, bool) or value == "":
        return name if value else f"no {name}"
    if isinstance(value, list):
        value = ",".join(map(str, value))
    return f"{name} {value:g}" if isinstance(value, float) else f"{name} {value}"


def group_runs(runs: Sequence[Run]) -> tuple[Groups, list[str]]:
    """Group runs that differ only in the seed, baseline first and DKS last.

    Runs with different numbers of tested epochs are in different groups. Of runs with the same
    settings, seed and errors, which are copies, only one counts. Other runs with the same settings
    and seed differ in what the log does not hold. They are not averaged: each run with these
    settings then has a group of its own.

    Returns:
        The groups, and notes on how they were formed.
    """
    runs = sorted(runs, key=method_order)
    names = dict(zip([run.path for run in runs], short_names(runs), strict=True))
    by_settings = group_by_settings(runs)
    common = [each for each, _ in by_settings]
    shown, hidden = differing_settings(common)
    labels = [", ".join(each[name] for name in each if name in shown) for each in common]
    notes = [f"the runs also differ in {', '.join(hidden)}"] if hidden else []
    if DATA in shown:
        notes.append("runs on different images are not averaged: `data` tells them apart")
    groups: Groups = {}
    for label, (_, found) in zip(labels, by_settings, strict=True):
        members, copies = separate_copies(found)
        for copy, run in copies:
            notes.append(f"{label}: {names[copy.path]} is a copy of {names[run.path]}, left out")
        seeds = Counter(run.options.get("seed") for run in members)
        repeated = [str(seed) for seed, count in seeds.items() if count > 1]
        if repeated:
            notes.append(f"{label}: several runs with seed {', '.join(repeated)}, so not averaged")
        for run in members:
            named = run if repeated else members[0]
            suffix = f", {names[named.path]}" if repeated or labels.count(label) > 1 else ""
            groups.setdefault(label + suffix, []).append(run)
    return groups, notes


def group_by_settings(runs: Sequence[Run]) -> list[tuple[Settings, list[Run]]]:
    """Return the runs of each settings.

    Older logs do not identify the data. Such a run is taken to be on the data of the runs with
    otherwise the same settings, if these are all on the same data.
    """
    known: dict[frozenset, set[str]] = {}
    each_settings = [settings(run) for run in runs]
    for each in each_settings:
        known.setdefault(without_data(each), set()).update({each[DATA]} if DATA in each else ())
    groups: dict[frozenset, tuple[Settings, list[Run]]] = {}
    for run, each in zip(runs, each_settings, strict=True):
        data = known[without_data(each)]
        each |= {DATA: min(data)} if len(data) == 1 else {}
        groups.setdefault(frozenset(each.items()), (each, []))[1].append(run)
    return list(groups.values())


def without_data(each: Settings) -> frozenset:
    return frozenset(item for item in each.items() if item[0] != DATA)


def separate_copies(runs: Sequence[Run]) -> tuple[list[Run], list[tuple[Run, Run]]]:
    """Return the runs without copies, and the copies with the run of which each is one."""
    kept: list[Run] = []
    copies = []
    for run in runs:
        seed = run.options.get("seed")
        same = [r for r in kept if r.options.get("seed") == seed and r.epochs == run.epochs]
        if same:
            copies.append((run, same[0]))
        else:
            kept.append(run)
    return kept, copies


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
    # The table has a column for the epochs. Different data sets need no fingerprint.
    unnamed = shown | {"epochs", DATA}
    return shown, [name for name in names if name not in unnamed and differs(name, groups)]


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
