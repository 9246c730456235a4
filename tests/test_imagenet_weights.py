"""Weights of imagenet/: forms of checkpoints, strict loading, --init, downloads."""

import socket
import sys
import urllib.error
from types import SimpleNamespace

import pytest
import torch
import torchvision
from small_imagenet import refusal, shrink, vary_norms
from synthetic import save_weights

NAMES = ["cat", "dog", "eel"]


@pytest.fixture(autouse=True)
def small(imagenet, monkeypatch):
    shrink(imagenet, monkeypatch)


@pytest.fixture
def network(imagenet):
    """A network of three classes with branches, as after training."""
    torch.manual_seed(7)
    return vary_norms(imagenet.resnet.build("resnet50", num_classes=3))


@pytest.fixture
def load(imagenet):
    def load(path, arch="resnet50", branches=True):
        return imagenet.weights.build_network(arch, imagenet.weights.read_weights(path), branches)

    return load


@torch.no_grad()
def same_logits(one, other):
    images = torch.randn(2, 3, 40, 40)
    pairs = zip(one.eval()(images), other.eval()(images), strict=True)
    return all(torch.equal(*pair) for pair in pairs)


def prefixed(state, prefix):
    return {prefix + name: value for name, value in state.items()}


def drop_branches(state):
    return [state.pop(name) for name in [*state] if name.startswith("branches.")] and state


@pytest.mark.parametrize("prefix", ["", "module.", "_orig_mod.module.", "model."])
@pytest.mark.parametrize("key", ["", "model", "state_dict", "ema"])
def test_every_form_of_a_state_dict_loads(load, network, tmp_path, capsys, prefix, key):
    state = prefixed(network.state_dict(), prefix)
    content = {"ema": {}, key: state} if key else state
    if key == "ema":  # averaged weights are preferred
        content["model"] = {name: value + 1 for name, value in state.items()}
    torch.save(content, tmp_path / "a.pth")
    assert same_logits(load(tmp_path / "a.pth"), network)
    assert len(load(tmp_path / "a.pth", branches=False)(torch.zeros(1, 3, 40, 40))) == 1
    assert capsys.readouterr().out == ""  # no line about a cast


def test_files_of_2019_load(load, network, tmp_path, monkeypatch):
    """Tensors of a GPU, in torch's old format and without counters of batches."""
    state = prefixed(network.state_dict(), "module.")
    state = {k: v for k, v in state.items() if not k.endswith("num_batches_tracked")}
    monkeypatch.setattr("torch.serialization.location_tag", lambda storage: "cuda:0")
    path = tmp_path / "old.pth"
    torch.save(state, path, _use_new_zipfile_serialization=False)
    # GPU tensors had a storage class of their own at that time.
    content = path.read_bytes().replace(b"ctorch\nFloatStorage\n", b"ctorch.cuda\nFloatStorage\n")
    assert b"cuda:0" in content and b"torch.cuda\n" in content
    path.write_bytes(content)
    assert same_logits(load(path), network)


def test_unusable_checkpoints_are_refused(imagenet, load, network, tmp_path):
    for change, message in (
        (lambda state, metadata: state.pop("conv1.weight"), "missing keys conv1.weight"),
        (lambda state, metadata: state.pop("conv1.weight"), "taken for a resnet50: give its net"),
        (lambda state, metadata: metadata.update(arch="resnet18"), "not resnet50; use -a resnet18"),
        (lambda state, metadata: metadata.update(arch="resnet9"), "unknown network, 'resnet9'"),
        (lambda state, metadata: metadata.update(classes=["a", "a", "b"]), "damaged, because"),
        (lambda state, metadata: drop_branches(state), "no auxiliary branches; leave out --branch"),
    ):
        state, metadata = network.state_dict(), {}
        change(state, metadata)
        path = save_weights(tmp_path / "a.pth", state, metadata=metadata)
        assert message in refusal(imagenet, load, path)


@pytest.fixture
def start(imagenet):
    """Start from weights with --init; return which parts of the network are those of `loaded`."""

    def start(source, loaded=None, classes=NAMES, arch="resnet50"):
        torch.manual_seed(1)
        model = imagenet.resnet.build(arch, num_classes=len(classes))
        before = {name: value.clone() for name, value in model.state_dict().items()}
        imagenet.train.initialize_backbone(model, arch, str(source), classes)
        parts = {"fc": set(), "branches": set(), "rest": set()}
        for name, value in model.state_dict().items():
            part = name.split(".")[0]
            is_loaded = name in loaded and torch.equal(value, loaded[name])
            assert is_loaded or torch.equal(value, before[name]), name
            if not torch.equal(before[name], loaded.get(name, torch.empty(0))):
                parts[part if part in parts else "rest"].add(is_loaded)
        assert all(len(values) <= 1 for values in parts.values())
        return {part for part, values in parts.items() if values == {True}}

    return start


@pytest.mark.parametrize("form", ["", "checkpoint.pt", "a.pth", "a.safetensors", "folder"])
@pytest.mark.parametrize("names", [NAMES, NAMES[::-1], ["ant", "bee"]])
def test_init_loads_the_backbone_of_every_form(imagenet, start, network, tmp_path, form, names):
    """The branches stay random, and so does the classifier of other classes."""
    network.fc = torch.nn.Linear(network.fc.in_features, len(names))
    metadata = {"arch": "resnet50", "classes": names, "image_size": 40}
    weights = imagenet.weights.Weights("a run", network.state_dict(), metadata)
    if form in ("", "checkpoint.pt"):  # the folder of a run
        save_weights(tmp_path / "checkpoint.pt", weights.state, metadata=metadata)
    else:
        imagenet.export.export(weights, "resnet50", 40, tmp_path / form)
    expected = {"rest", "fc"} if names == NAMES else {"rest"}
    assert start(tmp_path / form, weights.backbone) == expected


def test_init_compares_unnamed_classes_by_their_number(imagenet, start, network, tmp_path):
    """A thousand unnamed ones are ImageNet's. Averaged weights are preferred."""
    average = {name: value + 1 for name, value in network.state_dict().items()}
    average = {k: v for k, v in average.items() if not k.startswith("branches.")}
    path = save_weights(tmp_path / "a.pt", network.state_dict(), ema=average)
    assert start(path, average) == {"rest", "fc"}
    headless = {name: value for name, value in average.items() if not name.startswith("fc.")}
    assert start(save_weights(tmp_path / "a.pt", headless), headless) == {"rest"}
    other = imagenet.resnet.build("resnet50", branches=False).state_dict()
    path, synsets = save_weights(tmp_path / "a.pt", other), imagenet.data.imagenet_synsets()
    assert start(path, other, synsets) == {"rest", "fc"}
    assert start(path, other, synsets[::-1]) == {"rest"}


def test_init_refuses_other_networks_and_unknown_names(imagenet, start, network, tmp_path):
    (tmp_path / "empty").mkdir()
    bare = save_weights(tmp_path / "bare.pth", network.state_dict())
    named = save_weights(tmp_path / "a.pth", network.state_dict(), metadata={"arch": "resnet50"})
    for source, arch, message in (
        (named, "resnet18", "weights of resnet50, not resnet18; use -a resnet50"),
        (bare, "resnet18", "bare.pth does not fit the network"),
        ("V9", "resnet50", "no such file or folder, and not IMAGENET1K_V1 or IMAGENET1K_V2"),
        (tmp_path / "empty", "resnet50", "empty: no checkpoint.pt in it yet"),
    ):
        assert message in refusal(imagenet, start, source, arch=arch)


def test_torchvision_s_weights_come_from_its_cache_or_a_download(
    imagenet, start, tmp_path, monkeypatch
):
    monkeypatch.setattr(torch.hub, "_hub_dir", str(tmp_path))
    weights = torchvision.models.ResNet18_Weights.IMAGENET1K_V1
    (tmp_path / "checkpoints").mkdir()
    state = torchvision.models.resnet18().state_dict()
    path = save_weights(tmp_path / "checkpoints" / weights.url.rpartition("/")[2], state)
    assert start("IMAGENET1K_V1", state, arch="resnet18") == {"rest"}
    path.unlink()

    def fail(*arguments, **options):
        error = socket.gaierror(-2, "Name or service not known")
        raise urllib.error.URLError(error) from error

    monkeypatch.setattr("torch.hub.download_url_to_file", fail)
    find = imagenet.weights.torchvision_weights
    message = refusal(imagenet, find, "resnet18", "IMAGENET1K_V1")
    assert message.startswith(f"--init IMAGENET1K_V1: the download of {weights.url}")
    assert "Name or service not known" in message and "download it elsewhere" in message


@pytest.fixture
def drive(imagenet, tmp_path, monkeypatch):
    """Return a function that downloads with a gdown that writes `content`, or raises it."""
    monkeypatch.setattr(torch.hub, "_hub_dir", str(tmp_path / "hub"))

    def drive(content):
        def download(url, output, **options):
            assert "1sqhBPdzHi-X0svyBeFWEjiqveWfAohdK" in url  # the authors' file
            if isinstance(content, Exception):
                raise content
            with open(output, "wb") as file:
                file.write(content)

        monkeypatch.setitem(sys.modules, "gdown", SimpleNamespace(download=download))
        return imagenet.weights.download_released("resnet50")

    return drive


def test_released_weights_are_downloaded_once(imagenet, load, drive, network, tmp_path):
    state = prefixed(drop_branches(network.state_dict()), "module.")
    path = drive(save_weights(tmp_path / "a.pth", state).read_bytes())
    assert drive(OSError("not asked again")) == path and list(path.parent.iterdir()) == [path]
    assert torch.equal(load(path, branches=False).fc.weight, network.fc.weight)
    message = refusal(imagenet, imagenet.weights.download_released, "resnet34")
    assert message.endswith("only for resnet18, resnet50, resnet152")


def test_a_bad_download_leaves_nothing_behind(imagenet, drive, tmp_path):
    other = save_weights(tmp_path / "a.pth", {"conv1.bias": torch.zeros(9000)}).read_bytes()
    for content, message in (
        (b"<!DOCTYPE html><title>Quota exceeded</title>", "it is a web page"),
        (b"", "can't be loaded"),
        (other, "does not fit the network: missing keys"),
        (other[:20_000], "can't be loaded"),
        (ConnectionError("reset"), "the download failed (reset); save the weights of resnet50"),
        (OSError(28, "No space left on device"), "No space left"),
    ):
        assert message in refusal(imagenet, drive, content)
        assert list((tmp_path / "hub" / "checkpoints").iterdir()) == []
