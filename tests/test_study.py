"""study/run.py: the plan, the split of links, the runs, and a tiny study from end to end."""

import json
import os
import signal
import threading
import time
from dataclasses import replace
from pathlib import Path
from unittest.mock import Mock

import pytest
from conftest import ROOT
from synthetic import write_folders

TINY = "--depth 10 --width 0.25 --epochs 2 --seeds 1".split()
DECOY = """
import os, sys, time
save = next(word[7:] for word in sys.argv if word.startswith("--save="))
print("starting\\nerror: of the decoy\\n")
with open(os.path.join(save, "pid"), "w") as file:
    names = ("OMP_NUM_THREADS", "CUDA_VISIBLE_DEVICES")
    file.write(" ".join([str(os.getpid()), *(os.environ[name] for name in names)]))
time.sleep(0 if "dks" in save else 60)
sys.exit(2)
"""


@pytest.fixture
def scaled(study, monkeypatch):
    """The scaled preset with 2 classes of 2 training images."""
    presets = study.presets.PRESETS
    preset = replace(presets["scaled"], split=(2, 2))
    monkeypatch.setitem(presets, "scaled", preset)
    return preset


@pytest.fixture
def images(tmp_path):
    """3 classes with 4 images in train/ and 1 in val/."""
    write_folders(tmp_path / "images", dict.fromkeys(("ant", "bee", "cat"), 4), "train")
    return write_folders(tmp_path / "images", dict.fromkeys(("ant", "bee", "cat"), 1), "val")


@pytest.fixture
def run_study(study, tmp_path):
    """Run the command line with this test's folders."""
    folders = ["--out", str(tmp_path / "out"), "--logs", str(tmp_path / "logs")]
    return lambda data, *words: study.run.main(["--data", str(data), *folders, *words])


def test_paper_preset_uses_the_default_recipe(study):
    """The defaults of main.py are the paper's recipe."""
    preset = study.presets.PRESETS["paper"]
    run = next(run for run in preset.runs() if run.name == "dks-seed1")
    config, default = run.config(preset), study.options.parse([])
    assert (config.resume_options(), config.epochs) == (default.resume_options(), default.epochs)
    assert [row.seeds for row in preset.rows] == [5] * 5
    assert {row.name for row in preset.rows} - {"ds"} == set(study.published.CIFAR100)


def test_runs_of_the_scaled_study(study):
    preset = study.presets.PRESETS["scaled"]
    names = [run.name for run in preset.runs()]
    assert len(set(names)) == len(names)
    assert names[:4] == ["baseline-seed1", "ds-seed1", "dks-seed1", "baseline-seed2"]
    assert [row.seeds for row in preset.rows] == [5, 5, 5, 3, 3, 3, 3, 3]
    rows = {row.name for row in preset.rows}
    assert all(one in rows and other in rows for one, other in preset.pairs)
    configs = {run.name: run.config(preset).resume_options() for run in preset.runs()}
    for name, different in (
        ("dks-bfloat16-seed2", {"dtype": "bfloat16"}),
        ("dks-top-down-seed2", {"direction": "top-down"}),
        ("dks-dropout-seed2", {"dropout": True}),
        ("ds-seed2", {"method": "ds"}),
    ):
        assert configs[name] == configs["dks-seed2"] | different


def test_written_plans_are_those_that_run(study):
    text = (ROOT / "study" / "README.md").read_text()
    assert f" {study.presets.PRESETS['scaled']} " in " ".join(text.split())
    follow_up = study.presets.PRESETS["follow-up"]
    for group in follow_up.groups:
        seeds = {row.seeds for row in group}
        names = ", ".join(f"`{row.name}`" for row in group)
        assert f" | {names} | {seeds.pop()} |\n" in text and not seeds
    assert f": {len(list(follow_up.runs()))} runs, about" in text
    tests = [f"| `{one}` − `{other}` |\n" for one, other in follow_up.pairs[: follow_up.primary]]
    assert all(line in text for line in tests) and len(tests) == text.count("` − `") == 6


def test_runs_of_the_follow_up(study):
    """Each differs from the first study's run of the same method and seed in one thing."""
    preset, scaled = (study.presets.PRESETS[name] for name in ("follow-up", "scaled"))
    first = {run.name: run.config(scaled).resume_options() for run in scaled.runs()}
    for run in preset.runs():
        options = run.config(preset).resume_options()
        name, suffix = run.row.name.split("-")
        expected = first[f"{name}-seed{run.seed}"]
        changed = {key: value for key, value in options.items() if value != expected[key]}
        assert changed == {"21to40": {}, "smoothing": {"label_smoothing": 0.1},
                           "cutmix": {"cutmix": 1.0}}[suffix]  # fmt: skip
        assert run.row.first_class == (20 if suffix == "21to40" else 0)
    rows = {row.name for row in preset.reported_rows}
    assert all(one in rows and other in rows for one, other in preset.pairs)
    assert all({f"dks{end}", f"baseline{end}"} <= rows for end, _ in preset.settings)


@pytest.mark.parametrize("name", ["scaled", "follow-up"])
def test_committed_logs_are_complete(study, name):
    preset = study.presets.PRESETS[name]
    logged = study.logs.read_study(study.presets.LOGS / name, preset)
    assert {name: len(runs) for name, runs in logged.items()} == {
        row.name: row.seeds for row in preset.reported_rows
    }


def test_split_of_links(study, wrn, images, tmp_path):
    make = study.data.link_split
    folder = make(images, tmp_path / "split", 0, 2, 3)
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
    assert make(images, folder, 0, 2, 3) == folder  # again
    for first, classes, count, says in (
        (0, 2, 2, "not the split"), (0, 4, 2, "3 classes"), (2, 2, 2, "3 classes"),
        (0, 2, 4, "more than"),
    ):  # fmt: skip
        with pytest.raises(study.command_line.UserError, match=says):
            make(images, folder, first, classes, count)
    later = make(images, tmp_path / "later", 1, 2, 3)
    assert {path.name for path in later.glob("*/*")} == {"bee", "cat"}


@pytest.fixture
def in_this_process(study, wrn, monkeypatch):
    """Run main.py in this process instead of one of its own."""

    class InThisProcess:
        def __init__(self, words, **options):
            assert Path(words[1]) == ROOT / "wrn_DKS" / "main.py"
            self._status = wrn.main.main(words[2:])

        def poll(self):
            self.returncode = self._status
            return self.returncode

    monkeypatch.setattr(study.run.subprocess, "Popen", InThisProcess)


def test_modern_preset_from_end_to_end(
    study, run_study, cifar100, in_this_process, tmp_path, capsys
):
    """Two seeds of each row; tables and the figure from their logs."""
    tiny = ("--preset", "modern", *TINY[:-1], "2")
    assert run_study(tmp_path / "root", *tiny) == 0
    table = capsys.readouterr().out
    logs = {path.name for path in (tmp_path / "logs").iterdir()}
    endings = ("", "-smoothing", "-cutmix")
    assert logs == {
        f"{method}{ending}-seed{seed}.jsonl"
        for method in ("baseline", "ds", "dks") for ending in endings for seed in (1, 2)
    }  # fmt: skip
    options = json.loads((tmp_path / "logs/dks-cutmix-seed2.jsonl").open().readline())
    assert (options["cutmix"], options["label_smoothing"]) == (1.0, 0.0)
    for label in ("plain recipe", "label smoothing 0.1", "CutMix, α = 1"):
        assert f"| {label} | 2 |" in table
    assert "| dks − baseline-cutmix | 2 |" in table and "p, Holm, 6 tests" in table
    words = ["--images", str(tmp_path / "images"), "--logs", str(tmp_path / "logs"), *tiny]
    assert study.report.main(words) == 0
    assert [path.name for path in (tmp_path / "images").iterdir()] == ["study_gains.png"]


def test_paper_preset_from_end_to_end(
    study, run_study, cifar100, in_this_process, monkeypatch, tmp_path, capsys
):
    """Train all five rows on CIFAR-100's files, compare with the paper; then call it again."""
    words = (tmp_path / "root", "--preset", "paper", *TINY)
    assert run_study(*words) == 0
    table = capsys.readouterr().out
    errors = {}
    for name in ("baseline", "ds", "dks", "baseline-dropout", "dks-dropout"):
        log = (tmp_path / "logs" / f"{name}-seed1.jsonl").read_text().splitlines()
        options, *epochs = map(json.loads, log)
        assert (options["depth"], options["epochs"], options["num_classes"]) == (10, 2, 100)
        assert options["dropout"] == ("dropout" in name)
        assert options["random_scheme"] == 2 and len(options["data_fingerprint"]) == 12
        assert [record["epoch"] for record in epochs] == [1, 2]
        assert not any(str(tmp_path) in line for line in log)  # no path of this machine
        errors[name] = 100 - epochs[-1]["test_acc"]
        assert f"done {name}-seed1 in" in table
    for name, paper in (("baseline", "18.72 ± 0.24"), ("dks-dropout", "16.71 ± 0.17")):
        (row,) = [line for line in table.splitlines() if line.startswith(f"| {name} | 1 of 1")]
        assert f"| {errors[name]:.2f} |" in row and row.endswith(f"| {paper} |")

    (tmp_path / "out").rename(tmp_path / "gone")  # no checkpoint is needed
    monkeypatch.setattr(study.run.subprocess, "Popen", None)
    assert run_study(*words) == 0
    assert "0 to train" in capsys.readouterr().out
    assert run_study(*words, "--epochs", "3") == 2
    assert "epochs 2, not 3" in capsys.readouterr().err


def test_run_in_its_own_process(run_study, scaled, images, tmp_path, capsys):
    """Train the scaled study's first row with the real main.py."""
    assert run_study(images, *TINY, "--rows", "baseline") == 0
    assert "done baseline-seed1 in" in capsys.readouterr().out
    options, *epochs = map(json.loads, (tmp_path / "logs/baseline-seed1.jsonl").open())
    sizes = [options[key] for key in ("num_classes", "train_images", "test_images", "image_size")]
    assert sizes == [2, 4, 6, scaled.image_size] and len(epochs) == 2
    assert "epoch 2/2" in (tmp_path / "out/scaled/baseline-seed1/output.txt").read_text()


def test_logs_are_rounded_to_four_decimals(study, tmp_path):
    """Times and memory alike; nothing that distinguishes two epochs is lost."""
    options = study.logs.RESUME_MUST_MATCH + study.logs.SIZES + ("epochs",)
    metrics = {"test_acc": 12.345678, "test_divergences": [[0.123456, 1e-5]], "train_time": 1.00004}
    record = {**dict.fromkeys(options, 1), "epoch": 1, **metrics, "not_kept": 1.5}
    (tmp_path / "log.txt").write_text(f"{study.epoch_log.PREFIX}{json.dumps(record)}\n")
    run = next(study.presets.PRESETS["paper"].runs())
    study.logs.write_log(run, tmp_path / "log.txt", tmp_path / "x.jsonl")
    first, epoch = map(json.loads, (tmp_path / "x.jsonl").read_text().splitlines())
    assert epoch == {
        "epoch": 1, "test_acc": 12.3457, "test_divergences": [[0.1235, 0.0]], "train_time": 1.0
    }  # fmt: skip
    assert first["epoch"] == 0 and first.keys() >= set(options)


def test_failures_and_signals(study, run_study, scaled, images, monkeypatch, tmp_path, capsys):
    """A failed run is reported and the others continue; SIGTERM ends all processes."""
    decoy = tmp_path / "decoy.py"
    decoy.write_text(DECOY)
    monkeypatch.delenv(
        "OMP_NUM_THREADS", raising=False
    )  # the runs have one thread each all the same
    monkeypatch.setattr(study.run, "MAIN", decoy)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3,5")
    monkeypatch.setenv("OMP_NUM_THREADS", "2")
    assert run_study(images, *TINY, "--rows", "dks", "dks-dropout") == 2
    out, errors = capsys.readouterr()
    assert out.count("FAILED") == 2 and "error: of the decoy (0 left)" in out
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
    assert run_study(images, *TINY, *rows, "--jobs", "2") == 143
    assert "stopped by SIGTERM" in capsys.readouterr().err
    for path, gpu in zip(pids, ("3", "5"), strict=True):
        pid, *environment = path.read_text().split()
        assert environment == ["1", gpu]
        with pytest.raises(ProcessLookupError):
            os.kill(int(pid), 0)


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        (None, ["0", "1", "2"]),
        ("1,GPU-8f", ["1", "GPU-8f"]),
        ("2, 0", ["2", "0"]),
        ("0,-1,1", ["0"]),  # CUDA ignores what follows an invalid name
        ("", []),
    ],
)
def test_gpus_are_those_that_cuda_shows(study, monkeypatch, given, expected):
    monkeypatch.setattr(study.run.torch.cuda, "device_count", lambda: 3)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if given is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", given)
    assert study.run.visible_gpus() == expected


@pytest.mark.parametrize(
    ("gpus", "expected"), [(["4", "7"], ["4", "7", "4"]), (["4"], ["4"] * 3), ([], [None] * 3)]
)
def test_jobs_take_the_gpus_in_turn(study, gpus, expected):
    jobs = [study.run.run_environment(job, 3, gpus) for job in range(3)]
    assert [job.get("CUDA_VISIBLE_DEVICES") for job in jobs] == expected


def test_a_run_gets_the_gpu_of_the_one_that_ended(study, monkeypatch, tmp_path):
    """The second run goes on until the other ones, which fail at once, have had the first GPU."""
    started = []

    def start(run, preset, folders, environment):
        started.append(environment["CUDA_VISIBLE_DEVICES"])
        number = len(started)
        process = Mock(returncode=1)
        process.poll = lambda: None if number == 2 and len(started) < 4 else 1
        return process

    monkeypatch.setattr(study.run, "start_run", start)
    monkeypatch.setattr(study.run, "failure", lambda run, folders: "")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1")
    preset = study.presets.PRESETS["scaled"]
    runs = list(preset.runs())[:4]
    folders = study.run.Folders({}, tmp_path, tmp_path)
    assert len(study.run.train_runs(runs, preset, folders, 2)) == 4
    assert started == ["0", "1", "0", "0"]


@pytest.mark.parametrize(
    ("words", "says"),
    [
        ("--rows dks nonsense", "--rows nonsense: no such row"),
        ("--depth 12", "6n + 4"),
        ("--preset big", "invalid choice"),
        ("--jobs 0", "from 1"),
    ],
)
def test_refusals(run_study, images, words, says, capsys):
    assert run_study(images, *words.split()) == 2
    error = capsys.readouterr().err
    assert says in error and error.count("\n") == 1


def test_missing_data(run_study, tmp_path, capsys):
    assert run_study(tmp_path / "nowhere") == 2
    assert "no such folder" in capsys.readouterr().err
