"""Exported backbones: plain state dicts that keep the network, its classes and its image size."""

import copy
import json
from dataclasses import replace

import pytest
import torch
import torchvision
from synthetic import save_weights, set_constant_ranking, write_folders, write_image

SUFFIXES = pytest.mark.parametrize("suffix", [".pth", ".safetensors"])


@pytest.fixture
def network(imagenet, monkeypatch):
    """A small `resnet50` of three classes that ranks class 1 first, then 0 and 2."""
    resnet = imagenet.resnet
    config = resnet.NetworkConfig(
        resnet.BasicBlock,
        (1, 1, 1, 1),
        branches=(
            resnet.BranchSpec(2, (resnet.Stage(1, 8), resnet.Stage(1, 16))),
            resnet.BranchSpec(3, (resnet.Stage(1, 24),)),
        ),
    )
    monkeypatch.setitem(resnet.NETWORKS, "resnet50", config)
    torch.manual_seed(0)
    model = resnet.build("resnet50", num_classes=3)
    model(torch.randn(4, 3, 32, 32))  # changes the running statistics
    set_constant_ranking(model.fc, [1, 0, 2])
    return model.eval()


@pytest.fixture
def metadata(imagenet):
    return imagenet.weights.Metadata("resnet50", ["eel", "dog", "cat"], 40, "bfloat16")


@pytest.fixture
def run(imagenet, capsys):
    """Run main.py on the CPU; return its exit status, output and errors."""

    def run(*arguments):
        flags = ["--device", "cpu", "-j", "0", "-b", "3"]
        status = imagenet.main.main([*flags, *map(str, arguments)])
        return status, *capsys.readouterr()

    return run


@pytest.fixture
def checkpoint(network, metadata, tmp_path):
    """A run's folder with a checkpoint of the network, in the form of train.py's."""
    (tmp_path / "run").mkdir()
    save_weights(
        tmp_path / "run" / "checkpoint.pt",
        network.state_dict(),
        arch=metadata.arch,
        class_names=metadata.class_names,
        options={"image_size": metadata.image_size, "dtype": metadata.dtype},
    )
    return tmp_path / "run"


@SUFFIXES
def test_an_exported_backbone_loads_in_torchvision(imagenet, network, metadata, tmp_path, suffix):
    path = tmp_path / f"backbone{suffix}"
    model = torch.nn.DataParallel(network.to(memory_format=torch.channels_last))
    imagenet.weights.export_backbone(model, path, metadata)
    assert list(tmp_path.iterdir()) == [path]
    if suffix == ".pth":
        state = torch.load(path, weights_only=True)
    else:
        state = pytest.importorskip("safetensors.torch").load_file(path)
    assert all(type(key) is str and type(value) is torch.Tensor for key, value in state.items())
    expected = torchvision.models.ResNet(imagenet.resnet.BasicBlock, [1, 1, 1, 1], num_classes=3)
    expected.load_state_dict(state, strict=True)
    images = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        assert torch.allclose(expected.eval()(images), network(images)[0], atol=1e-5)


@SUFFIXES
def test_an_export_is_evaluated_without_further_flags(run, checkpoint, tmp_path, suffix):
    """With the network, the classes and the image size of training, from the finished run."""
    path = tmp_path / f"backbone{suffix}"
    status, out, err = run("--model_path", checkpoint, "--export", path)
    assert (status, err) == (0, "") and f"exported the backbone to {path}" in out
    write_folders(tmp_path, {"cat": 1, "dog": 2, "eel": 1})
    for source in (checkpoint, checkpoint / "checkpoint.pt", path):
        status, out, _ = run("--model_path", source, tmp_path)
        assert status == 0
        assert out.splitlines()[-1] == "[Error rate] Top-1: 50.0000%, Top-5: 0.0000%"
        assert "resnet50 for inference" in out and "dtype float32, images of 40 pixels\n" in out
        assert "note: trained in bfloat16, evaluating in float32" in out
        assert ("for training" in out) == (source != path)  # the export has no branches
    image = write_image(tmp_path / "a.png")
    status, out, _ = run("--model_path", path, "--predict", image)
    assert [line.split()[1] for line in out.splitlines()[-3:]] == ["dog", "eel", "cat"]


def test_an_explicit_image_size_is_used_and_noted(run, checkpoint, tmp_path):
    write_folders(tmp_path, {"dog": 1})
    result = tmp_path / "result.json"
    flags = ("--image-size", 64, "--dtype", "bfloat16", "--json", result)
    status, out, _ = run("--model_path", checkpoint, tmp_path, *flags)
    assert status == 0 and "images of 64 pixels" in out and "trained in" not in out
    assert "trained on images of 40 pixels, evaluating on 64; --image-size 40 matches" in out
    options = json.loads(result.read_text())["options"]
    assert (options["arch"], options["image_size"]) == ("resnet50", 64)


@pytest.mark.parametrize(("dtype", "is_exact"), [("float32", True), ("bfloat16", False)])
def test_batch_norms_are_folded_in_half_precision_alone(
    imagenet, network, metadata, dtype, is_exact
):
    """In float32 the logits are those of training, bit for bit."""
    flags = ["DATA", "--model_path", "a.pt", "--dtype", dtype, "--image-size", "40"]
    config = replace(imagenet.options.parse(flags), arch="resnet50")
    model, images = copy.deepcopy(network), torch.randn(2, 3, 40, 40)
    loaded = imagenet.pretrained.LoadedModel(model, 3, metadata, True)
    imagenet.main.prepare(config, loaded, torch.device("cpu"))
    norms = [module for module in model.modules() if isinstance(module, torch.nn.BatchNorm2d)]
    assert bool(norms) == is_exact
    layout = imagenet.layout.memory_format(40, torch.device("cpu"), torch.float32)
    expected = network.to(memory_format=layout)
    with torch.no_grad():
        same = [torch.equal(*pair) for pair in zip(model(images), expected(images), strict=True)]
    assert all(same) or not is_exact


def test_contradicting_flags_and_existing_files_are_refused(run, checkpoint, tmp_path):
    write_folders(tmp_path, {"dog": 1})
    before = (checkpoint / "checkpoint.pt").read_bytes()
    for flags, message in (
        ((tmp_path, "-a", "resnet18"), "a checkpoint of resnet50, not resnet18; leave out -a"),
        ((tmp_path, "--json", checkpoint / "checkpoint.pt"), "this command reads it"),
        (("--export", checkpoint / "checkpoint.pt"), "this command reads it"),
    ):
        status, _, err = run("--model_path", checkpoint, *flags)
        assert status == 2 and message in err and err.count("\n") == 1
    assert (checkpoint / "checkpoint.pt").read_bytes() == before


def test_averaged_weights_are_exported(imagenet, run, network, tmp_path):
    average = {name: value + 1 for name, value in network.state_dict().items()}
    path = save_weights(tmp_path / "a.pt", network.state_dict(), ema=average, arch="resnet50")
    status, out, _ = run("--model_path", path, "--export", tmp_path / "b.pth")
    assert status == 0 and "using the averaged (EMA) weights" in out
    exported = torch.load(tmp_path / "b.pth", weights_only=True)
    assert torch.equal(exported["fc.bias"], network.fc.bias + 1)
    loaded = imagenet.weights.read_checkpoint(tmp_path / "b.pth")
    assert loaded.metadata == ("resnet50", None, None, None)


def test_exports_without_metadata_load_as_before(run, network, tmp_path):
    state = {k: v for k, v in network.state_dict().items() if not k.startswith("branches.")}
    path = save_weights(tmp_path / "old.pth", dict(state))
    write_folders(tmp_path, {"cat": 1, "dog": 2, "eel": 1})
    status, out, _ = run("--model_path", path, "-a", "resnet50", "--image-size", 40, tmp_path)
    assert status == 0 and out.splitlines()[-1].startswith("[Error rate] Top-1: 50.0000%")
    status, _, err = run("--model_path", path, tmp_path)  # a resnet18 unless -a says otherwise
    assert status == 2 and "give its network with -a" in err


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ({"class_names": "eel"}, "class_names is not a list"),
        ({"arch": 50}, "arch is not a string"),
        ({"arch": "resnet19"}, "network resnet19: expected resnet18"),
        ({"class_names": ["eel"]}, "1 different class name for a network of 3"),
    ],
)
def test_wrong_metadata_is_refused(imagenet, network, tmp_path, entry, message):
    state = network.state_dict()
    state._metadata[imagenet.weights.EXPORT_KEY] = {"arch": "resnet50"} | entry
    path = save_weights(tmp_path / "a.pth", state)
    with pytest.raises(imagenet.command_line.UserError, match=message):
        imagenet.pretrained.load_model(None, path)
