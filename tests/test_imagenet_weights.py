"""Checkpoint forms of ImageNet networks, strict loading, and the exported backbone."""

import pytest
import torch
import torchvision
from synthetic import save

ARCH = "shufflenet_v2_x0_5"
PREFIXES = ("", "module.", "_orig_mod.", "module._orig_mod.", "_orig_mod.module.")


@pytest.fixture(scope="module")
def images():
    return torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(1))


@pytest.fixture(scope="module")
def plain():
    """A small network of torchvision's, seeded."""
    torch.manual_seed(0)
    return torchvision.models.shufflenet_v2_x0_5().eval()


@pytest.fixture
def tiny(imagenet, monkeypatch):
    """A DKS network of one block a stage, under the name `tiny`, seeded and not quite fresh."""
    resnet = imagenet.resnet
    row = resnet.Network(
        resnet.BasicBlock,
        (1, 1, 1, 1),
        shallow=(resnet.Stage(1, 8), resnet.Stage(1, 16)),
        deep=(resnet.Stage(1, 24),),
    )
    monkeypatch.setitem(resnet.NETWORKS, "tiny", row)
    torch.manual_seed(0)
    model = resnet.build("tiny", num_classes=7)
    model(torch.randn(4, 3, 32, 32))  # running statistics other than the initial ones
    return model.eval()


def prefixed(state, prefix):
    return {prefix + name: value for name, value in state.items()}


def without_counts(state):
    return {name: v for name, v in state.items() if not name.endswith("num_batches_tracked")}


@torch.no_grad()
def same_logits(classifier, model, images):
    """Whether the first logits of the loaded network are the model's."""
    expected = model(images)
    expected = expected[0] if isinstance(expected, tuple) else expected
    return torch.equal(classifier.model(images)[0], expected)


@pytest.mark.parametrize("prefix", PREFIXES)
@pytest.mark.parametrize("key", ["", "model", "state_dict"])
def test_wrapped_and_nested_state_dicts_load(imagenet, tmp_path, plain, images, prefix, key):
    state = prefixed(plain.state_dict(), prefix)
    torch.save({key: state, "epoch": 3} if key else state, tmp_path / "a.pth")
    classifier = imagenet.pretrained.load_model(ARCH, tmp_path / "a.pth")
    assert classifier.num_classes == 1000 and classifier.class_names is None
    assert same_logits(classifier, plain, images)


def test_files_of_2019_load_on_a_cpu(imagenet, tmp_path, plain, images, monkeypatch):
    path = tmp_path / "old.pth"
    state = without_counts(prefixed(plain.state_dict(), "module."))
    monkeypatch.setattr("torch.serialization.location_tag", lambda storage: "cuda:0")
    torch.save(state, path, _use_new_zipfile_serialization=False)
    # A tensor on a GPU also had a storage class of its own then.
    content = path.read_bytes().replace(b"ctorch\nFloatStorage\n", b"ctorch.cuda\nFloatStorage\n")
    assert content[:2] != b"PK" and b"cuda:0" in content and b"torch.cuda\n" in content
    path.write_bytes(content)
    assert same_logits(imagenet.pretrained.load_model(ARCH, path), plain, images)


def test_some_batch_counts_missing_is_damage(imagenet, tmp_path, plain):
    state = dict(plain.state_dict())
    del state["conv1.1.num_batches_tracked"]
    with pytest.raises(imagenet.command_line.UserError, match="lacks conv1.1.num_batches_tracked"):
        imagenet.pretrained.load_model(ARCH, save(tmp_path / "a.pth", state))


def test_branches_are_dropped_or_loaded(imagenet, tmp_path, tiny, images):
    names = [f"class{i}" for i in range(7)]
    path = save(tmp_path / "a.pt", tiny.state_dict(), class_names=names, arch="tiny")
    alone = imagenet.pretrained.load_model("tiny", path)
    assert (alone.num_classes, alone.class_names) == (7, names)
    assert len(alone.model(images)) == 1 and same_logits(alone, tiny, images)
    whole = imagenet.pretrained.load_model("tiny", path, branches=True)
    with torch.no_grad():
        pairs = list(zip(whole.model(images), tiny(images), strict=True))
    assert len(pairs) == 3 and all(torch.equal(mine, own) for mine, own in pairs)


def test_averaged_weights_come_first(imagenet, tmp_path, plain, capsys):
    averaged = {name: value + 1 for name, value in plain.state_dict().items()}
    for ema, bias in (({}, plain.fc.bias), (averaged, plain.fc.bias + 1)):
        path = save(tmp_path / "a.pt", plain.state_dict(), ema=ema)
        found = imagenet.pretrained.load_model(ARCH, path)
        assert torch.equal(found.model.network.fc.bias, bias)
        assert ("averaged weights" in capsys.readouterr().out) == bool(ema)


def test_branches_under_dhms_names_load(imagenet, tmp_path, tiny, images):
    dhm = {
        "branches.0.stages.0.": "layer3_head2.",
        "branches.0.stages.1.": "layer4_head2.",
        "branches.0.classifier.": "fc_head2.",
        "branches.1.stages.0.": "layer4_head1.",
        "branches.1.classifier.": "fc_head1.",
    }
    state = tiny.state_dict()
    for own, theirs in dhm.items():
        state = {name.replace(own, theirs): value for name, value in state.items()}
    assert not any(name.startswith("branches") for name in state)
    path = save(tmp_path / "a.pth", prefixed(state, "module."))
    whole = imagenet.pretrained.load_model("tiny", path, branches=True)
    with torch.no_grad():
        pairs = zip(whole.model(images), tiny(images), strict=True)
        assert all(torch.equal(mine, own) for mine, own in pairs)


def test_other_classifiers_of_torchvision_load(imagenet, tmp_path):
    model = torchvision.models.squeezenet1_1(num_classes=5).eval()
    path = save(tmp_path / "a.pth", model.state_dict())
    classifier = imagenet.pretrained.load_model("squeezenet1_1", path)
    assert classifier.num_classes == 5
    assert same_logits(classifier, model, torch.randn(1, 3, 64, 64))


class Code:
    def __reduce__(self):
        return print, ("this must not run",)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda state: {"fc.weight": torch.ones(1000, 512)}, "lacks conv1.0.weight"),
        (lambda state: {**state, "stage5.2.weight": torch.ones(1)}, "unexpected stage5.2.weight"),
        (lambda state: {**state, "conv1.0.weight": torch.ones(24, 3, 5, 5)}, "has shape .24, 3, 5"),
        (lambda state: {**state, "fc.bias": torch.full((1000,), torch.nan)}, "not finite"),
        (lambda state: {**state, "fc.bias": [0.0] * 1000}, "no dense tensor"),
        (lambda state: {**state, "more": Code()}, "holds code"),
        (lambda state: {**state, "module.fc.bias": state["fc.bias"]}, "two parameters of one name"),
        (lambda state: {"model": state, "arch": "resnet50"}, "use -a resnet50"),
        (lambda state: {"model": state, "class_names": ["a"] * 1000}, "1 different class names"),
        (lambda state: {"model": state, "class_names": [1, 2]}, "class_names or arch are no names"),
        (lambda state: {"model": state, "arch": 18}, "class_names or arch are no names"),
        (lambda state: {1: torch.ones(1)}, "not names of parameters"),
        (lambda state: torch.ones(3), "expected a dict"),
    ],
)
def test_other_content_is_refused(imagenet, tmp_path, capsys, plain, change, message):
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
    (tmp_path / "a.safetensors").write_bytes(b"no such thing")
    with pytest.raises(refused, match="safetensors"):
        load(ARCH, tmp_path / "a.safetensors")


def test_asking_for_branches_that_are_not_there_is_refused(imagenet, tmp_path, plain):
    load, refused = imagenet.pretrained.load_model, imagenet.command_line.UserError
    path = save(tmp_path / "a.pth", plain.state_dict())
    with pytest.raises(refused, match="no auxiliary branches"):
        load(ARCH, path, branches=True)
    with pytest.raises(refused, match="unexpected|no auxiliary"):
        load("resnet34", path, branches=True)


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_the_exported_backbone_is_torchvisions(imagenet, tmp_path, tiny, images, suffix):
    tiny = tiny.to(memory_format=torch.channels_last)
    path = tmp_path / f"backbone{suffix}"
    imagenet.weights.export_backbone(torch.nn.DataParallel(tiny), path)
    assert list(tmp_path.iterdir()) == [path]
    if suffix == ".pth":
        state = torch.load(path, weights_only=True)
    else:
        state = pytest.importorskip("safetensors.torch").load_file(path)
    alone = torchvision.models.ResNet(imagenet.resnet.BasicBlock, [1, 1, 1, 1], num_classes=7)
    alone.load_state_dict(state, strict=True)
    with torch.no_grad():
        assert torch.allclose(alone.eval()(images), tiny(images)[0], atol=1e-5)
    assert same_logits(imagenet.pretrained.load_model("tiny", path), alone, images)


def test_safetensors_without_its_package_is_refused(imagenet, tmp_path, plain, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "safetensors.torch", None)
    with pytest.raises(imagenet.command_line.UserError, match="pip install safetensors"):
        imagenet.weights.export_backbone(plain, tmp_path / "a.safetensors")
    with pytest.raises(imagenet.command_line.UserError, match="pip install safetensors"):
        imagenet.weights.read(tmp_path / "a.safetensors")
