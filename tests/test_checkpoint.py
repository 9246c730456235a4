"""Files of weights: whole on disk, loaded without running code, and strictly."""

import argparse
import contextlib
import errno
import os
import pickle
import random
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

FULL = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


@pytest.fixture
def network():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3))


@pytest.fixture
def saved(wrn, network, tmp_path):
    path = tmp_path / "checkpoint.pt"
    wrn.checkpoint.save(path, {"model": network.state_dict(), "epoch": 3, "note": None})
    return path


@contextlib.contextmanager
def raises(scripts, *parts):
    """Expect a `UserError` that names these parts."""
    with pytest.raises(scripts.command_line.UserError) as raised:
        yield
    message = scripts.command_line.one_line(raised.value)
    assert all(str(part) in message for part in parts), message


def test_a_checkpoint_is_flushed_before_it_replaces_the_old_one(wrn, saved, monkeypatch):
    events, fsync, replace = [], os.fsync, os.replace

    def flush(descriptor):
        events.append(Path(f"/proc/self/fd/{descriptor}").readlink().name)
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", flush)
    monkeypatch.setattr(os, "replace", lambda *paths: events.append("replace") or replace(*paths))
    open_files = len(os.listdir("/proc/self/fd"))
    wrn.checkpoint.save(saved, {"epoch": 4})
    assert events == ["checkpoint.pt.tmp", "replace", saved.parent.name]
    assert len(os.listdir("/proc/self/fd")) == open_files
    assert wrn.checkpoint.load(saved) == {"epoch": 4}


@pytest.mark.parametrize("code", [errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP])
def test_a_file_system_without_fsync_is_used_as_it_is(wrn, saved, monkeypatch, code):
    def fail(descriptor):
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(os, "fsync", fail)
    wrn.checkpoint.save(saved, {"epoch": 4})
    assert wrn.checkpoint.load(saved) == {"epoch": 4}


def test_a_symbolic_link_is_written_through(wrn, tmp_path):
    (tmp_path / "link.json").symlink_to(tmp_path / "file.json")
    wrn.checkpoint.write_json(tmp_path / "link.json", [1])
    assert (tmp_path / "link.json").is_symlink() and "1" in (tmp_path / "file.json").read_text()


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"\n  <html>quota exceeded</html>", "it is a web page or a pointer of git-lfs"),
        (b"version https://git-lfs.github.com/spec/v1", "it is a web page or a pointer of git-lfs"),
        (
            pickle.dumps({"a": 1}, protocol=4),
            "checkpoint (Unsupported operand 149); use an undamaged",
        ),
        ({"metadata": {"program": "x"}, "format": 99}, "expected checkpoint format 2, found 99"),
    ],
)
def test_files_that_say_what_they_are_are_named(wrn, tmp_path, content, reason):
    path = tmp_path / "a.pth"
    path.write_bytes(content) if isinstance(content, bytes) else torch.save(content, path)
    with raises(wrn, path, reason):
        wrn.checkpoint.load(path)


@pytest.mark.parametrize("failing", ["write", "fsync", "replace", "torch"])
def test_a_failed_save_keeps_the_previous_checkpoint(wrn, saved, monkeypatch, failing):
    """Also if torch's zip writer then raises an error of its own."""

    def fail(*args):
        try:
            raise FULL
        finally:
            if failing == "torch":
                raise RuntimeError("unexpected pos 15926976 vs 15926872")

    before = saved.read_bytes()
    if failing in ("fsync", "replace"):
        monkeypatch.setattr(os, failing, fail)
    write = fail if failing in ("write", "torch") else lambda file: file.write(b"new")
    with raises(wrn, saved, "No space left on device; the previous version is intact"):
        wrn.checkpoint.write_atomically(saved, write)
    assert saved.read_bytes() == before and os.listdir(saved.parent) == [saved.name]


def test_a_full_disk_ends_a_run_with_its_last_checkpoint(half, tmp_path, capsys, monkeypatch):
    def fill_disk(trainer):
        monkeypatch.setattr(os, "fsync", lambda descriptor: (_ for _ in ()).throw(FULL))

    error = half.error(capsys, tmp_path, "--checkpoint-minutes", 0, at={5: fill_disk})
    assert "No space left on device; the previous version is intact" in error
    assert half.scripts.checkpoint.load(tmp_path / "checkpoint.pt")["step"] == 5


def test_damage_is_one_line_or_without_effect(wrn, saved):
    """Flipped bits change nothing without notice, except in tensors."""
    if torch.__version__.startswith("2.6."):
        pytest.skip("PyTorch 2.6 does not notice all of them; checked with 2.14")
    original, draws, errors = saved.read_bytes(), random.Random(0), 0
    content = wrn.checkpoint.load(saved)
    for number in range(120):
        damaged = bytearray(original)
        damaged[draws.randrange(len(original))] ^= 1 << draws.randrange(8)
        saved.write_bytes(damaged[: draws.randrange(len(original)) if number % 2 else None])
        try:
            assert {**wrn.checkpoint.load(saved), "model": 0} == {**content, "model": 0}
        except wrn.command_line.UserError as error:
            errors += str(saved) in str(error)
    assert 60 < errors < 120


def test_other_files_are_errors(wrn, imagenet, tmp_path):
    for content in (b"", b"epoch 3", b"<!DOCTYPE html>", b"\x80\x02", b"\0" * 99):
        for path in (tmp_path / "x.pt", tmp_path / "x.safetensors"):
            path.write_bytes(content)
            with raises(wrn, path, "can't be loaded as a checkpoint"):
                wrn.checkpoint.load(path)
    for path in (tmp_path, tmp_path / "none.pt"):
        with raises(wrn, path, "no such file"):
            wrn.checkpoint.load(path)
    torch.save([1, 2], path)
    with raises(wrn, "expected a dict, found list"):
        wrn.checkpoint.load(path)
    torch.save({"net": {"w": torch.zeros(1)}, "acc": 1, **dict.fromkeys("abcd")}, path)
    for scripts, load in ((wrn, wrn.weights.load), (imagenet, imagenet.weights.read_weights)):
        with raises(scripts, "net, acc, a, b, c and 1 more"):
            load(path)


class Malicious:
    """When it is unpickled, makes a folder."""

    def __init__(self, folder: Path):
        self.folder = str(folder)

    def __reduce__(self):
        return os.mkdir, (self.folder,)


@pytest.mark.parametrize("form", ["zip", "before 1.6", "pickle"])
def test_code_in_a_file_is_not_run(wrn, tmp_path, form):
    path, content = tmp_path / "x.pt", {"model": Malicious(tmp_path / "made")}
    path.write_bytes(pickle.dumps(content))
    if form != "pickle":
        torch.save(content, path, _use_new_zipfile_serialization=form == "zip")
    with raises(wrn, path, "can't be loaded as a checkpoint ("):
        wrn.checkpoint.load(path)
    assert not (tmp_path / "made").exists()
    pickle.loads(pickle.dumps(content))
    assert (tmp_path / "made").exists()


@pytest.mark.parametrize("is_zip", [True, False])
def test_harmless_values_of_other_scripts_are_loaded(wrn, network, tmp_path, is_zip):
    content = {
        "args": argparse.Namespace(lr=0.1),
        "best": np.float64(76.5),
        "n": np.int64(3),
        "x": np.float32(1),
    }
    content["state_dict"] = network.state_dict()
    torch.save(content, tmp_path / "x.pt", _use_new_zipfile_serialization=is_zip)
    loaded = wrn.checkpoint.load(tmp_path / "x.pt")
    assert (loaded["args"].lr, loaded["best"]) == (0.1, 76.5)
    assert torch.equal(loaded["state_dict"]["0.weight"], network[0].weight)


@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
def test_an_export_is_of_one_program(wrn, imagenet, network, tmp_path, suffix):
    readers = {"wrn_DKS": (wrn, wrn.weights.load)}
    readers["imagenet"] = imagenet, imagenet.weights.read_weights
    for program, (scripts, read) in readers.items():
        for other in readers:
            path = tmp_path / f"{program}-{other}{suffix}"
            wrn.checkpoint.save_weights(path, network.state_dict(), {"program": other})
            if other == program:
                assert torch.equal(read(path).state["0.weight"], network[0].weight)
            else:
                with raises(scripts, path, f"weights of {other}/; use its main.py"):
                    read(path)


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("0.weight", None, "missing keys 0.weight"),
        ("extra", torch.zeros(1), "unexpected keys extra"),
        ("0.weight", torch.zeros(3, 5), "shape (3, 5), expected (3, 4)"),
        ("0.bias", torch.zeros(3, dtype=torch.int64), "torch.int64"),
        ("0.bias", torch.tensor([1.0, float("nan"), 0]), "not finite"),
        ("0.bias", torch.zeros(3).to_sparse(), "not a dense tensor"),
        ("0.bias", 3, "not a dense tensor"),
        ("1.num_batches_tracked", torch.tensor(0.5), "torch.float32"),
    ],
)
def test_weights_that_do_not_fit_are_not_loaded(wrn, network, tmp_path, name, value, message):
    state, before = network.state_dict() | {name: value}, network[0].weight.clone()
    if value is None:
        del state[name]
    with raises(wrn, tmp_path / "x.pt", message):
        wrn.checkpoint.load_weights(network, state, tmp_path / "x.pt")
    assert torch.equal(network[0].weight, before)


def test_weights_of_another_precision_are_cast(wrn, network, tmp_path, capsys):
    state = {k: v.half() if v.is_floating_point() else v for k, v in network.state_dict().items()}
    wrn.checkpoint.load_weights(network, state, tmp_path / "x.pt")
    assert torch.equal(network[0].weight, state["0.weight"].float())
    assert "x.pt: cast to the dtype of the network: 0.weight" in capsys.readouterr().out
