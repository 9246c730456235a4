"""The log of a run: records, TensorBoard scalars, what is printed; and the report of runs."""

import json
import re
import shutil
import sys
from statistics import mean, stdev

import pytest
import scipy.stats
from halves import Killed, before_call, kill, records, sigterm
from matplotlib.figure import Figure
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator


def test_a_record_says_what_was_trained_and_how_well(half, tmp_path, monkeypatch, capsys):
    trainer, means = half.scripts.engine.Trainer, []
    step = trainer.train_step

    def train_step(self, batch):
        means.append((float(loss := step(self, batch)), len(batch.labels)))
        return loss

    monkeypatch.setattr(trainer, "train_step", train_step)
    words = "--ema 0.5 --method ds --epochs 3 --test-every 2".split()
    assert half.train(tmp_path, *words) == 0
    log = records(tmp_path)
    assert [(each["epoch"], each["step"]) for each in log] == [(1, 4), (2, 8), (3, 12)]
    assert ["test" in each for each in log] == [False, True, True]
    for i, record in enumerate(log):
        losses, part = record["train"]["losses"], means[4 * i : 4 * i + 4]
        assert losses["total"] == pytest.approx(sum(mean * n for mean, n in part) / 13, rel=1e-5)
        assert losses["total"] == pytest.approx(losses["backbone"] + losses["branches"])
        assert record["train"]["images"] == 13 and len(record["train"]["top1_errors"]) == 3
    last = log[-1]
    assert last["test"]["images"] == 5 and len(last["test"]["divergences"]) == 3
    assert last["options"]["ema"] == 0.5 and last["data"]["train_images"] == 13
    assert last["software"]["processes"] == 1 and last["network"]["program"]
    assert last["software"]["code"] == half.scripts.logs.code_version(half.scripts.path)
    (line,) = [each for each in capsys.readouterr().out.splitlines() if "epoch 3/3" in each]
    errors = [last[part]["top1_errors"][0] for part in ("train", "test", "ema")]
    assert all(f"{error:.2f} %" in line for error in errors)


def test_the_code_version_changes_with_the_python_files_of_the_folder(wrn, tmp_path):
    version, versions = wrn.logs.code_version, []
    (tmp_path / "common").mkdir()
    for name in ("a.py", "common/a.py", "new.py", "notes.md", "common/notes.md"):
        (tmp_path / name).write_text(name)
        versions.append(version(tmp_path))
    assert len({*versions[:3]}) == 3 and {*versions[2:]} == {version(tmp_path)}
    (tmp_path / "common/a.py").write_text("changed")
    assert version(tmp_path) not in versions and len(versions[0]) == 8


def test_tensorboard_shows_each_epoch_once_also_after_a_restart(half, tmp_path, monkeypatch):
    with monkeypatch.context() as patch, pytest.raises(Killed):
        before_call(patch, half.scripts.checkpoint, "save", 2, kill)  # the second epoch is logged
        half.train(tmp_path)
    assert half.train(tmp_path, "--resume", "auto", at={6: sigterm}) == 143
    assert half.train(tmp_path, "--resume", "auto") == 0
    events = EventAccumulator(str(tmp_path))
    events.Reload()
    for tag, get in {
        "learning rate": lambda record: record["lr"],
        "loss train/synergy": lambda record: record["train"]["losses"]["synergy"],
        "top1 error test/backbone": lambda record: record["test"]["top1_errors"][0],
        "top5 error test/deep branch": lambda record: record["test"]["top5_errors"][2],
        "divergence test/deep branch to backbone": lambda record: record["test"]["divergences"][2][
            0
        ],
    }.items():
        expected = [(each["step"], pytest.approx(get(each))) for each in records(tmp_path)]
        assert [(each.step, each.value) for each in events.Scalars(tag)] == expected, tag


def test_training_goes_on_without_tensorboard(half, tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    assert half.train(tmp_path, "--epochs", 1) == 0
    assert "warning: no TensorBoard events are written (" in capsys.readouterr().out


def test_a_log_is_truncated_and_its_partly_written_last_line_ignored(wrn, tmp_path, capsys):
    path = tmp_path / "log.jsonl"
    about = {"software": {"code": "a1"}}
    lines = [json.dumps({"epoch": n, "error": n / 7} | about) + "\n" for n in (1, 2, 3)]
    path.write_text("".join(lines))
    with open(path, "a") as file:
        file.write('{"epoch": 4, "err')  # killed while writing
    assert [record["epoch"] for record in wrn.logs.read_log(path)] == [1, 2, 3]
    wrn.logs.RunLog(tmp_path, about, 2, 20)
    assert path.read_text().splitlines(keepends=True) == lines[:2]
    assert capsys.readouterr().out == ""
    wrn.logs.RunLog(tmp_path, {"software": {"code": "b2"}}, 2, 20)
    assert capsys.readouterr().out == "note: the code is not that of the epochs before\n"


METHODS = ("baseline", "ds", "dks")
RUNS = {f"{name}/{seed}": f"--method {name} --seed {seed}" for name in METHODS for seed in "123"}
RUNS |= {"lr": "--lr 0.3", "ema": "--ema 0.5", "images": "--dataroot MOVED", "again": "--seed 1"}


@pytest.fixture(scope="module")
def runs(half, tmp_path_factory):
    """The folder of `RUNS`."""
    folder = tmp_path_factory.mktemp("runs")
    moved = shutil.copytree(half.data, folder / "moved" / half.data.name)
    (moved / "val" / "cat" / "cat_0.png").rename(moved / "val" / "cat" / "cat_x.png")
    for name, flags in RUNS.items():
        words = ["--epochs", 1, *flags.replace("MOVED", str(moved)).split()]
        assert half.train(folder / name, *words) == 0
    return folder


@pytest.fixture
def report(half, capsys):
    """Return the rows of the first table by label, the output and the errors of a report."""

    def report(*words, status=0):
        run = half.scripts.report.main
        argv = [str(word) for word in words]
        assert half.scripts.command_line.exit_status(lambda: run(argv)) == status
        out, err = capsys.readouterr()
        assert err.count("\n") == bool(err)
        rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in out.splitlines()]
        return {row[0]: row[1:] for row in reversed(rows) if row}, out, err

    return report


def common_report(half):
    return half.scripts.report and half.scripts.imported["common.report"]


def errors_of(folder, part="test"):
    """The top-1 errors of the backbone by seed, in the last epoch."""
    last = [records(path.parent)[-1] for path in sorted(folder.glob("*/log.jsonl"))]
    return [record[part]["top1_errors"][0] for record in last]


def test_runs_that_differ_only_in_the_seed_are_averaged(half, runs, report):
    """Each run once; with paired differences. No top-5 errors for 5 classes or fewer."""
    ours, theirs = errors_of(runs / "dks"), errors_of(runs / "baseline")
    rows, out, _ = report(runs / "dks", runs / "baseline", runs / "dks" / "2")
    for label, errors in (("dks", ours), ("baseline", theirs)):
        assert rows[label][:3] == ["3", "1", f"{mean(errors):.2f} ± {stdev(errors):.2f}"]
    train = errors_of(runs / "dks", "train")
    assert rows["dks"][3] == f"{mean(train):.2f} ± {stdev(train):.2f}" and "top-5" not in out
    assert ("WRN-10-0.25" if half.is_wrn else "resnet18") in out
    assert f"| {mean(ours) - mean(theirs):+.2f} " in out and re.search(r"\d to [+-]", out)
    titles = "Test errors of the branches"
    assert titles in out and titles not in report(runs / "baseline")[1]
    assert out.count("| baseline ") == 1  # not among the branches
    for n in (2, 11, 40):
        ours, theirs = ([float((i * k) % 7) for i in range(n)] for k in (3, 5))
        center, half_width = common_report(half).paired_difference(ours, theirs)
        interval = scipy.stats.ttest_rel(ours, theirs).confidence_interval(0.95)
        tolerance = 1e-3 if n <= 11 else 0.2
        assert (center - half_width, center + half_width) == pytest.approx(interval, rel=tolerance)


@pytest.mark.parametrize(
    ("one", "other", "labels"),
    [
        ("dks/2", "lr", {"dks, lr 0.02", "dks, lr 0.3"}),
        ("dks/2", "ema", {"dks", "dks, ema 0.5"}),
        ("dks/2", "ds/1", {"dks", "ds"}),
        ("dks/2", "images", {"dks, dks/2", "dks, images"}),  # of a folder of the same name
        ("dks/1", "again", {"dks, dks/1", "dks, again"}),
    ],
)
def test_other_runs_are_not_averaged(runs, report, one, other, labels):
    rows = report(runs / one, runs / other)[0]
    assert {label: row[0] for label, row in rows.items() if label[:1] == "d"} == dict.fromkeys(
        labels, "1"
    )


def test_a_label_of_several_folders_says_so(runs, report):
    rows = report(runs / "dks", runs / "images")[0]
    assert rows["dks, dks/1 and 2 more"][0] == "3" and rows["dks, images"][0] == "1"


def test_runs_of_different_code_are_not_averaged(runs, report, tmp_path):
    for seed, code in (("1", None), ("2", "a1"), ("3", "a1")):
        path = tmp_path / seed / "log.jsonl"
        path.parent.mkdir()
        record = records(runs / "dks" / seed)[-1]
        record["software"]["code"] = code
        path.write_text(json.dumps(record) + "\n")
    rows = report(tmp_path)[0]
    assert rows["dks"][0] == "1" and rows["dks, code a1"][0] == "2"
    out = report(tmp_path, runs / "baseline")[1]  # a new method beside an older baseline
    assert "| dks, code a1 − baseline" in out and "| dks − " not in out
    assert not re.search(r"\d to [+-]", out)  # there are two seeds only
    for seed in ("2", "3"):
        path = tmp_path / "new" / seed / "log.jsonl"
        path.parent.mkdir(parents=True)
        record = records(runs / "baseline" / seed)[-1]
        record["software"]["code"] = "a1"
        path.write_text(json.dumps(record) + "\n")
    out = report(tmp_path, runs / "baseline")[1]
    assert out.count("dks, code a1 − baseline, code a1") == out.count("dks, code a1 − ") == 1


def test_folders_and_logs_that_are_no_runs_are_one_line(runs, report, tmp_path):
    assert "no log.jsonl in it" in report(tmp_path, status=2)[2]
    assert "no such folder" in report(tmp_path / "missing", status=2)[2]
    for content, problem in (
        ('{"epoch": 1, "test": {}}\n', "not the log of a run"),
        ('{"epoch": "}\n', "not a record of a run"),
    ):
        (tmp_path / "log.jsonl").write_text(content)
        assert problem in report(tmp_path, status=2)[2]
    (tmp_path / "log.jsonl").write_text("")
    rows, _, error = report(runs / "ds", tmp_path)
    assert "ds" in rows and error == f"{tmp_path}: no epoch is tested yet; left out\n"


def test_a_figure_is_drawn_or_the_table_only(half, runs, report, tmp_path, monkeypatch):
    for suffix, start in {".png": b"\x89PNG", ".svg": b"<?xml", ".pdf": b"%PDF"}.items():
        path = tmp_path / f"x{suffix}"
        assert f"error curves: {path}" in report(runs, "--figure", path)[1]
        assert path.read_bytes().startswith(start)
    axes, curves = Figure().subplots(), [[(1, 9.0, 43.0), (2, 5.0, None)], [(1, 7.0, 45.0)]]
    common_report(half).plot_errors(axes, {"dks": curves})  # the means over the runs
    assert [line.get_xydata().tolist() for line in axes.lines] == [[[1, 44.0]], [[1, 8.0]]]
    rows, _, err = report(runs, "--figure", "/nonexistent/x.png", status=1)
    assert len(rows) > 3 and "x.png: can't be drawn (" in err and "No such file" in err
    for name in ("x", "x.nonsense"):
        message = f"--figure {name}: expected a .png, .svg or .pdf file"
        assert message in report(runs, "--figure", name, status=2)[2]
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    rows, _, err = report(runs, "--figure", path, status=1)
    assert len(rows) > 3 and "can't be drawn" in err
