"""study/report.py: tables and figures from logs with known numbers."""

import json
from dataclasses import replace
from math import sqrt
from statistics import mean, stdev
from types import SimpleNamespace

import pytest
import torch

EPOCHS = 4  # the first is not tested
ERRORS = {"baseline": (30.0, 32.5, 31.0), "ds": (30.0, 31.0, 29.0), "dks": (27.0, 30.0, 28.0)}


T_975 = 4.303  # of a printed t table, 2 degrees of freedom


def write_log(study, folder, row, seed, last, name="scaled"):
    """Write the log of a run whose test errors are `last` + 7, `last` - 1 and `last`."""
    preset = study.presets.PRESETS[name].reduced(None, epochs=EPOCHS)
    run = next(run for run in preset.runs() if run.name == f"{row}-seed{seed}")
    classes, images = preset.split
    sizes = {"num_classes": classes, "n_parameters": 9, "train_images": classes * images}
    options = run.config(preset).resume_options() | {"epochs": EPOCHS, "epoch": 0} | sizes
    options["first_class"] = run.row.first_class
    count = 1 if row == "baseline" else 3
    records = [options, {"epoch": 1, "train_acc": 9.0, "train_time": 9.0, "peak_memory_mib": 100}]
    for epoch, error in enumerate((last + 7, last - 1, last), 2):
        record = {"epoch": epoch, "test_acc": 100 - error, "train_acc": 100 - error / 10}
        record["test_acc_ep1"] = None if count == 1 else 100 - error - 2
        record["test_acc_ep2"] = None if count == 1 else 100 - error - 1
        record["test_error_ensemble"] = error - 0.5
        record["test_divergences"] = [
            [0 if i == j else seed * (10 * j + i) / epoch for i in range(count)]
            for j in range(count)
        ]
        records.append(record | {"train_time": 1.5 + epoch, "peak_memory_mib": 100.0 * epoch})
    folder.mkdir(exist_ok=True)
    lines = "".join(json.dumps(record) + "\n" for record in records)
    (folder / f"{run.name}.jsonl").write_text(lines)


@pytest.fixture
def logs(study, tmp_path):
    """Three seeds of each method."""
    for row, errors in ERRORS.items():
        for seed, error in enumerate(errors, 1):
            write_log(study, tmp_path / "logs", row, seed, error)
    return tmp_path / "logs"


@pytest.fixture
def report(study, tmp_path):
    """Run the command line on a folder of logs of four epochs."""
    words = ["--images", str(tmp_path / "images"), "--epochs", str(EPOCHS)]
    return lambda logs, *more: study.report.main([*words, "--logs", str(logs), *more])


@pytest.fixture
def read(study):
    """Read a folder of logs of four epochs; return the study and its plan."""
    preset = study.presets.PRESETS["scaled"].reduced(None, epochs=EPOCHS)
    return lambda logs: (study.logs.read_study(logs, preset), preset)


@pytest.fixture
def tables(study, read):
    return lambda logs: study.report.tables(*read(logs))


def rows(table, title):
    """Return the cells of the table under a title, by the first cell of each row."""
    lines = table.split(f"**{title}")[1].split("**\n\n")[1].split("\n\n")[0].splitlines()[2:]
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    return {first: others for first, *others in cells}


def test_tables(study, tables, logs):
    text = tables(logs)
    assert "Gain of DKS" not in text  # this study has no settings
    assert rows(text, "Top-1 error") == {
        "baseline": ["3 of 5", "31.17 ± 1.26", "3.12 ± 0.13", "30.17 ± 1.26", "3",
                     "18.72 ± 0.24"],
        "ds": ["3 of 5", "30.00 ± 1.00", "3.00 ± 0.10", "29.00 ± 1.00", "3", ""],
        "dks": ["3 of 5", "28.33 ± 1.53", "2.83 ± 0.15", "27.33 ± 1.53", "3",
                "17.24 ± 0.22"],
    }  # fmt: skip
    assert rows(text, "Test error of each classifier") == {
        "ds": ["30.00 ± 1.00", "32.00 ± 1.00", "31.00 ± 1.00", "29.50 ± 1.00"],
        "dks": ["28.33 ± 1.53", "30.33 ± 1.53", "29.33 ± 1.53", "27.83 ± 1.53"],
    }
    assert [row[:2] for row in rows(text, "Cost").values()] == [["5.00", "400"]] * 3
    trained, used = (sizes(study, branches) for branches in (True, False))
    assert rows(text, "Cost")["dks"][4:] == [trained[0], used[0], trained[1], used[1]]
    assert rows(text, "Cost")["baseline"][4:] == [used[0], used[0], used[1], used[1]]
    kept = [row[2] for row in rows(text, "Cost").values()]
    assert 10 < float(kept[0]) < float(kept[1]) == float(kept[2]) < 30


def sizes(study, branches):
    """Return the number of parameters and of multiply-adds."""
    plan, wide_resnet = study.presets, study.wide_resnet
    network = wide_resnet.WideResNet(plan.DEPTH, plan.WIDTH, plan.NUM_CLASSES, branches=branches)
    size = study.metrics.cost(lambda: network.to("meta"), plan.IMAGE_SIZE)
    return [f"{sum(p.numel() for p in network.parameters()):,}", f"{size.multiply_adds:,}"]


def test_memory_kept_for_the_backward_pass(study):
    """A convolution with ReLU keeps one tensor more than the linear layer alone: the output."""
    cost, plan = study.cost, study.plan

    class Plain(torch.nn.Sequential):
        def forward(self, images):
            return (super().forward(images),)

    flat = Plain(torch.nn.Flatten(), torch.nn.Linear(3 * 8 * 8, 4))
    conv = torch.nn.Conv2d(3, 8, 3, padding=1)
    deep = Plain(conv, torch.nn.ReLU(), torch.nn.Flatten(), torch.nn.Linear(8 * 8 * 8, 4))
    baseline = plan.Row("baseline", "baseline")
    difference = cost.saved_bytes(deep, baseline, 5, 8) - cost.saved_bytes(flat, baseline, 5, 8)
    assert difference == 5 * 8 * 8 * 8 * 4

    preset = replace(study.presets.PRESETS["scaled"], batch_size=16)
    kept = {}
    for row in preset.rows:
        model = cost.build_network(preset, row, 20, row.method != "baseline")
        kept[row.name] = cost.kept_for_backward(preset, row, 20)
        assert kept[row.name] == cost.saved_bytes(model, row, 16, preset.image_size)
    assert kept["dks-bfloat16"] < kept["dks"] < kept["dks-dropout"]


def test_differences(tables, logs):
    found = rows(tables(logs), "Difference")
    assert list(found) == ["dks − ds", "dks − baseline", "ds − baseline"]
    assert [cells[-2:] for cells in found.values()] == [
        ["", "-1.78, -1.56, -1.01"],
        ["-1.48", "-2.38, -1.94, -1.47"],
        ["", "-0.60, -0.38, -0.46"],
    ]
    for pair, (seeds, middle, interval, p, best, ensemble, *_) in found.items():
        one, other = (ERRORS[name] for name in pair.split(" − "))
        low, high, expected_p = three_pairs([a - b for a, b in zip(one, other, strict=True)])
        assert (seeds, best, ensemble) == ("3", middle, middle)
        assert interval == f"{low:+.2f} to {high:+.2f}"
        assert p == f"{expected_p:.3f}"
        assert float(middle) == pytest.approx((sum(one) - sum(other)) / 3, abs=0.005)


def three_pairs(differences):
    """Return 95 % interval and p-value, which has a closed form for 2 degrees of freedom."""
    middle, error = mean(differences), stdev(differences) / sqrt(3)
    half, t = T_975 * error, abs(middle) / error
    return middle - half, middle + half, 1 - t / sqrt(2 + t**2)


@pytest.mark.parametrize(
    ("differences", "interval", "p"),
    [
        ([1.0, 2.0], "-4.85 to +7.85", "0.205"),  # 1.5 ± 12.706 × 0.5; p = 1 - 2/π atan 3
        ([-1, 0, 1, 2, 3], "-0.96 to +2.96", "0.230"),  # 1 ± 2.776 / √2
        ([2.0, 2.0, 2.0], "+2.00 to +2.00", "< 0.001"),
        ([0.0, 0.0], "+0.00 to +0.00", "1.000"),
    ],
)
def test_paired_t_test(study, recwarn, differences, interval, p):
    comparisons = study.comparisons
    assert comparisons.format_interval(differences) == interval
    assert comparisons.format_p(comparisons.p_value(differences)) == p
    assert not recwarn.list


HOLM = [  # p-values, number of tests, and the corrected ones, computed by hand
    ((0.01, 0.04, 0.03, 0.005), 4, (0.03, 0.06, 0.06, 0.02)),
    ((0.02, 0.3), 6, (0.12, 1.0)),
    ((0.5, 0.9), 2, (1.0, 1.0)),
    ((), 6, ()),
]


@pytest.mark.parametrize(("values", "count", "corrected"), HOLM)
def test_holm(study, values, count, corrected):
    assert study.comparisons.holm(values, count) == pytest.approx(list(corrected))


def test_gains(study, tmp_path, monkeypatch):
    """The follow-up's gains beside those of the first study, and their changes."""
    monkeypatch.setattr(study.logs, "LOGS", tmp_path)
    presets = {
        name: study.presets.PRESETS[name].reduced(None, epochs=EPOCHS)
        for name in ("scaled", "follow-up")
    }
    presets["follow-up"] = replace(
        presets["follow-up"], earlier=study.presets.PRESETS["follow-up"].earlier
    )
    monkeypatch.setattr(study.logs, "PRESETS", presets)
    for row, errors in ERRORS.items():
        for seed, error in enumerate(errors, 1):
            write_log(study, tmp_path / "scaled", row, seed, error)
    cutmix = {"baseline-cutmix": (26.0, 27.5, 25.0), "dks-cutmix": (25.0, 27.0, 25.5)}
    for row, errors in cutmix.items():
        for seed, error in enumerate(errors, 1):
            write_log(study, tmp_path / "follow-up", row, seed, error, "follow-up")
    preset = presets["follow-up"]
    read = study.logs.read_study(tmp_path / "follow-up", preset)
    text = study.report.tables(read, preset)
    plain, gains = (-3.0, -2.5, -3.0), (-1.0, -0.5, 0.5)
    found = rows(text, "Gain of DKS")
    assert list(found) == ["plain recipe, classes 1 to 20", "CutMix, α = 1"]
    low, high, _ = three_pairs(gains)
    change_low, change_high, _ = three_pairs([a - b for a, b in zip(gains, plain, strict=True)])
    assert found["CutMix, α = 1"] == [
        "3", "26.17 ± 1.26", "", "25.83 ± 1.04", "-0.33", f"{low:+.2f} to {high:+.2f}",
        "+2.50", f"{change_low:+.2f} to {change_high:+.2f}",
    ]  # fmt: skip
    pairs = rows(text, "Difference")
    assert list(pairs)[:2] == ["dks-cutmix − baseline-cutmix", "dks − baseline-cutmix"]
    p = [three_pairs(values)[2] for values in (gains, (1.0, 2.5, 3.0))]
    assert [pairs[name][3:5] for name in list(pairs)[:2]] == [
        [f"{p[0]:.3f}", "1.000"], [f"{p[1]:.3f}", f"{6 * p[1]:.3f}"]
    ]  # fmt: skip
    assert pairs["dks-cutmix − dks"][3:5] == ["", ""]  # a description
    (name, figure), *more = study.figures.figures(read, preset).items()
    assert name == "study_gains.png" and not more
    (axes,) = figure.axes
    assert sorted(axes.lines[0].get_xdata()) == pytest.approx(sorted(plain))
    labels = [label.get_text() for label in axes.get_yticklabels()]
    assert labels == ["plain recipe, classes 1 to 20 (n = 3)", "CutMix, α = 1 (n = 3)"]


def test_columns_without_values_are_left_out(study):
    """A column of zeros has values; a table without rows keeps its titles."""
    lines = [("x", "", 0), ("y", "", 0)]
    rows = ["| a | c |", "| --- | --- |", "| x | 0 |", "| y | 0 |"]
    assert study.report.markdown("a", "b", "c", lines=lines).splitlines() == rows
    assert study.report.markdown("a", "b", lines=[]).splitlines() == ["| a | b |", rows[1]]


def test_gains_are_of_the_seeds_that_both_have(study):
    """At least two, also to compare them with those of the plain recipe."""
    errors = {  # by row and seed
        "baseline": {1: 30.0, 2: 31.0, 3: 33.0},
        "dks": {1: 29.0, 2: 29.0, 3: 30.0, 4: 10.0},
        "baseline-a": {2: 30.0, 3: 30.0},
        "dks-a": {1: 5.0, 2: 28.0, 3: 29.0},
        "baseline-b": {3: 30.0, 4: 30.0},
        "dks-b": {3: 29.0, 4: 28.0},
        "baseline-c": {1: 30.0},
        "dks-c": {1: 29.0},
    }
    runs = {
        row: {seed: SimpleNamespace(epochs=[{"test_acc": 100 - e}]) for seed, e in each.items()}
        for row, each in errors.items()
    }
    preset = SimpleNamespace(settings=(("", "plain"), *((f"-{name}", name) for name in "abc")))
    gains = study.gains.read_gains(runs, preset)
    assert [(gain.label, gain.by_seed) for gain in gains] == [
        ("plain", {1: -1, 2: -2, 3: -3}),
        ("a", {2: -2, 3: -1}),
        ("b", {3: -1, 4: -2}),
    ]
    rows = study.gains.gain_rows(gains)
    assert [(row[1], row[5], row[7]) for row in rows] == [
        ("3", "-2.00", ""), ("2", "-1.50", "+1.00"), ("2", "-1.50", "")
    ]  # fmt: skip


def test_pairs_have_the_same_seeds(study, tables, logs):
    """Bottom-up has only seeds 2 and 3; top-down has one seed, too few to compare."""
    write_log(study, logs, "dks-bottom-up", 2, 31.0)
    write_log(study, logs, "dks-bottom-up", 3, 30.0)
    write_log(study, logs, "dks-top-down", 1, 28.0)
    found = rows(tables(logs), "Difference")
    assert found["dks-bottom-up − dks"][:2] == ["2", "+1.50"]
    assert "dks-top-down − dks" not in found


def test_figures(study, report, read, logs, tmp_path, capsys):
    assert report(logs) == 0
    assert "**Cost**" in capsys.readouterr().out
    names = ["study_error.png", "study_methods.png", "synergy_matrix.png"]
    assert sorted(path.name for path in (tmp_path / "images").iterdir()) == names
    drawn = study.figures.figures(*read(logs))

    axes, enlarged = drawn["study_error.png"].axes
    assert enlarged.get_ylim() == pytest.approx((25, 41.5))
    assert axes.lines[0].get_ydata() == pytest.approx([38.167, 30.167, 31.167], abs=1e-3)

    (axes,) = drawn["study_methods.png"].axes
    labels = [label.get_text() for label in axes.get_yticklabels()]
    assert labels == [f"{name} (n = 3)" for name in ERRORS]
    assert sorted(axes.lines[0].get_xdata()) == pytest.approx([30.0, 31.0, 32.5])
    low, high, _ = three_pairs(ERRORS["baseline"])
    bars = axes.containers[0].lines[2][0].get_segments()[0]
    assert list(bars[:, 0]) == pytest.approx([low, high], abs=1e-3)

    grid = drawn["synergy_matrix.png"].axes
    curves = {
        line.get_label(): line.get_ydata() for line in grid[5].lines if line.get_label()[0] != "_"
    }  # second row, last
    assert list(curves) == ["ds", "dks"]
    mean_seed = 2
    assert curves["dks"] == pytest.approx([mean_seed * 12 / epoch for epoch in (2, 3, 4)])


def test_one_run_is_enough_for_figures(study, report, tmp_path, capsys):
    write_log(study, tmp_path / "one", "baseline", 1, 30.0)
    assert report(tmp_path / "one") == 0
    assert "| baseline | 1 of 5 | 30.00 | 3.00 | 29.00 | 3 |" in capsys.readouterr().out


def test_unsuitable_logs(report, tables, logs, tmp_path, capsys):
    (tmp_path / "empty").mkdir()
    assert report(tmp_path / "empty") == 2
    assert "no log of a finished run" in capsys.readouterr().err
    assert report(logs, "--epochs", "5") == 2
    assert "epochs 4, not 5" in capsys.readouterr().err
    cut = logs / "dks-seed1.jsonl"
    cut.write_text("".join(cut.read_text().splitlines(keepends=True)[:-1]))
    assert "| dks | 2 of 5 |" in tables(logs)  # a log that ends early is of an unfinished run
    cut.write_text("{nonsense}\n")
    assert report(logs) == 2
    assert "not a record of a run" in capsys.readouterr().err
