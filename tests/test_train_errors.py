"""imagenet/train.py: invalid input is refused in one line, and no run is overwritten."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from training import STEPS, command_line, error_of, load_checkpoint, run_train, write_data


@pytest.fixture(scope="module")
def train(imagenet):
    return lambda argv: run_train(imagenet, argv)


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return write_data(tmp_path_factory.mktemp("images"))


@pytest.fixture(scope="module")
def reference(train, data, tmp_path_factory):
    """The folder of a finished run."""
    save = tmp_path_factory.mktemp("runs") / "reference"
    assert train(command_line(data, save, "--ema", "0.9")) == 0
    return save


def test_a_nonfinite_loss_stops_the_run_and_keeps_the_last_checkpoint(
    train, data, tmp_path, capsys
):
    assert train(command_line(data, tmp_path, "--epochs", "1")) == 0
    good = (tmp_path / "checkpoint.pt").read_bytes()
    content = load_checkpoint(tmp_path)
    content["options"]["lr"] = 1e30
    torch.save(content, tmp_path / "other.pt")
    argv = command_line(data, tmp_path / "b", "--lr", "1e30", "--epochs", "2")
    argv += ["--checkpoint-minutes", "0", "--resume", str(tmp_path / "other.pt")]
    error = error_of(train, capsys, argv)
    assert "not finite" in error and "--lr" in error
    # The loss after the first update, unless that update's weights are already infinite.
    assert f"step {STEPS + 1}" in error or f"step {STEPS + 2}" in error
    assert (tmp_path / "checkpoint.pt").read_bytes() == good
    if (tmp_path / "b" / "checkpoint.pt").exists():
        assert load_checkpoint(tmp_path / "b")["model"]["fc.weight"].isfinite().all()


def test_a_run_is_not_resumed_with_other_options_or_images(
    train, data, reference, tmp_path, capsys
):
    source = ["--resume", str(reference / "checkpoint.pt"), "--ema", "0.9"]
    for flags, message in (
        (["--lr", "0.3"], "--lr 0.3 (was 0.02)"),
        (["--method", "ds"], "--method ds (was dks)"),
        (["-a", "resnet50"], "--arch resnet50 (was resnet18)"),
        (["--dtype", "bfloat16"], "--dtype bfloat16 (was float32)"),
        (["--grad-accumulation", "2"], "--grad-accumulation 2 (was 1)"),
        (["--lr-schedule", "cosine"], "--lr-schedule cosine (was step)"),
    ):
        argv = command_line(data, tmp_path, *source, *flags)
        assert message in error_of(train, capsys, argv)
    other = write_data(tmp_path / "other")
    (other / "train" / "dog" / "dog_0.png").unlink()
    error = error_of(train, capsys, command_line(other, tmp_path / "b", *source))
    assert "13 images" in error and "12" in error


def test_a_folder_with_a_run_is_not_overwritten(train, data, reference, tmp_path, capsys):
    before = (reference / "checkpoint.pt").read_bytes()
    assert "already contains a run" in error_of(train, capsys, command_line(data, reference))
    copy = tmp_path / "copy.pt"
    copy.write_bytes(before)
    argv = command_line(data, reference, "--ema", "0.9", "--resume", str(copy))
    assert "already contains a run" in error_of(train, capsys, argv)
    assert (reference / "checkpoint.pt").read_bytes() == before


def test_a_folder_locked_by_another_process_is_refused(train, data, tmp_path, capsys):
    code = "import fcntl, sys; lock = open(sys.argv[1], 'w'); fcntl.lockf(lock, fcntl.LOCK_EX); "
    code += "print('locked', flush=True); input()"
    command = [sys.executable, "-c", code, str(tmp_path / "lock")]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as owner:
        owner.stdout.readline()
        assert "another run" in error_of(train, capsys, command_line(data, tmp_path))
        owner.stdin.close()
    assert train(command_line(data, tmp_path, "--epochs", "1")) == 0


def remove_key(content):
    del content["optimizer"]


def add_key(content):
    content["extra"] = 1


def change_momentum_shape(content):
    content["optimizer"]["state"][0]["momentum_buffer"] = torch.zeros(3)


def replace_sums(content):
    content["sums"] = {"top1": torch.zeros(3)}


def change_step(content):
    content["step"] += 1


def set_weight_to_nan(content):
    content["model"]["fc.bias"][0] = float("nan")


def remove_averaged_weight(content):
    del content["ema"]["fc.bias"]


def change_format(content):
    content["format"] = 99


@pytest.mark.parametrize(
    "damage",
    [
        remove_key,
        add_key,
        change_momentum_shape,
        replace_sums,
        change_step,
        set_weight_to_nan,
        remove_averaged_weight,
        change_format,
    ],
)
def test_a_damaged_checkpoint_is_not_resumed(train, data, reference, tmp_path, capsys, damage):
    content = load_checkpoint(reference)
    damage(content)
    path = tmp_path / "damaged.pt"
    torch.save(content, path)
    argv = command_line(data, tmp_path / "run", "--ema", "0.9", "--resume", str(path))
    assert str(path) in error_of(train, capsys, argv)


def test_unusable_images_are_named(train, tmp_path, capsys):
    data, save = write_data(tmp_path / "data"), tmp_path / "run"
    (data / "val" / "dog").rename(data / "val" / "fox")
    assert "fox" in error_of(train, capsys, command_line(data, save))
    (data / "val" / "fox").rename(data / "val" / "dog")
    broken = data / "train" / "eel" / "eel_3.png"
    broken.write_bytes(broken.read_bytes()[:100])
    for workers in ("0", "1"):
        argv = command_line(data, tmp_path / workers, "--epochs", "1", "-j", workers)
        assert str(broken) in error_of(train, capsys, argv)
    for name in ("cat", "dog"):
        (data / "train" / name).rename(tmp_path / name)
    assert "only one class, eel" in error_of(train, capsys, command_line(data, save))


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--image-size", "32"], "--image-size"),
        (["--milestones", "30;60"], "30,60,90"),
        (["--epoch_step", "[31]"], "not allowed with"),
        (["--warmup-epochs", "2", "--lr-schedule", "cosine"], "--warmup-epochs"),
        (["--export", "nowhere/weights.pt"], "nowhere"),
        (["--export", "../another/checkpoint.pt"], "reserved for the checkpoint"),
        (["--export", "/dev/null"], "exists already"),
        (["--ema", "1"], "--ema"),
        (["--resume", "nowhere.pt"], "nowhere.pt"),
    ],
)
def test_invalid_arguments_are_refused(train, data, tmp_path, capsys, flags, message):
    assert message in error_of(train, capsys, command_line(data, tmp_path / "run", *flags))


@pytest.mark.parametrize("name", ["log.jsonl", "lock"])
def test_the_export_does_not_overwrite_files_of_the_run(
    train, data, tmp_path, monkeypatch, capsys, name
):
    monkeypatch.chdir(tmp_path)
    for path in (tmp_path / "run" / name, Path("run", "..", "run", name)):
        argv = command_line(data, "run", "--export", str(path))
        assert "the run writes" in error_of(train, capsys, argv)
    assert not Path("run").exists()
