"""hubconf.py: the networks and the loss through torch.hub."""

import importlib.util

import pytest
import torch
import torchvision
from conftest import ROOT

# In a fresh process, from another folder, with nothing but the two packages that it declares.
FRESH = """
import sys
import types

import torch
import torchvision

def is_blocked(name):
    blocked = ("tqdm", "tensorboard", "matplotlib", "gdown", "scipy", "timm", "safetensors")
    return name.split(".")[0] in blocked

class Blocker:
    def find_spec(self, name, *rest):
        if is_blocked(name):
            raise ImportError(f"{name} is blocked")

for name in filter(is_blocked, list(sys.modules)):  # imported by torch, or before this script
    del sys.modules[name]
sys.meta_path.insert(0, Blocker())
own = sys.modules["common"] = types.ModuleType("common")  # of the user's project
path, modules = list(sys.path), set(sys.modules)
repo = sys.argv[1]

def load(name, **options):
    return torch.hub.load(repo, name, source="local", **options)

plain = load("resnet18", num_classes=7)
assert type(plain) is torchvision.models.ResNet and plain(torch.zeros(1, 3, 64, 64)).shape == (1, 7)
network = load("resnet18", branches=True, num_classes=7).train()
wide = load("wide_resnet", depth=10, width=0.5, num_classes=5, branches=True)
loss = load("synergy_loss", direction="top-down")
for images, model, classes in ((64, network, 7), (16, wide, 5)):
    logits = model(torch.randn(2, 3, images, images))
    assert [each.shape for each in logits] == [(2, classes)] * 3
    loss(logits, torch.tensor([0, 1])).total.backward()
    assert all(p.grad is not None for p in model.parameters())
assert sys.modules["common"] is own and sys.path == path
left = {name for name in set(sys.modules) - modules if name.split(".")[0] in ("resnet", "synergy")}
assert not left, left
"""


def test_entry_points_in_a_fresh_process(python, tmp_path):
    script = tmp_path / "script.py"
    script.write_text(FRESH)
    done = python.run(script, ROOT, cwd=tmp_path)
    assert done.returncode == 0, done.stderr


def test_every_entry_point_is_documented(imagenet):
    """torch.hub lists the callables without an underscore, and shows their docstrings."""
    spec = importlib.util.spec_from_file_location("hubconf", ROOT / "hubconf.py")
    hubconf = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(hubconf)
    entries = {k: v for k, v in vars(hubconf).items() if callable(v) and k[0] != "_"}
    assert entries.keys() == {*imagenet.resnet.NETWORKS, "wide_resnet", "synergy_loss"}
    assert all(len(entry.__doc__) > 100 for entry in entries.values())


@pytest.fixture(scope="module")
def load():
    return lambda name, **options: torch.hub.load(str(ROOT), name, source="local", **options)


@pytest.fixture(scope="module")
def checkpoint(imagenet, module_path):
    """A network with branches, in evaluation mode, and its checkpoint."""
    path = module_path / "checkpoint.pt"
    network = imagenet.resnet.build("resnet18", num_classes=6).eval()
    torch.save({"model": network.state_dict()}, path)
    return network, path


def test_weights_of_a_checkpoint(load, checkpoint):
    network, path = checkpoint
    images = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        expected = network(images)
        assert torch.equal(load("resnet18", weights=str(path))(images), expected[0])
        full = load("resnet18", weights=str(path), branches=True)
        assert full.training
        for actual, value in zip(full.eval()(images), expected, strict=True):
            assert torch.equal(actual, value)


def test_released_weights_and_random_branches(load, checkpoint, tmp_path, monkeypatch):
    """The released file is in torch's cache."""
    monkeypatch.setattr(torch.hub, "_hub_dir", str(tmp_path / "hub"))
    cache = tmp_path / "hub" / "checkpoints"
    cache.mkdir(parents=True)
    torch.manual_seed(5)
    released = torchvision.models.resnet18().eval()
    torch.save(released.state_dict(), cache / "dks_resnet18.pth")
    images = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        expected = released(images)
        assert torch.equal(load("resnet18", pretrained=True)(images), expected)
        full = load("resnet18", pretrained=True, branches=True).eval()
        assert len(full(images)) == 3 and torch.equal(full(images)[0], expected)


def test_weights_of_wide_resnets(load, wrn, cifar_run):
    path = cifar_run / "checkpoint.pt"
    content = torch.load(path, weights_only=True)
    classes = len(content["classes"])
    network = wrn.wide_resnet.WideResNet(content["depth"], content["width"], classes)
    network.load_state_dict(content["model"])
    images = torch.randn(2, 3, 8, 8)
    with torch.no_grad():
        expected = network.eval()(images)
        full = load("wide_resnet", weights=str(path), branches=True).eval()(images)
        (alone,) = load("wide_resnet", weights=str(path))(images)
    assert all(torch.equal(a, b) for a, b in zip(full, expected, strict=True))
    assert torch.equal(alone, expected[0])


def test_wide_resnets_have_the_mode_and_the_dropout_that_were_asked_for(load, cifar_run):
    for weights in (None, str(cifar_run / "checkpoint.pt")):
        network = load("wide_resnet", depth=10, width=0.25, dropout=0.4, weights=weights)
        assert not network.training
        dropouts = [each.p for each in network.modules() if isinstance(each, torch.nn.Dropout)]
        assert set(dropouts) == {0.4}


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"weights": "nowhere.pt"}, "nowhere.pt: no such file"),
        ({"weights": "nowhere.pt", "pretrained": True}, "both given"),
        ({"name": "resnet34", "pretrained": True}, "weights were released only for"),
        ({"name": "resnet50", "weights": "PATH"}, "PATH"),
        ({"weights": "PATH", "num_classes": 5}, "has 6 classes, not 5"),
    ],
)
def test_refusals(load, checkpoint, options, says):
    path = str(checkpoint[1])
    values = {key: path if value == "PATH" else value for key, value in options.items()}
    with pytest.raises(Exception, match=says.replace("PATH", path)) as caught:
        load(values.pop("name", "resnet18"), **values)
    assert type(caught.value).__name__ == "UserError" and "\n" not in str(caught.value)
