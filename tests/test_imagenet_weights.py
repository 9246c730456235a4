"""Checkpoints of ImageNet networks: accepted formats, strict loading, export."""

import sys

import pytest
import torch
import torchvision
from synthetic import save_weights

ARCH = "shufflenet_v2_x0_5"
PREFIXES = ("", "module.", "_orig_mod.", "module._orig_mod.", "_orig_mod.module.")


@pytest.fixture(scope="module")
def images():
    return torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(1))


@pytest.fixture(scope="module")
def plain():
    """A small torchvision network."""
    torch.manual_seed(0)
    return torchvision.models.shufflenet_v2_x0_5().eval()


@pytest.fixture
def small_dks(imagenet, monkeypatch):
    """A DKS network with one block per stage, as `small_dks` in `NETWORKS`."""
    resnet = imagenet.resnet
    config = resnet.NetworkConfig(
        resnet.BasicBlock,
        (1, 1, 1, 1),
        branches=(
            resnet.BranchSpec(2, (resnet.Stage(1, 8), resnet.Stage(1, 16))),
            resnet.BranchSpec(3, (resnet.Stage(1, 24),)),
        ),
    )
    monkeypatch.setitem(resnet.NETWORKS, "small_dks", config)
    torch.manual_seed(0)
    model = resnet.build("small_dks", num_classes=7)
    model(torch.randn(4, 3, 32, 32))  # changes the running statistics
    return model.eval()


def prefixed(state, prefix):
    return {prefix + name: value for name, value in state.items()}


def without_batch_counters(state):
    return {name: v for name, v in state.items() if not name.endswith("num_batches_tracked")}


@torch.no_grad()
def same_backbone_logits(loaded, model, images):
    """Whether the loaded model gives the backbone logits of `model`."""
    expected = model(images)
    expected = expected[0] if isinstance(expected, tuple) else expected
    return torch.equal(loaded.model(images)[0], expected)


@pytest.mark.parametrize("prefix", PREFIXES)
@pytest.mark.parametrize("key", ["", "model", "state_dict"])
def test_prefixed_and_nested_state_dicts_load(imagenet, tmp_path, plain, images, prefix, key):
    state = prefixed(plain.state_dict(), prefix)
    torch.save({key: state, "epoch": 3} if key else state, tmp_path / "a.pth")
    loaded = imagenet.pretrained.load_model(ARCH, tmp_path / "a.pth")
    assert loaded.num_classes == 1000 and loaded.metadata == (ARCH, None, None, None)
    assert same_backbone_logits(loaded, plain, images)


def test_gpu_checkpoints_of_2019_load_on_a_cpu(imagenet, tmp_path, plain, images, monkeypatch):
    path = tmp_path / "old.pth"
    state = without_batch_counters(prefixed(plain.state_dict(), "module."))
    monkeypatch.setattr("torch.serialization.location_tag", lambda storage: "cuda:0")
    torch.save(state, path, _use_new_zipfile_serialization=False)
    # GPU tensors had a storage class of their own at that time.
    content = path.read_bytes().replace(b"ctorch\nFloatStorage\n", b"ctorch.cuda\nFloatStorage\n")
    assert content[:2] != b"PK" and b"cuda:0" in content and b"torch.cuda\n" in content
    path.write_bytes(content)
    assert same_backbone_logits(imagenet.pretrained.load_model(ARCH, path), plain, images)


def test_a_checkpoint_with_only_some_batch_counters_is_refused(imagenet, tmp_path, plain):
    state = dict(plain.state_dict())
    del state["conv1.1.num_batches_tracked"]
    with pytest.raises(
        imagenet.command_line.UserError, match="missing keys conv1.1.num_batches_tracked"
    ):
        imagenet.pretrained.load_model(ARCH, save_weights(tmp_path / "a.pth", state))


def test_branches_are_loaded_only_on_request(imagenet, tmp_path, small_dks, images):
    names = [f"class{i}" for i in range(7)]
    path = save_weights(
        tmp_path / "a.pt", small_dks.state_dict(), class_names=names, arch="small_dks"
    )
    backbone = imagenet.pretrained.load_model("small_dks", path)
    assert (backbone.num_classes, backbone.metadata.class_names) == (7, names)
    assert len(backbone.model(images)) == 1 and same_backbone_logits(backbone, small_dks, images)
    full = imagenet.pretrained.load_model("small_dks", path, branches=True)
    with torch.no_grad():
        pairs = list(zip(full.model(images), small_dks(images), strict=True))
    assert len(pairs) == 3 and all(torch.equal(logits, expected) for logits, expected in pairs)


def test_averaged_weights_are_preferred(imagenet, tmp_path, plain, capsys):
    averaged = {name: value + 1 for name, value in plain.state_dict().items()}
    for ema, bias in (({}, plain.fc.bias), (averaged, plain.fc.bias + 1)):
        path = save_weights(tmp_path / "a.pt", plain.state_dict(), ema=ema)
        loaded = imagenet.pretrained.load_model(ARCH, path)
        assert torch.equal(loaded.model.network.fc.bias, bias)
        assert ("averaged (EMA) weights" in capsys.readouterr().out) == bool(ema)


def test_branches_with_dhm_names_load(imagenet, tmp_path, small_dks, images):
    dhm = {
        "branches.0.stages.0.": "layer3_head2.",
        "branches.0.stages.1.": "layer4_head2.",
        "branches.0.classifier.": "fc_head2.",
        "branches.1.stages.0.": "layer4_head1.",
        "branches.1.classifier.": "fc_head1.",
    }
    state = small_dks.state_dict()
    for prefix, dhm_prefix in dhm.items():
        state = {name.replace(prefix, dhm_prefix): value for name, value in state.items()}
    assert not any(name.startswith("branches") for name in state)
    path = save_weights(tmp_path / "a.pth", prefixed(state, "module."))
    full = imagenet.pretrained.load_model("small_dks", path, branches=True)
    with torch.no_grad():
        pairs = zip(full.model(images), small_dks(images), strict=True)
        assert all(torch.equal(logits, expected) for logits, expected in pairs)


@pytest.mark.parametrize("arch", ["resnet34", "resnet101"])
def test_dhms_names_of_other_networks_are_known(imagenet, arch):
    """The names of DHM's networks, whose branches copy `layer3` and `layer4`."""
    shallow, deep = imagenet.resnet.NETWORKS[arch].branches
    with torch.device("meta"):
        network = imagenet.resnet.build(arch)
    dhm = {f"fc_head{i}.{name}" for i in (1, 2) for name in ("weight", "bias")}
    for head, stages in (
        ("layer3_head2", shallow.stages[0]),
        ("layer4_head2", shallow.stages[1]),
        ("layer4_head1", deep.stages[0]),
    ):
        for index in range(stages.blocks):
            block = network.layer4[min(index, 1)].state_dict()  # the first one has a shortcut
            dhm |= {f"{head}.{index}.{name}" for name in block}
    branches = {name for name in network.state_dict() if name.startswith("branches.")}
    assert {imagenet.weights.canonical_name(f"module.{name}") for name in dhm} == branches


def test_other_classifiers_of_torchvision_load(imagenet, tmp_path):
    model = torchvision.models.squeezenet1_1(num_classes=5).eval()
    path = save_weights(tmp_path / "a.pth", model.state_dict())
    loaded = imagenet.pretrained.load_model("squeezenet1_1", path)
    assert loaded.num_classes == 5
    assert same_backbone_logits(loaded, model, torch.randn(1, 3, 64, 64))


class Code:
    """Pickled as a call of `print`."""

    def __reduce__(self):
        return print, ("this must not run",)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda state: {"fc.weight": torch.ones(1000, 512)}, "missing keys conv1.0.weight"),
        (lambda state: {**state, "stage5.weight": torch.ones(1)}, "unexpected keys stage5.weight"),
        (lambda state: {**state, "conv1.0.weight": torch.ones(24, 3, 5, 5)}, "has shape .24, 3, 5"),
        (lambda state: {**state, "fc.bias": torch.full((1000,), torch.nan)}, "not finite"),
        (lambda state: {**state, "fc.bias": [0.0] * 1000}, "not a dense tensor"),
        (lambda state: {**state, "more": Code()}, "contains code"),
        (lambda state: {**state, "module.fc.bias": state["fc.bias"]}, "have the same name"),
        (lambda state: {"model": state, "arch": "resnet50"}, "of resnet50, not .*leave out -a"),
        (
            lambda state: {"model": state, "class_names": ["a"] * 1000},
            "1 different class name for",
        ),
        (lambda state: {"model": state, "class_names": [1, 2]}, "class_names is not a list"),
        (lambda state: {"model": state, "arch": 18}, "arch is not a string"),
        (lambda state: {1: torch.ones(1)}, "not parameter names"),
        (lambda state: torch.ones(3), "expected a dict"),
    ],
)
def test_invalid_checkpoints_are_refused(imagenet, tmp_path, capsys, plain, change, message):
    torch.save(change(dict(plain.state_dict())), tmp_path / "a.pth")
    with pytest.raises(imagenet.command_line.UserError, match=message):
        imagenet.pretrained.load_model(ARCH, tmp_path / "a.pth")
    assert "must not run" not in capsys.readouterr().out


def test_missing_and_truncated_files_are_refused(imagenet, tmp_path, plain):
    load, refused = imagenet.pretrained.load_model, imagenet.command_line.UserError
    for name in ("none.pth", "none.safetensors"):
        with pytest.raises(refused, match="no such file"):
            load(ARCH, tmp_path / name)
    for zipped in (True, False):
        path = tmp_path / f"{zipped}.pth"
        torch.save(plain.state_dict(), path, _use_new_zipfile_serialization=zipped)
        path.write_bytes(path.read_bytes()[:1_000_000])
        with pytest.raises(refused, match=path.name):
            load(ARCH, path)
    (tmp_path / "a.safetensors").write_bytes(b"not safetensors")
    with pytest.raises(refused, match="safetensors"):
        load(ARCH, tmp_path / "a.safetensors")


def test_missing_branches_are_refused(imagenet, tmp_path, plain):
    load, refused = imagenet.pretrained.load_model, imagenet.command_line.UserError
    path = save_weights(tmp_path / "a.pth", plain.state_dict())
    with pytest.raises(refused, match="no auxiliary branches"):
        load(ARCH, path, branches=True)
    with pytest.raises(refused, match="unexpected|no auxiliary"):
        load("densenet121", path, branches=True)


def test_a_missing_safetensors_package_is_named(imagenet, tmp_path, plain, monkeypatch):
    monkeypatch.setitem(sys.modules, "safetensors.torch", None)
    with pytest.raises(imagenet.command_line.UserError, match="pip install safetensors"):
        metadata = imagenet.weights.Metadata()
        imagenet.weights.export_backbone(plain, tmp_path / "a.safetensors", metadata)
    with pytest.raises(imagenet.command_line.UserError, match="pip install safetensors"):
        imagenet.weights.read_checkpoint(tmp_path / "a.safetensors")
