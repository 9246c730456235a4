"""Checkpoints: written whole or not at all; damaged, foreign or harmful files are refused."""

import copy
import os
import pickle
import random
import re
import resource
import signal
from pathlib import Path

import pytest
import torch


@pytest.fixture
def network():
    torch.manual_seed(0)
    return torch.nn.Sequential(torch.nn.Linear(4, 3), torch.nn.BatchNorm1d(3))


@pytest.fixture
def saved(folder, network, tmp_path):
    path = tmp_path / "checkpoint.pt"
    folder.checkpoint.save(path, {"model": network.state_dict(), "epoch": 3, "names": ["a"]})
    return path


def refused(folder, words):
    return pytest.raises(folder.command_line.Refused, match=words)


def test_round_trip(folder, network, saved):
    content = folder.checkpoint.load(saved)
    assert content["epoch"] == 3 and content["names"] == ["a"]
    assert torch.equal(content["model"]["0.weight"], network[0].weight)
    assert [path.name for path in saved.parent.iterdir()] == ["checkpoint.pt"]


def test_a_full_disk_leaves_the_previous_file_whole(folder, saved):
    before = saved.read_bytes()
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, limits[1]))
    try:
        with refused(folder, "previous one is whole"):
            folder.checkpoint.save(saved, {"model": torch.zeros(10_000)})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert saved.read_bytes() == before
    assert [path.name for path in saved.parent.iterdir()] == ["checkpoint.pt"]


def test_save_where_there_is_no_folder(folder, tmp_path):
    with refused(folder, "can't be saved"):
        folder.checkpoint.save(tmp_path / "none" / "x.pt", {})


def test_flipped_bits_are_found(folder, saved):
    """A flip is refused, or has changed nothing that is read (the container's padding)."""
    whole, content = saved.read_bytes(), folder.checkpoint.load(saved)
    draws, found = random.Random(0), 0
    for _ in range(60):
        damaged = bytearray(whole)
        damaged[draws.randrange(len(whole))] ^= 1 << draws.randrange(8)
        saved.write_bytes(damaged)
        try:
            again = folder.checkpoint.load(saved)
        except folder.command_line.Refused:
            found += 1
        else:
            assert again["epoch"] == 3
            for name, tensor in content["model"].items():
                assert torch.equal(again["model"][name], tensor)
    assert found > 10


def test_a_flipped_weight_is_found(folder, network, saved):
    data = bytearray(saved.read_bytes())
    place = data.find(network[0].weight.detach().numpy().tobytes())
    assert place > 0
    data[place] ^= 1
    saved.write_bytes(data)
    with refused(folder, "fails its CRC"):
        folder.checkpoint.load(saved)


@pytest.mark.parametrize("share", [0.0, 0.1, 0.5, 0.99])
def test_truncated(folder, saved, share):
    whole = saved.read_bytes()
    saved.write_bytes(whole[: int(share * len(whole))])
    with refused(folder, str(saved)):
        folder.checkpoint.load(saved)


@pytest.mark.parametrize("content", [b"", b"epoch 3", b"<!DOCTYPE html><html></html>", b"\x80\x02"])
def test_other_files(folder, tmp_path, content):
    path = tmp_path / "x.pt"
    path.write_bytes(content)
    with refused(folder, "can't be loaded"):
        folder.checkpoint.load(path)
    with refused(folder, "no such file"):
        folder.checkpoint.load(tmp_path)


class Harmful:
    def __init__(self, folder):
        self.folder = folder

    def __reduce__(self):
        return os.mkdir, (self.folder,)


@pytest.mark.parametrize("zipped", [True, False, None])
def test_code_is_not_run(folder, tmp_path, zipped):
    path, made = tmp_path / "x.pt", tmp_path / "made"
    if zipped is None:
        path.write_bytes(pickle.dumps({"model": Harmful(str(made))}))
    else:
        harmful = {"model": Harmful(str(made))}
        torch.save(harmful, path, _use_new_zipfile_serialization=zipped)
    with refused(folder, "can't be loaded"):
        folder.checkpoint.load(path)
    assert not made.exists()


def test_the_form_of_2019_loads(folder, network, tmp_path):
    path = tmp_path / "old.pt"
    torch.save(network.state_dict(), path, _use_new_zipfile_serialization=False)
    assert torch.equal(folder.checkpoint.load(path)["0.weight"], network[0].weight)


def test_not_a_dict(folder, tmp_path):
    torch.save([1, 2], tmp_path / "x.pt")
    with refused(folder, "expected a dict"):
        folder.checkpoint.load(tmp_path / "x.pt")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda s: s.pop("0.weight"), "lacks 0.weight"),
        (lambda s: s.update(extra=torch.zeros(1)), "unexpected extra"),
        (lambda s: s.update({"0.weight": torch.zeros(3, 5)}), r"shape \(3, 5\)"),
        (lambda s: s.update({"0.bias": torch.zeros(3, dtype=torch.int64)}), "torch.int64"),
        (lambda s: s.update({"0.bias": torch.tensor([1.0, float("nan"), 0])}), "not finite"),
        (lambda s: s.update({"0.bias": 3}), "no dense tensor"),
        (lambda s: s.update({"1.num_batches_tracked": torch.tensor(0.5)}), "torch.float32"),
    ],
)
def test_weights_that_do_not_fit(folder, network, tmp_path, change, words):
    state = dict(network.state_dict())
    change(state)
    before = network[0].weight.clone()
    with refused(folder, words):
        folder.checkpoint.load_weights(network, state, tmp_path / "x.pt")
    assert torch.equal(network[0].weight, before)


def test_other_widths_of_floats_are_cast_and_said(folder, network, tmp_path, capsys):
    state = {
        name: t.double() if t.is_floating_point() else t for name, t in network.state_dict().items()
    }
    folder.checkpoint.load_weights(network, state, tmp_path / "x.pt")
    assert network[0].weight.dtype == torch.float32
    assert "cast" in capsys.readouterr().out


@pytest.mark.parametrize(
    "change",
    [
        lambda s: s.pop("state"),
        lambda s: s.update(state=[]),
        lambda s: s["state"][0].update(momentum_buffer=torch.zeros(1)),
        lambda s: s["state"].pop(0),
        lambda s: s["state"][0].pop("momentum_buffer"),
        lambda s: s["state"][0].update(surplus=torch.zeros(3, 4)),
        lambda s: s.update(surplus=1),
        lambda s: s["state"].update({99: {"momentum_buffer": torch.zeros(1)}}),
        lambda s: s.update(param_groups=[]),
        lambda s: s["param_groups"][0].update(params=[0]),
    ],
)
def test_optimizers_that_do_not_fit(folder, network, tmp_path, change):
    optimizer = torch.optim.SGD(network.parameters(), 0.1, 0.9)
    network(torch.randn(4, 4)).sum().backward()
    optimizer.step()
    state = copy.deepcopy(optimizer.state_dict())  # as from a file
    change(state)
    with refused(folder, "can't be resumed"):
        folder.checkpoint.load_optimizer(optimizer, state, tmp_path / "x.pt")


def test_buffers_are_cast_and_hyperparameters_stay(folder, network, tmp_path, capsys):
    optimizer = torch.optim.SGD(network.parameters(), 0.1, 0.9)
    network(torch.randn(4, 4)).sum().backward()
    optimizer.step()
    state = copy.deepcopy(optimizer.state_dict())  # as from a file
    buffer = torch.randn(3)
    state["state"][1]["momentum_buffer"] = buffer.double()
    state["param_groups"][0] = {"params": [0, 1, 2, 3], "momentum": float("nan")}
    folder.checkpoint.load_optimizer(optimizer, state, tmp_path / "x.pt")
    assert optimizer.param_groups[0]["momentum"] == 0.9
    loaded = optimizer.state[network[0].bias]["momentum_buffer"]
    assert loaded.dtype == torch.float32 and torch.equal(loaded, buffer)
    assert "cast" in capsys.readouterr().out


def test_required_keys(folder, tmp_path):
    folder.checkpoint.require({"epoch": 1}, {"epoch": int}, tmp_path)
    with refused(folder, "found nothing"):
        folder.checkpoint.require({}, {"epoch": int}, tmp_path)
    with refused(folder, "found str"):
        folder.checkpoint.require({"epoch": "1"}, {"epoch": int}, tmp_path)


@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_waits_until_the_file_is_whole(folder, saved, signum):
    def write(file):
        os.kill(os.getpid(), signum)
        file.write(b"whole")

    with folder.command_line.signals_raise(), pytest.raises(folder.command_line.Stopped):
        folder.checkpoint.write_whole(saved, write)
    assert saved.read_bytes() == b"whole"


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="peaks are Linux's")
def test_loading_needs_the_file_in_memory_once(folder, tmp_path):
    def memory(name):
        status = Path("/proc/self/status").read_text()
        return 1024 * int(re.search(rf"{name}:\s+(\d+)", status)[1])

    model = torch.nn.Linear(4096, 4096)
    folder.checkpoint.save(tmp_path / "c.pt", {"model": model.state_dict()})
    before = memory("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew
    weights = folder.checkpoint.load(tmp_path / "c.pt")["model"]
    folder.checkpoint.load_weights(model, weights, tmp_path / "c.pt")
    size = (tmp_path / "c.pt").stat().st_size
    assert 0.5 * size < memory("VmHWM") - before < 1.25 * size
