"""imagenet/train.py: runs, interruptions, resumption, export and report."""

import os
import signal

import pytest
import torch
import torchvision
from training import (
    STEPS,
    assert_same_run,
    command_line,
    load_checkpoint,
    log_records,
    run_train,
    write_data,
)


@pytest.fixture(scope="module")
def train(imagenet):
    return lambda argv: run_train(imagenet, argv)


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return write_data(tmp_path_factory.mktemp("images"))


@pytest.fixture(scope="module")
def reference(train, data, tmp_path_factory):
    """The folder of an uninterrupted run."""
    save = tmp_path_factory.mktemp("runs") / "reference"
    assert train(command_line(data, save, "--ema", "0.9")) == 0
    return save


class Killed(Exception):
    """Simulates the death of the process: the code under test does not catch it."""


def at_call(monkeypatch, owner, name, count, action):
    """Run `action` before call number `count` of a function."""
    original, calls = getattr(owner, name), []

    def wrapped(*args, **kwargs):
        calls.append(1)
        if len(calls) == count:
            action()
        return original(*args, **kwargs)

    monkeypatch.setattr(owner, name, wrapped)


def kill():
    raise Killed


def test_a_run_writes_log_checkpoint_and_tensorboard_events(reference):
    first, last = log_records(reference)
    assert (first["epoch"], first["step"], last["step"]) == (1, STEPS, 2 * STEPS)
    losses = last["train"]["losses"]
    parts = losses["backbone"] + losses["branches"] + losses["synergy"]
    assert losses["total"] == pytest.approx(parts, rel=1e-6)
    assert len(last["validation"]["top1_errors"]) == 3 == len(last["train"]["top1_errors"])
    assert last["validation"]["images"] == 5
    assert load_checkpoint(reference)["class_names"] == ["cat", "dog", "eel"]
    assert list(reference.glob("events.out.tfevents.*"))


@pytest.mark.parametrize(
    ("module", "owner", "name", "count"),
    [
        ("engine", "Trainer", "train_step", 3),  # within the first epoch
        ("engine", "Trainer", "train_step", STEPS + 1),  # at the start of the second
        ("epoch_log", "EpochLog", "write", 2),  # after validation, before logging
        ("epoch_log", "EpochLog", "close", 1),  # at the end
        ("train_state", None, "save", 2 * STEPS + 2),  # after logging, before saving
    ],
)
def test_a_killed_run_resumes_to_the_same_result(
    train, imagenet, data, reference, tmp_path, monkeypatch, module, owner, name, count
):
    place = getattr(imagenet, module)
    argv = command_line(data, tmp_path, "--ema", "0.9", "--checkpoint-minutes", "0")
    argv += ["--resume", "auto"]
    with monkeypatch.context() as patch:
        at_call(patch, getattr(place, owner) if owner else place, name, count, kill)
        with pytest.raises(Killed):
            train(argv)
    assert train(argv) == 0
    assert_same_run(tmp_path, reference)


@pytest.mark.parametrize(
    ("signum", "status"), [(signal.SIGTERM, 143), (signal.SIGINT, 130), (signal.SIGHUP, 129)]
)
@pytest.mark.parametrize("where", ["a step", "validation"])
@pytest.mark.usefixtures("hangup_is_not_ignored")
def test_a_signalled_run_saves_and_resumes_to_the_same_result(
    train, imagenet, data, reference, tmp_path, monkeypatch, capsys, where, signum, status
):
    def send_signal():
        os.kill(os.getpid(), signum)

    argv = command_line(data, tmp_path, "--ema", "0.9", "--resume", "auto")
    with monkeypatch.context() as patch:
        if where == "a step":
            at_call(patch, imagenet.engine.Trainer, "train_step", 2, send_signal)
        else:
            at_call(patch, imagenet.evaluate, "batch_counts", 1, send_signal)
        assert train(argv) == status
    assert load_checkpoint(tmp_path)["step"] == (2 if where == "a step" else STEPS)
    assert not (tmp_path / "log.jsonl").exists() or not log_records(tmp_path)
    assert "--resume auto" in capsys.readouterr().out
    if signum == signal.SIGTERM:
        assert train(argv) == 0
        assert_same_run(tmp_path, reference)


def test_tensorboard_drops_the_points_of_a_repeated_epoch(
    train, imagenet, data, tmp_path, monkeypatch
):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    argv = command_line(data, tmp_path, "--resume", "auto", "--method", "baseline")
    with monkeypatch.context() as patch:
        at_call(patch, imagenet.train_state, "save", 2, kill)  # the second epoch is logged
        with pytest.raises(Killed):
            train(argv)
    assert train(argv) == 0
    events = EventAccumulator(str(tmp_path)).Reload()
    points = events.Scalars("top1 error validation/backbone")
    assert [point.step for point in points] == [STEPS, 2 * STEPS]


def test_a_resumed_run_may_have_more_epochs(train, data, reference, tmp_path):
    argv = command_line(data, tmp_path, "--ema", "0.9", "--epochs", "1")
    assert train(argv) == 0
    argv = command_line(data, tmp_path, "--ema", "0.9", "--epochs", "2", "--resume", "auto")
    assert train(argv) == 0
    assert_same_run(tmp_path, reference)


def test_the_exported_average_loads_in_torchvision_and_timm(imagenet, data, tmp_path):
    """A run of a real ResNet with every option that the paper does not use."""
    timm = pytest.importorskip("timm")
    save = tmp_path / "run"
    flags = "-a resnet18 --method baseline --epochs 1 --lr-schedule cosine --warmup-epochs 0.5"
    flags += " --label-smoothing 0.1 --ema 0.5 --grad-accumulation 2 -j 1 --resume auto"
    flags += " --augmentation resized-crop --export"
    for name in ("backbone.pth", "backbone.safetensors"):
        argv = command_line(data, save, *flags.split(), str(save / name))
        assert imagenet.train.main(argv) == 0
    weights = torch.load(save / "backbone.pth", weights_only=True)
    network = torchvision.models.resnet18(num_classes=3)
    network.load_state_dict(weights, strict=True)
    in_timm = timm.create_model(
        "resnet18", num_classes=3, checkpoint_path=str(save / "backbone.safetensors")
    )
    images = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        torch.testing.assert_close(in_timm.eval()(images), network.eval()(images))
    average = load_checkpoint(save)["ema"]
    assert all(torch.equal(value, average[name]) for name, value in weights.items())
    assert "ema" in log_records(save)[0]


def test_report_shows_the_last_epoch(imagenet, reference, capsys):
    assert imagenet.report.main([str(reference.parent)]) == 0
    cells = [cell.strip() for cell in capsys.readouterr().out.splitlines()[4].split("|")]
    record = log_records(reference)[-1]
    errors, averaged = (
        [f"{top1:.2f} / {top5:.2f}" for top1, top5 in zip(*pairs, strict=True)]
        for pairs in (
            (record[part]["top1_errors"], record[part]["top5_errors"])
            for part in ("validation", "ema")
        )
    )
    assert cells[1:8] == ["dks", "1", "2", errors[0], averaged[0], *errors[1:]]
    assert cells[9] == f"{record['train']['top1_errors'][0]:.2f}"


def test_label_smoothing_reaches_the_loss(train, data, reference, tmp_path):
    assert train(command_line(data, tmp_path, "--epochs", "1", "--label-smoothing", "0.5")) == 0
    smoothed, plain = (log_records(save)[0]["train"]["losses"] for save in (tmp_path, reference))
    assert smoothed["backbone"] != pytest.approx(plain["backbone"], rel=1e-3)
    assert smoothed["synergy"] > 0


def test_export_can_not_overwrite_the_checkpoint_to_resume(train, data, reference, tmp_path):
    start = tmp_path / "start.pt"
    start.write_bytes((reference / "checkpoint.pt").read_bytes())
    argv = command_line(data, tmp_path / "run", "--ema", "0.9", "--resume", str(start))
    assert train([*argv, "--export", str(start)]) == 2
    assert start.read_bytes() == (reference / "checkpoint.pt").read_bytes()
