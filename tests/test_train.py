"""Training on ImageNet-like folders, in this process: runs, stops, resumption, refusals."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import torchvision
from training import (
    STEPS,
    TinyNetwork,
    assert_same_run,
    checkpoint,
    command_line,
    records,
    write_data,
)


@pytest.fixture(scope="module")
def train(imagenet):
    """Runs train.py's command line on the tiny network, whichever it names."""

    def main(argv):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(imagenet.train, "build", TinyNetwork)
            # A DataLoader worker sends its exception as a pickle, which names its module.
            for name in ("common", "common.command_line"):
                patch.setitem(sys.modules, name, imagenet.imported[name])
            return imagenet.train.main(argv)

    return main


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return write_data(tmp_path_factory.mktemp("images"))


@pytest.fixture(scope="module")
def reference(train, data, tmp_path_factory):
    """The folder of a run that was never stopped."""
    save = tmp_path_factory.mktemp("runs") / "reference"
    assert train(command_line(data, save, "--ema", "0.9")) == 0
    return save


class Killed(Exception):
    """Stands for the end of the process: nothing of ours catches it."""


def call_at(monkeypatch, owner, name, count, action):
    """Let the call number `count` of a function do `action` before its own work."""
    original, calls = getattr(owner, name), []

    def wrapped(*args, **kwargs):
        calls.append(1)
        if len(calls) == count:
            action()
        return original(*args, **kwargs)

    monkeypatch.setattr(owner, name, wrapped)


def kill():
    raise Killed


def test_log_and_checkpoint_of_a_run(reference):
    first, last = records(reference)
    assert (first["epoch"], first["step"], last["step"]) == (1, STEPS, 2 * STEPS)
    losses = last["train"]["losses"]
    parts = losses["backbone"] + losses["branches"] + losses["synergy"]
    assert losses["total"] == pytest.approx(parts, rel=1e-6)
    assert len(last["validation"]["top1_errors"]) == 3 == len(last["train"]["top1_errors"])
    assert last["validation"]["images"] == 5
    assert checkpoint(reference)["class_names"] == ["cat", "dog", "eel"]
    assert list(reference.glob("events.out.tfevents.*"))


@pytest.mark.parametrize(
    ("owner", "name", "count"),
    [
        ("engine", "train_step", 3),  # within the first epoch
        ("engine", "train_step", STEPS + 1),  # at the start of the second
        ("epoch_log", "write", 2),  # validated, not yet logged
        ("epoch_log", "close", 1),  # all done
        ("train_state", "save", 2 * STEPS + 2),  # logged, not yet saved
    ],
)
def test_a_killed_run_goes_on_as_if_it_had_not_been(
    train, imagenet, data, reference, tmp_path, monkeypatch, owner, name, count
):
    module = getattr(imagenet, owner)
    owners = {"engine": "Trainer", "epoch_log": "EpochLog"}
    place = getattr(module, owners[owner]) if owner in owners else module
    argv = command_line(data, tmp_path, "--ema", "0.9", "--checkpoint-minutes", "0")
    argv += ["--resume", "auto"]
    with monkeypatch.context() as patch:
        call_at(patch, place, name, count, kill)
        with pytest.raises(Killed):
            train(argv)
    assert train(argv) == 0
    assert_same_run(tmp_path, reference)


@pytest.mark.parametrize(
    ("signum", "status"), [(signal.SIGTERM, 143), (signal.SIGINT, 130), (signal.SIGHUP, 129)]
)
@pytest.mark.parametrize("where", ["a step", "validation"])
def test_a_signal_saves_within_a_step(
    train, imagenet, data, reference, tmp_path, monkeypatch, capsys, where, signum, status
):
    def send():
        os.kill(os.getpid(), signum)

    argv = command_line(data, tmp_path, "--ema", "0.9", "--resume", "auto")
    with monkeypatch.context() as patch:
        if where == "a step":
            call_at(patch, imagenet.engine.Trainer, "train_step", 2, send)
        else:
            call_at(patch, imagenet.evaluate, "batch_counts", 1, send)
        assert train(argv) == status
    assert checkpoint(tmp_path)["step"] == (2 if where == "a step" else STEPS)
    assert not records(tmp_path) if (tmp_path / "log.jsonl").exists() else True
    assert "--resume auto" in capsys.readouterr().out
    if signum == signal.SIGTERM:
        assert train(argv) == 0
        assert_same_run(tmp_path, reference)


def test_tensorboard_forgets_what_is_repeated(train, imagenet, data, tmp_path, monkeypatch):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    argv = command_line(data, tmp_path, "--resume", "auto", "--method", "baseline")
    with monkeypatch.context() as patch:
        call_at(patch, imagenet.train_state, "save", 2, kill)  # the second epoch is logged
        with pytest.raises(Killed):
            train(argv)
    assert train(argv) == 0
    events = EventAccumulator(str(tmp_path)).Reload()
    points = events.Scalars("top1 error validation/backbone")
    assert [point.step for point in points] == [STEPS, 2 * STEPS]


def test_a_loss_that_is_not_finite_ends_the_run(train, data, tmp_path, capsys):
    argv = command_line(data, tmp_path, "--epochs", "1")
    assert train(argv) == 0
    good = (tmp_path / "checkpoint.pt").read_bytes()
    resumed = checkpoint(tmp_path)
    resumed["options"]["lr"] = 1e30
    torch.save(resumed, tmp_path / "other.pt")
    argv = command_line(data, tmp_path / "b", "--lr", "1e30", "--epochs", "2")
    argv += ["--checkpoint-minutes", "0", "--resume", str(tmp_path / "other.pt")]
    assert train(argv) == 2
    error = capsys.readouterr().err.splitlines()
    # The step after the first one of that rate, unless that one's weights are infinite already.
    assert len(error) == 1 and "not finite" in error[0] and "--lr" in error[0]
    assert f"step {STEPS + 1}" in error[0] or f"step {STEPS + 2}" in error[0]
    assert (tmp_path / "checkpoint.pt").read_bytes() == good
    if (tmp_path / "b" / "checkpoint.pt").exists():
        assert checkpoint(tmp_path / "b")["model"]["fc.weight"].isfinite().all()


def refusal(train, capsys, argv) -> str:
    """The one line with which a command line is refused."""
    capsys.readouterr()
    assert train(argv) == 2
    captured = capsys.readouterr().err
    assert captured.count("\n") == 1 and captured.startswith("error: ")
    return captured


def test_what_a_resumed_run_may_not_change(train, data, reference, tmp_path, capsys):
    source = ["--resume", str(reference / "checkpoint.pt"), "--ema", "0.9"]
    for flags, named in (
        (["--lr", "0.3"], "--lr 0.3 (was 0.02)"),
        (["--method", "ds"], "--method ds (was dks)"),
        (["-a", "resnet50"], "--arch resnet50 (was resnet18)"),
        (["--dtype", "bfloat16"], "--dtype bfloat16 (was float32)"),
        (["--grad-accumulation", "2"], "--grad-accumulation 2 (was 1)"),
        (["--lr-schedule", "cosine"], "--lr-schedule cosine (was step)"),
    ):
        error = refusal(train, capsys, command_line(data, tmp_path, *source, *flags))
        assert named in error
    other = write_data(tmp_path / "other")
    (other / "train" / "dog" / "dog_0.png").unlink()
    error = refusal(train, capsys, command_line(other, tmp_path / "b", *source))
    assert "13 images" in error and "12" in error


def test_more_epochs_are_no_other_run(train, data, reference, tmp_path):
    argv = command_line(data, tmp_path, "--ema", "0.9", "--epochs", "1")
    assert train(argv) == 0
    argv = command_line(data, tmp_path, "--ema", "0.9", "--epochs", "2", "--resume", "auto")
    assert train(argv) == 0
    assert_same_run(tmp_path, reference)


def test_a_folder_with_a_run_is_not_written_over(train, data, reference, tmp_path, capsys):
    before = (reference / "checkpoint.pt").read_bytes()
    assert "holds a run" in refusal(train, capsys, command_line(data, reference))
    elsewhere = tmp_path / "copy.pt"
    elsewhere.write_bytes(before)
    argv = command_line(data, reference, "--ema", "0.9", "--resume", str(elsewhere))
    assert "holds a run" in refusal(train, capsys, argv)
    assert (reference / "checkpoint.pt").read_bytes() == before


def test_a_folder_that_another_process_holds_is_refused(train, data, tmp_path, capsys):
    hold = "import fcntl, sys; lock = open(sys.argv[1], 'w'); fcntl.lockf(lock, fcntl.LOCK_EX); "
    hold += "print('held', flush=True); input()"
    command = [sys.executable, "-c", hold, str(tmp_path / "lock")]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as holder:
        holder.stdout.readline()
        assert "another run" in refusal(train, capsys, command_line(data, tmp_path))
        holder.stdin.close()
    assert train(command_line(data, tmp_path, "--epochs", "1")) == 0


def damage_missing(content):
    del content["optimizer"]


def damage_added(content):
    content["extra"] = 1


def damage_momentum(content):
    content["optimizer"]["state"][0]["momentum_buffer"] = torch.zeros(3)


def damage_sums(content):
    content["sums"] = {"top1": torch.zeros(3)}


def damage_step(content):
    content["step"] += 1


def damage_weights(content):
    content["model"]["fc.bias"][0] = float("nan")


def damage_average(content):
    del content["ema"]["fc.bias"]


def damage_format(content):
    content["format"] = 99


@pytest.mark.parametrize(
    "damage",
    [
        damage_missing,
        damage_added,
        damage_momentum,
        damage_sums,
        damage_step,
        damage_weights,
        damage_average,
        damage_format,
    ],
)
def test_a_checkpoint_that_does_not_fit_is_refused(
    train, data, reference, tmp_path, capsys, damage
):
    content = checkpoint(reference)
    damage(content)
    path = tmp_path / "damaged.pt"
    torch.save(content, path)
    argv = command_line(data, tmp_path / "run", "--ema", "0.9", "--resume", str(path))
    assert str(path) in refusal(train, capsys, argv)


def test_data_that_can_not_be_trained_on_is_refused(train, tmp_path, capsys):
    data, save = write_data(tmp_path / "data"), tmp_path / "run"
    (data / "val" / "dog").rename(data / "val" / "fox")
    assert "fox" in refusal(train, capsys, command_line(data, save))
    (data / "val" / "fox").rename(data / "val" / "dog")
    broken = data / "train" / "eel" / "eel_3.png"
    broken.write_bytes(broken.read_bytes()[:100])
    error = refusal(train, capsys, command_line(data, save, "--epochs", "1"))
    assert str(broken) in error
    workers = command_line(data, tmp_path / "with worker", "--epochs", "1", "-j", "1")
    assert str(broken) in refusal(train, capsys, workers)
    for name in ("cat", "dog"):
        for path in (data / "train" / name).iterdir():
            path.unlink()
        (data / "train" / name).rmdir()
    assert "eel" in refusal(train, capsys, command_line(data, save))


@pytest.mark.parametrize(
    ("flags", "named"),
    [
        (["--image-size", "32"], "--image-size"),
        (["--milestones", "30;60"], "30,60,90"),
        (["--warmup-epochs", "2", "--lr-schedule", "cosine"], "--warmup-epochs"),
        (["--export", "nowhere/weights.pt"], "nowhere"),
        (["--export", "../another/checkpoint.pt"], "has that name"),
        (["--export", "/dev/null"], "no file"),
        (["--ema", "1"], "--ema"),
        (["--resume", "nowhere.pt"], "nowhere.pt"),
    ],
)
def test_command_lines_are_refused_by_name(train, data, tmp_path, capsys, flags, named):
    assert named in refusal(train, capsys, command_line(data, tmp_path / "run", *flags))


@pytest.mark.parametrize("name", ["log.jsonl", "lock"])
def test_the_export_is_no_file_of_the_run(train, data, tmp_path, monkeypatch, capsys, name):
    monkeypatch.chdir(tmp_path)
    for path in (tmp_path / "run" / name, Path("run", "..", "run", name)):
        line = command_line(data, "run", "--export", str(path))
        assert "own file" in refusal(train, capsys, line)
    assert not Path("run").exists()


def test_a_run_of_everything_beyond_the_paper_exports_to_timm(imagenet, data, tmp_path):
    train = imagenet.train.main  # with a real ResNet
    timm = pytest.importorskip("timm")
    save = tmp_path / "run"
    flags = "-a resnet18 --method baseline --epochs 1 --lr-schedule cosine --warmup-epochs 0.5"
    flags += " --label-smoothing 0.1 --ema 0.5 --grad-accumulation 2 -j 1"
    flags += " --augmentation resized-crop --export"
    for name in ("backbone.pth", "backbone.safetensors"):
        export = save / name
        assert train(command_line(data, save, *flags.split(), str(export), "--resume", "auto")) == 0
    weights = torch.load(save / "backbone.pth", weights_only=True)
    ours = torchvision.models.resnet18(num_classes=3)
    ours.load_state_dict(weights, strict=True)
    theirs = timm.create_model("resnet18", num_classes=3, checkpoint_path=str(export))
    images = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        torch.testing.assert_close(theirs.eval()(images), ours.eval()(images))
    average = checkpoint(save)["ema"]
    assert all(torch.equal(value, average[name]) for name, value in weights.items())
    assert "ema" in records(save)[0]


def test_float16_keeps_its_scale(train, data, tmp_path):
    argv = command_line(data, tmp_path, "--dtype", "half", "--method", "baseline")
    assert train([*argv, "--epochs", "1"]) == 0
    scale = checkpoint(tmp_path)["scaler"]
    assert scale["scale"] > 0
    assert train([*argv, "--resume", "auto"]) == 0
    assert checkpoint(tmp_path)["scaler"]["_growth_tracker"] >= scale["_growth_tracker"]


def test_report_has_the_last_epoch_of_every_run(imagenet, reference, tmp_path, capsys):
    other = tmp_path / "other"
    other.mkdir()
    record = json.loads((reference / "log.jsonl").read_text().splitlines()[0])
    record["method"] = "baseline"
    for key in ("top1_errors", "top5_errors"):
        record["validation"][key] = [12.5]
    (other / "log.jsonl").write_text(json.dumps(record) + "\n")
    figure = tmp_path / "error.png"
    assert imagenet.report.main([str(reference), str(other), "--figure", str(figure)]) == 0
    rows = capsys.readouterr().out.splitlines()
    assert rows[2].startswith(f"| {reference} | resnet18 | dks | 2 |")
    assert "| baseline | 1 | 12.50 / 12.50 | – | – |" in rows[3]
    assert figure.stat().st_size > 5000
    curves = imagenet.report.draw({"a": [record]}).axes[0].lines
    assert np.array_equal(curves[0].get_xydata(), [[STEPS, 12.5]])
    assert "no log.jsonl" in refusal(imagenet.report.main, capsys, [str(tmp_path)])
