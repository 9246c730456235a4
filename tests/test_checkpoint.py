"""Checkpoints are written atomically; damaged, unsuitable or malicious files are rejected."""

import errno
import os
import pickle
import random
import resource
import signal
import stat
import zipfile
from pathlib import Path

import pytest
import torch


@pytest.fixture
def network():
    torch.manual_seed(0)
    return torch.nn.Sequential(torch.nn.Linear(4, 3), torch.nn.BatchNorm1d(3))


@pytest.fixture
def saved(wrn, network, tmp_path):
    path = tmp_path / "checkpoint.pt"
    wrn.checkpoint.save(path, {"model": network.state_dict(), "epoch": 3, "names": ["a"]})
    return path


def raises_user_error(wrn, message):
    return pytest.raises(wrn.command_line.UserError, match=message)


def test_saved_checkpoint_loads_unchanged(wrn, network, saved):
    content = wrn.checkpoint.load(saved)
    assert content["epoch"] == 3 and content["names"] == ["a"]
    assert torch.equal(content["model"]["0.weight"], network[0].weight)
    assert [path.name for path in saved.parent.iterdir()] == ["checkpoint.pt"]


def test_full_disk_keeps_the_previous_checkpoint(wrn, saved):
    before = saved.read_bytes()
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, limits[1]))
    try:
        with raises_user_error(wrn, "previous version is intact"):
            wrn.checkpoint.save(saved, {"model": torch.zeros(10_000)})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert saved.read_bytes() == before
    assert [path.name for path in saved.parent.iterdir()] == ["checkpoint.pt"]


def test_a_file_is_on_the_disk_before_it_replaces_another(wrn, saved, monkeypatch):
    """And the new name in the folder afterwards, so that a power failure loses neither."""
    events, fsync, replace = [], os.fsync, os.replace

    def record_fsync(descriptor):
        is_folder = stat.S_ISDIR(os.fstat(descriptor).st_mode)
        events.append("folder" if is_folder else os.fstat(descriptor).st_size)
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", record_fsync)
    monkeypatch.setattr(os, "replace", lambda a, b: events.append("replace") or replace(a, b))
    wrn.checkpoint.write_atomically(saved, lambda file: file.write(b"12345"))
    assert events == [5, "replace", "folder"]
    wrn.json_log.Log(saved.with_name("log")).append({"epoch": 1})
    assert events[3:] == [len('{"epoch": 1}\n')]


def test_saving_to_a_missing_folder_is_an_error(wrn, tmp_path):
    with raises_user_error(wrn, "can't be saved"):
        wrn.checkpoint.save(tmp_path / "none" / "x.pt", {})


def test_flipped_bits_never_change_what_is_loaded(wrn, saved):
    """Most flips are errors; flips in the padding of the archive have no effect."""
    original, content = saved.read_bytes(), wrn.checkpoint.load(saved)
    draws, errors = random.Random(0), 0
    for _ in range(60):
        damaged = bytearray(original)
        damaged[draws.randrange(len(original))] ^= 1 << draws.randrange(8)
        saved.write_bytes(damaged)
        try:
            loaded = wrn.checkpoint.load(saved)
        except wrn.command_line.UserError:
            errors += 1
        else:
            assert loaded["epoch"] == 3
            for name, tensor in content["model"].items():
                assert torch.equal(loaded["model"][name], tensor)
    assert errors > 10


def test_flipped_weight_fails_its_crc(wrn, network, saved):
    data = bytearray(saved.read_bytes())
    offset = data.find(network[0].weight.detach().numpy().tobytes())
    assert offset > 0
    data[offset] ^= 1
    saved.write_bytes(data)
    with raises_user_error(wrn, "fails its CRC"):
        wrn.checkpoint.load(saved)


@pytest.mark.parametrize("fraction", [0.0, 0.1, 0.5, 0.99])
def test_truncated_checkpoint_is_an_error(wrn, saved, fraction):
    content = saved.read_bytes()
    saved.write_bytes(content[: int(fraction * len(content))])
    with raises_user_error(wrn, str(saved)):
        wrn.checkpoint.load(saved)


@pytest.mark.parametrize("content", [b"", b"epoch 3", b"<!DOCTYPE html><html></html>", b"\x80\x02"])
def test_other_files_are_errors(wrn, tmp_path, content):
    path = tmp_path / "x.pt"
    path.write_bytes(content)
    with raises_user_error(wrn, "can't be loaded"):
        wrn.checkpoint.load(path)
    with raises_user_error(wrn, "no such file"):
        wrn.checkpoint.load(tmp_path)


class Malicious:
    def __init__(self, folder):
        self.folder = folder

    def __reduce__(self):
        return os.mkdir, (self.folder,)


@pytest.mark.parametrize("zipped", [True, False, None])
def test_code_in_a_checkpoint_is_not_run(wrn, tmp_path, zipped):
    path, made = tmp_path / "x.pt", tmp_path / "made"
    if zipped is None:
        path.write_bytes(pickle.dumps({"model": Malicious(str(made))}))
    else:
        content = {"model": Malicious(str(made))}
        torch.save(content, path, _use_new_zipfile_serialization=zipped)
    with raises_user_error(wrn, "can't be loaded"):
        wrn.checkpoint.load(path)
    assert not made.exists()


def test_a_compressed_file_is_not_loaded(wrn, saved, tmp_path):
    """It could expand without limit."""
    path = tmp_path / "x.pt"
    with (
        zipfile.ZipFile(saved) as archive,
        zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as compressed,
    ):
        for name in archive.namelist():
            compressed.writestr(name, archive.read(name))
    with raises_user_error(wrn, "compressed zip file"):
        wrn.checkpoint.load(path)


def test_format_before_pytorch_1_6_loads(wrn, network, tmp_path):
    path = tmp_path / "old.pt"
    torch.save(network.state_dict(), path, _use_new_zipfile_serialization=False)
    assert torch.equal(wrn.checkpoint.load(path)["0.weight"], network[0].weight)


def test_checkpoint_must_be_a_dict(wrn, tmp_path):
    torch.save([1, 2], tmp_path / "x.pt")
    with raises_user_error(wrn, "expected a dict"):
        wrn.checkpoint.load(tmp_path / "x.pt")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda s: s.pop("0.weight"), "missing keys 0.weight"),
        (lambda s: s.update(extra=torch.zeros(1)), "unexpected keys extra"),
        (lambda s: s.update({"0.weight": torch.zeros(3, 5)}), r"shape \(3, 5\)"),
        (lambda s: s.update({"0.bias": torch.zeros(3, dtype=torch.int64)}), "torch.int64"),
        (lambda s: s.update({"0.bias": torch.tensor([1.0, float("nan"), 0])}), "not finite"),
        (lambda s: s.update({"0.bias": 3}), "not a dense tensor"),
        (lambda s: s.update({"1.num_batches_tracked": torch.tensor(0.5)}), "torch.float32"),
    ],
)
def test_weights_that_do_not_fit_are_not_loaded(wrn, network, tmp_path, change, message):
    state = dict(network.state_dict())
    change(state)
    before = network[0].weight.clone()
    with raises_user_error(wrn, message):
        wrn.checkpoint.load_weights(network, state, tmp_path / "x.pt")
    assert torch.equal(network[0].weight, before)


def test_weights_of_another_precision_are_cast(wrn, network, tmp_path, capsys):
    state = {
        name: t.double() if t.is_floating_point() else t for name, t in network.state_dict().items()
    }
    wrn.checkpoint.load_weights(network, state, tmp_path / "x.pt")
    assert network[0].weight.dtype == torch.float32
    assert "cast" in capsys.readouterr().out


def test_missing_keys_and_wrong_types_are_errors(wrn, tmp_path):
    wrn.checkpoint.require_keys({"epoch": 1}, {"epoch": int}, tmp_path)
    with raises_user_error(wrn, "found nothing"):
        wrn.checkpoint.require_keys({}, {"epoch": int}, tmp_path)
    with raises_user_error(wrn, "found str"):
        wrn.checkpoint.require_keys({"epoch": "1"}, {"epoch": int}, tmp_path)


@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM])
def test_signal_is_deferred_until_the_file_is_written(wrn, saved, signum):
    def write(file):
        os.kill(os.getpid(), signum)
        file.write(b"complete")

    with pytest.raises(wrn.signals.Interrupted), wrn.signals.raise_signals():
        wrn.checkpoint.write_atomically(saved, write)
    assert saved.read_bytes() == b"complete"


def test_a_full_disk_is_named(wrn, saved):
    """torch's zip writer raises an error of its own after that of the disk."""

    def write(file):
        try:
            raise OSError(errno.ENOSPC, "No space left on device")
        finally:
            raise RuntimeError("unexpected pos 15926976 vs 15926872")

    with raises_user_error(wrn, "No space left on device; the previous version is intact"):
        wrn.checkpoint.write_atomically(saved, write)
    with raises_user_error(wrn, "Not a directory"):
        try:
            raise OSError("unrelated")
        except OSError:
            wrn.checkpoint.write_atomically(saved / "x", write)


@pytest.mark.parametrize("text", ["", "junk", "junk\n", "<html>"])
def test_a_text_is_not_a_checkpoint(wrn, tmp_path, text):
    (tmp_path / "x.pt").write_text(text)
    with raises_user_error(wrn, "it contains code or is not a checkpoint"):
        wrn.checkpoint.load(tmp_path / "x.pt")


# Prints by how much the peak of memory grows while a checkpoint is loaded, per byte of the file.
# In a process of its own: a large one may have room that it does not use.
MEMORY_SCRIPT = """
import re, sys
from pathlib import Path
import torch
from common import checkpoint

def memory(name):
    status = Path("/proc/self/status").read_text()
    return 1024 * int(re.search(rf"{name}:\\s+(\\d+)", status)[1])

def load():
    checkpoint.load_weights(model, checkpoint.load(path)["model"], path)

path, model = Path(sys.argv[1]), torch.nn.Linear(4096, 4096)
checkpoint.save(path, {"model": model.state_dict()})
load()  # the first time, the code that loads takes memory too
before = memory("VmRSS")
Path("/proc/self/clear_refs").write_text("5")  # resets the peak
load()
print((memory("VmHWM") - before) / path.stat().st_size)
"""


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="requires Linux")
def test_loading_holds_the_checkpoint_in_memory_only_once(python, wrn, tmp_path):
    (tmp_path / "script.py").write_text(MEMORY_SCRIPT)
    done = python.run(tmp_path / "script.py", tmp_path / "c.pt", path=[wrn.path])
    assert 0.5 < float(done.stdout) < 1.25, done.stderr
