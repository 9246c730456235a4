"""study.py: its plan, its split of links, its runs; the paper's study from end to end, tiny."""

import json
import os
import signal
import threading
import time
from dataclasses import replace
from pathlib import Path

import pytest
from conftest import ROOT
from synthetic import write_folders

TINY = "--depth 10 --width 0.25 --epochs 2 --seeds 1".split()
DECOY = """
import os, sys, time
save = next(word[7:] for word in sys.argv if word.startswith("--save="))
print("starting\\nerror: of the decoy\\n")
with open(os.path.join(save, "pid"), "w") as file:
    file.write(f"{os.getpid()} {os.environ.get('OMP_NUM_THREADS')}")
time.sleep(0 if "dks" in save else 60)
sys.exit(2)
"""


@pytest.fixture
def scaled(wrn, monkeypatch):
    """The scaled preset with 2 classes of 2 training images."""
    presets = wrn.study_plan.PRESETS
    preset = replace(presets["scaled"], split=(2, 2))
    monkeypatch.setitem(presets, "scaled", preset)
    return preset


@pytest.fixture
def images(tmp_path):
    """3 classes, 4 images of each in train/ and 1 in val/."""
    write_folders(tmp_path / "images", dict.fromkeys(("ant", "bee", "cat"), 4), "train")
    return write_folders(tmp_path / "images", dict.fromkeys(("ant", "bee", "cat"), 1), "val")


@pytest.fixture
def study(wrn, tmp_path):
    """Runs the command line with folders of this test."""
    folders = ["--out", str(tmp_path / "out"), "--logs", str(tmp_path / "logs")]
    return lambda data, *words: wrn.study.main(["--data", str(data), *folders, *words])


def test_the_paper_s_runs_are_those_of_main(wrn):
    """The recipe is main.py's default, which is the paper's."""
    preset = wrn.study_plan.PRESETS["paper"]
    run = next(run for run in preset.runs() if run.name == "dks-seed1")
    config, default = run.config(preset), wrn.options.parse([])
    assert (config.resume_options(), config.epochs) == (default.resume_options(), default.epochs)
    assert [row.seeds for row in preset.rows] == [5] * 5
    assert {row.name for row in preset.rows} - {"ds"} == set(wrn.published.CIFAR100)


def test_the_runs_of_the_scaled_study(wrn):
    preset = wrn.study_plan.PRESETS["scaled"]
    names = [run.name for run in preset.runs()]
    assert len(set(names)) == len(names)
    assert names[:4] == ["baseline-seed1", "ds-seed1", "dks-seed1", "baseline-seed2"]
    assert [row.seeds for row in preset.rows] == [5, 5, 5, 3, 3, 3, 3, 3]
    rows = {row.name for row in preset.rows}
    assert all(one in rows and other in rows for one, other in wrn.study_plan.PAIRS)
    configs = {run.name: run.config(preset).resume_options() for run in preset.runs()}
    for name, different in (
        ("dks-bfloat16-seed2", {"dtype": "bfloat16"}),
        ("dks-top-down-seed2", {"direction": "top-down"}),
        ("dks-dropout-seed2", {"dropout": True}),
        ("ds-seed2", {"method": "ds"}),
    ):
        assert configs[name] == configs["dks-seed2"] | different


def test_the_written_plan_is_the_one_that_runs(wrn):
    text = (ROOT / "wrn_DKS" / "study" / "README.md").read_text()
    assert f"\n{wrn.study_plan.PRESETS['scaled']}\n" in text


def test_split_of_links(wrn, images, tmp_path):
    make = wrn.study_data.link_split
    folder = make(images, tmp_path / "split", 2, 3)
    found = {str(path.relative_to(folder)): path for path in folder.rglob("*.png")}
    assert sorted(found) == [
        *(f"test/{name}" for name in ("ant/ant_3.png", "ant/val/ant_0.png")),
        *(f"test/{name}" for name in ("bee/bee_3.png", "bee/val/bee_0.png")),
        *(f"train/{name}/{name}_{i}.png" for name in ("ant", "bee") for i in range(3)),
    ]
    assert all(path.is_symlink() and path.read_bytes() for path in found.values())
    assert found["test/bee/val/bee_0.png"].resolve() == (images / "val/bee/bee_0.png").resolve()
    data = wrn.data.load_dataset("folder", folder, 8, 1)
    assert (len(data.train.labels), len(data.test.labels)) == (6, 4)
    assert make(images, folder, 2, 3) == folder  # again
    for classes, count, says in ((2, 2, "another split"), (4, 2, "3 classes"), (2, 4, "more than")):
        with pytest.raises(wrn.command_line.UserError, match=says):
            make(images, folder, classes, count)


def test_the_paper_s_study_from_end_to_end(wrn, study, cifar100, monkeypatch, tmp_path, capsys):
    """CIFAR-100's files, all five rows, the table with the paper's numbers; then a second call."""

    class InThisProcess:
        def __init__(self, words, **options):
            assert Path(words[1]) == wrn.path / "main.py"
            self._status = wrn.main.main(words[2:])

        def poll(self):
            self.returncode = self._status
            return self.returncode

    monkeypatch.setattr(wrn.study.subprocess, "Popen", InThisProcess)
    words = (tmp_path / "root", "--preset", "paper", *TINY)
    assert study(*words) == 0
    table = capsys.readouterr().out
    errors = {}
    for name in ("baseline", "ds", "dks", "baseline-dropout", "dks-dropout"):
        log = (tmp_path / "logs" / f"{name}-seed1.jsonl").read_text().splitlines()
        options, *epochs = map(json.loads, log)
        assert (options["depth"], options["epochs"], options["num_classes"]) == (10, 2, 100)
        assert options["dropout"] == ("dropout" in name)
        assert [record["epoch"] for record in epochs] == [1, 2]
        assert not any(str(tmp_path) in line for line in log)  # nothing of this machine
        errors[name] = 100 - epochs[-1]["test_acc"]
        assert f"done {name}-seed1 in" in table
    for name, paper in (("baseline", "18.72 ± 0.24"), ("dks-dropout", "16.71 ± 0.17")):
        (row,) = [line for line in table.splitlines() if line.startswith(f"| {name} | 1 of 1")]
        assert f"| {errors[name]:.2f} |" in row and row.endswith(f"| {paper} |")

    (tmp_path / "out").rename(tmp_path / "gone")  # no checkpoint is needed
    monkeypatch.setattr(wrn.study.subprocess, "Popen", None)
    assert study(*words) == 0
    assert "0 of them to do" in capsys.readouterr().out
    assert study(*words, "--epochs", "3") == 2
    assert "epochs 2, not 3" in capsys.readouterr().err


def test_a_run_of_its_own_process(study, scaled, images, tmp_path, capsys):
    """The scaled study's first row, by main.py as it is."""
    assert study(images, *TINY, "--rows", "baseline") == 0
    assert "done baseline-seed1 in" in capsys.readouterr().out
    options, *epochs = map(json.loads, (tmp_path / "logs/baseline-seed1.jsonl").open())
    sizes = [options[key] for key in ("num_classes", "train_images", "test_images", "image_size")]
    assert sizes == [2, 4, 6, scaled.image_size] and len(epochs) == 2
    assert "epoch 2/2" in (tmp_path / "out/scaled/baseline-seed1/output.txt").read_text()


def test_failures_and_signals(wrn, study, scaled, images, monkeypatch, tmp_path, capsys):
    """A failed run is told of and the others go on; SIGTERM ends all processes."""
    decoy = tmp_path / "decoy.py"
    decoy.write_text(DECOY)
    monkeypatch.setattr(wrn.study, "MAIN", decoy)
    assert study(images, *TINY, "--rows", "dks", "dks-dropout") == 2
    out, errors = capsys.readouterr()
    assert out.count("FAILED") == 2 and "error: of the decoy (0 to go)" in out
    assert errors.startswith("error: 2 of 2 runs failed: dks-seed1, dks-dropout-seed1")

    pids = [
        tmp_path / "out/scaled" / f"{row}-seed1" / "pid" for row in ("baseline", "baseline-dropout")
    ]

    def stop():
        while not all(path.exists() and path.read_text() for path in pids):
            time.sleep(0.01)
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=stop).start()
    rows = ["--rows", "baseline", "baseline-dropout"]
    assert study(images, *TINY, *rows, "--jobs", "2") == 143
    assert "stopped by SIGTERM" in capsys.readouterr().err
    for path in pids:
        pid, threads = path.read_text().split()
        assert threads == "1"
        with pytest.raises(ProcessLookupError):
            os.kill(int(pid), 0)


@pytest.mark.parametrize(
    ("words", "says"),
    [
        ("--rows dks nonsense", "--rows nonsense: no such row"),
        ("--depth 12", "6n + 4"),
        ("--preset big", "invalid choice"),
        ("--jobs 0", "from 1"),
    ],
)
def test_refusals(study, images, words, says, capsys):
    assert study(images, *words.split()) == 2
    error = capsys.readouterr().err
    assert says in error and error.count("\n") == 1


def test_data_that_do_not_do(study, tmp_path, capsys):
    assert study(tmp_path / "nowhere") == 2
    assert "no such folder" in capsys.readouterr().err
