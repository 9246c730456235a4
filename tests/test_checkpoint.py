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
def saved(wrn, network, tmp_path):
    path = tmp_path / "checkpoint.pt"
    wrn.checkpoint.save(path, {"model": network.state_dict(), "epoch": 3, "names": ["a"]})
    return path


def refused(wrn, words):
    return pytest.raises(wrn.command_line.UserError, match=words)


def test_round_trip(wrn, network, saved):
    content = wrn.checkpoint.load(saved)
    assert content["epoch"] == 3 and content["names"] == ["a"]
    assert torch.equal(content["model"]["0.weight"], network[0].weight)
    assert [path.name for path in saved.parent.iterdir()] == ["checkpoint.pt"]


def test_a_full_disk_leaves_the_previous_file_whole(wrn, saved):
    before = saved.read_bytes()
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, limits[1]))
    try:
        with refused(wrn, "previous one is whole"):
            wrn.checkpoint.save(saved, {"model": torch.zeros(10_000)})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert saved.read_bytes() == before
    assert [path.name for path in saved.parent.iterdir()] == ["checkpoint.pt"]


def test_save_where_there_is_no_folder(wrn, tmp_path):
    with refused(wrn, "can't be saved"):
        wrn.checkpoint.save(tmp_path / "none" / "x.pt", {})


def test_flipped_bits_are_found(wrn, saved):
    """A flip is refused, or has changed nothing that is read (the container's padding)."""
    whole, content = saved.read_bytes(), wrn.checkpoint.load(saved)
    draws, found = random.Random(0), 0
    for _ in range(60):
        damaged = bytearray(whole)
        damaged[draws.randrange(len(whole))] ^= 1 << draws.randrange(8)
        saved.write_bytes(damaged)
        try:
            again = wrn.checkpoint.load(saved)
        except wrn.command_line.UserError:
            found += 1
        else:
            assert again["epoch"] == 3
            for name, tensor in content["model"].items():
                assert torch.equal(again["model"][name], tensor)
    assert found > 10


def test_a_flipped_weight_is_found(wrn, network, saved):
    data = bytearray(saved.read_bytes())
    place = data.find(network[0].weight.detach().numpy().tobytes())
    assert place > 0
    data[place] ^= 1
    saved.write_bytes(data)
    with refused(wrn, "fails its CRC"):
        wrn.checkpoint.load(saved)


@pytest.mark.parametrize("share", [0.0, 0.1, 0.5, 0.99])
def test_truncated(wrn, saved, share):
    whole = saved.read_bytes()
    saved.write_bytes(whole[: int(share * len(whole))])
    with refused(wrn, str(saved)):
        wrn.checkpoint.load(saved)


@pytest.mark.parametrize("content", [b"", b"epoch 3", b"<!DOCTYPE html><html></html>", b"\x80\x02"])
def test_other_files(wrn, tmp_path, content):
    path = tmp_path / "x.pt"
    path.write_bytes(content)
    with refused(wrn, "can't be loaded"):
        wrn.checkpoint.load(path)
    with refused(wrn, "no such file"):
        wrn.checkpoint.load(tmp_path)


class Harmful:
    def __init__(self, folder):
        self.folder = folder

    def __reduce__(self):
        return os.mkdir, (self.folder,)


@pytest.mark.parametrize("zipped", [True, False, None])
def test_code_is_not_run(wrn, tmp_path, zipped):
    path, made = tmp_path / "x.pt", tmp_path / "made"
    if zipped is None:
        path.write_bytes(pickle.dumps({"model": Harmful(str(made))}))
    else:
        harmful = {"model": Harmful(str(made))}
        torch.save(harmful, path, _use_new_zipfile_serialization=zipped)
    with refused(wrn, "can't be loaded"):
        wrn.checkpoint.load(path)
    assert not made.exists()


def test_the_form_of_2019_loads(wrn, network, tmp_path):
    path = tmp_path / "old.pt"
    torch.save(network.state_dict(), path, _use_new_zipfile_serialization=False)
    assert torch.equal(wrn.checkpoint.load(path)["0.weight"], network[0].weight)


def test_not_a_dict(wrn, tmp_path):
    torch.save([1, 2], tmp_path / "x.pt")
    with refused(wrn, "expected a dict"):
        wrn.checkpoint.load(tmp_path / "x.pt")


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
def test_weights_that_do_not_fit(wrn, network, tmp_path, change, words):
    state = dict(network.state_dict())
    change(state)
    before = network[0].weight.clone()
    with refused(wrn, words):
        wrn.checkpoint.load_weights(network, state, tmp_path / "x.pt")
    assert torch.equal(network[0].weight, before)


def test_other_widths_of_floats_are_cast_and_said(wrn, network, tmp_path, capsys):
    state = {
        name: t.double() if t.is_floating_point() else t for name, t in network.state_dict().items()
    }
    wrn.checkpoint.load_weights(network, state, tmp_path / "x.pt")
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
def test_optimizers_that_do_not_fit(wrn, network, tmp_path, change):
    optimizer = torch.optim.SGD(network.parameters(), 0.1, 0.9)
    network(torch.randn(4, 4)).sum().backward()
    optimizer.step()
    state = copy.deepcopy(optimizer.state_dict())  # as from a file
    change(state)
    with refused(wrn, "can't be resumed"):
        wrn.checkpoint.load_optimizer(optimizer, state, tmp_path / "x.pt")


def test_buffers_are_cast_and_hyperparameters_stay(wrn, network, tmp_path, capsys):
    optimizer = torch.optim.SGD(network.parameters(), 0.1, 0.9)
    network(torch.randn(4, 4)).sum().backward()
    optimizer.step()
    state = copy.deepcopy(optimizer.state_dict())  # as from a file
    buffer = torch.randn(3)
    state["state"][1]["momentum_buffer"] = buffer.double()
    state["param_groups"][0] = {"params": [0, 1, 2, 3], "momentum": float("nan")}
    wrn.checkpoint.load_optimizer(optimizer, state, tmp_path / "x.pt")
    assert optimizer.param_groups[0]["momentum"] == 0.9
    loaded = optimizer.state[network[0].bias]["momentum_buffer"]
    assert loaded.dtype == torch.float32 and torch.equal(loaded, buffer)
    assert "cast" in capsys.readouterr().out


def test_required_keys(wrn, tmp_path):
    wrn.checkpoint.require({"epoch": 1}, {"epoch": int}, tmp_path)
    with refused(wrn, "found nothing"):
        wrn.checkpoint.require({}, {"epoch": int}, tmp_path)
    with refused(wrn, "found str"):
        wrn.checkpoint.require({"epoch": "1"}, {"epoch": int}, tmp_path)


@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_waits_until_the_file_is_whole(wrn, saved, signum):
    def write(file):
        os.kill(os.getpid(), signum)
        file.write(b"whole")

    with wrn.command_line.raise_on_signals(), pytest.raises(wrn.command_line.Interrupted):
        wrn.checkpoint.write_atomically(saved, write)
    assert saved.read_bytes() == b"whole"


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="peaks are Linux's")
def test_loading_needs_the_file_in_memory_once(wrn, tmp_path):
    def memory(name):
        status = Path("/proc/self/status").read_text()
        return 1024 * int(re.search(rf"{name}:\s+(\d+)", status)[1])

    model = torch.nn.Linear(4096, 4096)
    wrn.checkpoint.save(tmp_path / "c.pt", {"model": model.state_dict()})
    before = memory("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew
    weights = wrn.checkpoint.load(tmp_path / "c.pt")["model"]
    wrn.checkpoint.load_weights(model, weights, tmp_path / "c.pt")
    size = (tmp_path / "c.pt").stat().st_size
    assert 0.5 * size < memory("VmHWM") - before < 1.25 * size
