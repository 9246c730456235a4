"""hubconf.py: the networks and the loss through torch.hub."""

import runpy

import pytest
import torch
import torchvision
from conftest import ROOT
from safetensors.torch import save_file

IMAGENET = "resnet18 resnet34 resnet50 resnet101 resnet152".split()

# A process of a project with modules of the same names, in which safetensors is not installed.
PROJECT = """
import sys
import types

import torch
import torchvision

own = {name: types.ModuleType(name) for name in ("common", "resnet", "data")}
sys.modules.update(own, safetensors=None)
repo, network, logits, path, modules = *sys.argv[1:], list(sys.path), dict(sys.modules)

def load(name, **options):
    return torch.hub.load(repo, name, source="local", **options)

loss = load("synergy_loss", direction="top-down")
for name, size, options in (
    ("resnet18", 40, {}),
    ("wide_resnet", 8, {"depth": 10, "width": 0.5}),
    ("cifar_resnet", 8, {"depth": 8}),
):
    plain = load(name, num_classes=7, **options)
    assert not plain.training and plain(torch.zeros(1, 3, size, size)).shape == (1, 7)
    full = load(name, branches=True, num_classes=7, **options)
    three = full(torch.randn(2, 3, size, size))
    assert full.training and [each.shape for each in three] == [(2, 7)] * 3
    loss(three, torch.tensor([0, 1])).total.backward()
    assert all(p.grad is not None for p in full.parameters())
assert sys.path == path and {name: sys.modules[name] for name in modules} == modules
new = [key for key, each in sys.modules.items() if key not in modules and repo in str(each)]
assert all(name.startswith("dks_") for name in new), new
torch.save(torch.load(network, weights_only=False)(torch.ones(1, 3, 8, 8)), logits)
"""


@pytest.fixture(scope="module")
def load():
    return lambda name, **options: torch.hub.load(str(ROOT), name, source="local", **options)


def test_in_another_project(load, python, tmp_path):
    """It also loads a network that this process saves as a whole."""
    (tmp_path / "project.py").write_text(PROJECT)
    network = load("wide_resnet", depth=10, width=0.5, num_classes=7)
    torch.save(network, tmp_path / "network.pth")
    paths = (ROOT, tmp_path / "network.pth", tmp_path / "logits.pth")
    done = python.run(tmp_path / "project.py", *paths, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert torch.equal(torch.load(tmp_path / "logits.pth"), network(torch.ones(1, 3, 8, 8)))


@pytest.mark.parametrize("name", IMAGENET)
def test_networks_for_imagenet(load, name):
    with torch.device("meta"):
        plain, full = load(name), load(name, branches=True)
    assert type(plain) is torchvision.models.ResNet and len(full.branches) == 2
    shapes = {key: v.shape for key, v in full.state_dict().items() if "branches." not in key}
    assert shapes == {key: value.shape for key, value in plain.state_dict().items()}


def test_every_entry_is_documented():
    """torch.hub lists the callables without an underscore, and shows their docstrings."""
    listed = runpy.run_path(str(ROOT / "hubconf.py"))
    entries = {k: v.__doc__ for k, v in listed.items() if callable(v) and k[0] != "_"}
    own = {"wide_resnet", "cifar_resnet", "cifar_resnet32", "synergy_loss"}
    assert entries.keys() == {*IMAGENET, *own}
    assert all(len(text) > 100 for text in entries.values())


@pytest.mark.parametrize(
    ("name", "size"), [("resnet18", 40), ("wide_resnet", 8), ("cifar_resnet", 8)]
)
def test_weights_of_a_run_and_of_an_export(load, wrn, imagenet, tmp_path, name, size):
    """They decide the depth, the width and the number of classes."""
    torch.manual_seed(1)
    network = {
        "resnet18": lambda: imagenet.resnet.build("resnet18", num_classes=6),
        "wide_resnet": lambda: wrn.wide_resnet.WideResNet(10, 0.3, 6),
        "cifar_resnet": lambda: wrn.resnet.ResNet(8, 6),
    }[name]().eval()
    state = network.state_dict()
    backbone = {key: value for key, value in state.items() if not key.startswith("branches.")}
    (tmp_path / "run").mkdir()
    # Small in the file: the elements of each tensor share their memory.
    other = {key: torch.zeros((), dtype=v.dtype).expand(v.shape) for key, v in state.items()}
    torch.save({"model": other, "ema": state}, tmp_path / "run" / "checkpoint.pt")
    torch.save({"model": backbone, "ema": {}}, tmp_path / "checkpoint.pt")
    torch.save(backbone, tmp_path / "backbone.pt")
    save_file(backbone, tmp_path / "model.safetensors")
    images = torch.randn(2, 3, size, size)
    with torch.no_grad():
        expected = network(images)
        for file in ("run", "checkpoint.pt", "backbone.pt", "model.safetensors"):
            assert torch.equal(load(name, weights=str(tmp_path / file))(images), expected[0])
        full = load(name, weights=str(tmp_path / "run"), branches=True).eval()
        assert all(torch.equal(*pair) for pair in zip(full(images), expected, strict=True))
    with pytest.raises(RuntimeError, match="Missing key.*branches"):
        load(name, weights=str(tmp_path / "backbone.pt"), branches=True)


def test_pretrained_weights(load, tmp_path, monkeypatch):
    """Those of the release are in torch's cache."""
    monkeypatch.setattr(torch.hub, "_hub_dir", str(tmp_path))
    (tmp_path / "checkpoints").mkdir()
    released = torchvision.models.resnet18().eval()
    state = {f"module.{name}": value for name, value in released.state_dict().items()}
    torch.save(state, tmp_path / "checkpoints" / "dks_resnet18.pth")
    images = torch.randn(2, 3, 40, 40)
    with torch.no_grad():
        assert torch.equal(load("resnet18", pretrained=True)(images), released(images))
    for path in (ROOT / "weights").glob("resnet32-cifar100-*.safetensors"):
        network = load("cifar_resnet32", pretrained=path.stem.split("-")[-1])
        assert network(torch.zeros(1, 3, 32, 32)).shape == (1, 100)
    with pytest.raises(ValueError, match="released only for resnet18, resnet50, resnet152"):
        load("resnet34", pretrained=True)
    with pytest.raises(ValueError, match="have no branches"):
        load("resnet18", pretrained=True, branches=True)
    with pytest.raises(FileNotFoundError, match="resnet8-cifar100-dks"):
        load("cifar_resnet", depth=8, pretrained="dks")
