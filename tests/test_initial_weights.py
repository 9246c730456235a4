"""train.py --init: what is loaded, what stays random, and what is refused."""

import re
import socket
import urllib.error

import pytest
import torch
import torchvision
from synthetic import save_weights
from training import command_line, error_of, load_checkpoint, log_records, run_train, write_data

NAMES = ["cat", "dog", "eel"]  # the classes of `write_data`


@pytest.fixture(scope="module")
def train(imagenet):
    return lambda argv: run_train(imagenet, argv)


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return write_data(tmp_path_factory.mktemp("images"))


@pytest.fixture
def small(imagenet, monkeypatch):
    """Make `resnet50` and the branches of `resnet18` small."""
    resnet = imagenet.resnet
    stage = resnet.Stage(1, 8)
    branches = (resnet.BranchSpec(2, (stage, stage)), resnet.BranchSpec(3, (stage,)))
    config = resnet.NetworkConfig(resnet.BasicBlock, (1, 1, 1, 1), branches)
    monkeypatch.setitem(resnet.NETWORKS, "resnet50", config)
    resnet18 = resnet.NETWORKS["resnet18"]._replace(branches=branches)
    monkeypatch.setitem(resnet.NETWORKS, "resnet18", resnet18)


@pytest.fixture
def start(imagenet, small):
    """Initialize a new network of three classes; return what it was and what it is."""

    def start(source, class_names=NAMES, arch="resnet50"):
        torch.manual_seed(1)
        model = imagenet.resnet.build(arch, num_classes=len(class_names))
        before = {name: value.clone() for name, value in model.state_dict().items()}
        imagenet.initial_weights.initialize_backbone(model, arch, str(source), class_names)
        return before, model.state_dict()

    return start


@pytest.fixture
def trained(imagenet, small):
    """Weights of a network with three classes and branches."""
    torch.manual_seed(7)
    model = imagenet.resnet.build("resnet50", num_classes=3)
    model(torch.randn(4, 3, 40, 40))  # changes the running statistics
    return model


def changed(before, after, loaded):
    """Return which parts of the network are those of `loaded`; check that the rest is random."""
    parts = {"fc": [], "branches": [], "rest": []}
    for name, value in after.items():
        part = name.split(".")[0]
        is_loaded = name in loaded and torch.equal(value, loaded[name])
        assert is_loaded or torch.equal(value, before[name]), name
        if not torch.equal(before[name], loaded.get(name, torch.empty(0))):
            parts[part if part in parts else "rest"].append(is_loaded)
    assert all(len(set(values)) == 1 for values in parts.values() if values)
    return {part for part, values in parts.items() if values and values[0]}


@pytest.mark.parametrize("form", ["run", "checkpoint.pt", "a.pth", "a.safetensors", "folder"])
@pytest.mark.parametrize(
    ("names", "says"),
    [
        (NAMES, ""),
        (["ant", "bee", "cow"], "the classifier (that of the weights has other classes)"),
        (["ant", "bee"], "the classifier (that of the weights has 2 classes, this run 3)"),
    ],
)
def test_every_form_of_weights_is_loaded(
    imagenet, start, trained, tmp_path, capsys, form, names, says
):
    """The classifier of other classes and the branches stay random."""
    if len(names) == 2:
        trained.fc = torch.nn.Linear(trained.fc.in_features, 2)
    state, options = trained.state_dict(), {"image_size": 40}
    if form in ("run", "checkpoint.pt"):
        state = {k: v for k, v in state.items() if not (len(names) == 2 and "branches" in k)}
        save_weights(
            tmp_path / "checkpoint.pt", state, arch="resnet50", class_names=names, options=options
        )
        source = tmp_path if form == "run" else tmp_path / form
    else:
        source = tmp_path / form
        metadata = imagenet.weights.Metadata("resnet50", names, 40)
        imagenet.exports.export(trained, source, metadata, "test")
    before, after = start(source)
    backbone = imagenet.resnet.backbone_state_dict(state)
    assert changed(before, after, backbone) == ({"rest", "fc"} if names == NAMES else {"rest"})
    random = f"{says}, the branches" if says else "the branches"
    count = len(backbone) - 2 * bool(says)
    line = f"--init {source}: loaded {count} tensors of the backbone; random: {random}\n"
    assert capsys.readouterr().out == line


def test_averaged_weights_are_preferred_and_unnamed_classes_are_compared_by_number(
    start, trained, tmp_path, capsys
):
    state = trained.state_dict()
    average = {name: value + 1 for name, value in state.items()}
    path = save_weights(tmp_path / "a.pt", state, ema=average)
    assert changed(*start(path), average) == {"rest", "fc"}
    assert "(averaged weights)" in capsys.readouterr().out
    assert changed(*start(path, ["ant", "bee"]), average) == {"rest"}
    headless = {k: v for k, v in state.items() if not k.startswith(("fc.", "branches."))}
    assert changed(*start(save_weights(tmp_path / "b.pt", headless)), state) == {"rest"}
    assert "the classifier (the weights have none)" in capsys.readouterr().out


def test_a_thousand_unnamed_classes_are_imagenet_s(imagenet, start, tmp_path):
    other = imagenet.resnet.build("resnet50", branches=False)
    path = save_weights(tmp_path / "a.pth", other.state_dict())
    synsets = imagenet.validation_set.imagenet_synsets()
    assert changed(*start(path, synsets), other.state_dict()) == {"rest", "fc"}
    assert changed(*start(path, synsets[::-1]), other.state_dict()) == {"rest"}


def test_only_a_thousand_unnamed_classes_are_imagenet_s(imagenet):
    """A bias that is not a tensor is one of no classes."""
    module, metadata = imagenet.initial_weights, imagenet.weights.Metadata()
    own, names = {"fc.bias": torch.zeros(1001)}, [f"class {i}" for i in range(1001)]
    for bias, says in ((torch.zeros(1001), ""), (3, "that of the weights has 0 classes, this run")):
        loaded = module.LoadedCheckpoint("", {"fc.bias": bias}, metadata)
        reason = module.other_classes(loaded, own, names)
        assert reason.startswith(says) and bool(reason) == bool(says)


def test_nothing_is_random_in_a_backbone_with_its_own_classes(imagenet, trained, tmp_path, capsys):
    path = save_weights(tmp_path / "a.pth", trained.state_dict())
    model = imagenet.resnet.build("resnet50", branches=False, num_classes=3)
    imagenet.initial_weights.initialize_backbone(model, "resnet50", str(path), NAMES)
    assert torch.equal(model.fc.bias, trained.fc.bias)
    assert capsys.readouterr().out.endswith("; random: nothing\n")


def test_torchvision_s_weights_are_loaded_by_name(imagenet, start, tmp_path, monkeypatch):
    """From torch's cache."""
    monkeypatch.setattr(torch.hub, "_hub_dir", str(tmp_path))
    weights = torchvision.models.ResNet18_Weights.IMAGENET1K_V1
    path = tmp_path / "checkpoints" / weights.url.rpartition("/")[2]
    path.parent.mkdir()
    torch.manual_seed(3)
    state = torchvision.models.resnet18().state_dict()
    save_weights(path, state)
    monkeypatch.chdir(tmp_path)
    assert changed(*start("IMAGENET1K_V1", arch="resnet18"), state) == {"rest"}
    synsets = imagenet.validation_set.imagenet_synsets()
    assert changed(*start("IMAGENET1K_V1", synsets, arch="resnet18"), state) == {"rest", "fc"}


@pytest.mark.parametrize("arch", ["resnet50", "resnet18"])
def test_unusable_weights_are_refused(imagenet, start, trained, tmp_path, monkeypatch, arch):
    state = trained.state_dict()
    good = save_weights(tmp_path / "good.pth", state, arch="resnet50")
    bare = save_weights(tmp_path / "bare.pth", state)
    short = save_weights(
        tmp_path / "short.pth", {k: v for k, v in state.items() if k != "bn1.bias"}
    )
    (tmp_path / "damaged.pth").write_bytes(bare.read_bytes()[:1000])
    (tmp_path / "empty").mkdir()
    cases = [
        ("nowhere.pth", "no such file or folder, and torchvision's weights for resnet"),
        ("IMAGENET1K_V9", "IMAGENET1K_V1"),
        (tmp_path / "damaged.pth", "damaged"),
        (tmp_path / "empty", "checkpoint.pt: no such file"),
        (short, "missing keys bn1.bias" if arch == "resnet50" else "not weights of a resnet18"),
    ]
    if arch == "resnet18":
        cases += [(good, "weights of resnet50, not resnet18; use -a resnet50")]
        cases += [(bare, "not weights of a resnet18: ")]
    monkeypatch.chdir(tmp_path)
    for source, message in cases:
        with pytest.raises(imagenet.command_line.UserError, match=re.escape(message)) as error:
            start(source, arch=arch)
        assert "\n" not in str(error.value)


def test_a_failed_download_says_what_to_do(imagenet, start, monkeypatch):
    def fail(arch, weights):
        error = socket.gaierror(-2, "Name or service not known")
        raise urllib.error.URLError(error) from error

    monkeypatch.setattr("torchvision.models.get_model", fail)
    with pytest.raises(imagenet.command_line.UserError) as raised:
        start("IMAGENET1K_V2", arch="resnet50")
    assert str(raised.value) == (
        "--init IMAGENET1K_V2: connect to the internet and try again, or download "
        "https://download.pytorch.org/models/resnet50-11ad3fa6.pth elsewhere and give it as "
        "--init FILE; the download failed: Name or service not known"
    )


def test_processes_with_different_files_are_refused(
    imagenet, start, trained, tmp_path, monkeypatch
):
    path = save_weights(tmp_path / "a.pth", trained.state_dict())
    module, refused = imagenet.initial_weights, imagenet.command_line.UserError
    monkeypatch.setattr(module, "gather_objects", lambda value: [value, value])
    start(path)
    monkeypatch.setattr(module, "gather_objects", lambda value: [value, "another hash"])
    with pytest.raises(refused, match="the processes of this run read different files"):
        start(path)


def test_a_run_starts_from_the_weights_once(train, data, tmp_path, capsys):
    """Not when it is resumed, with or without --init. What it started from stays in its log."""
    assert train(command_line(data, tmp_path / "first")) == 0
    before = load_checkpoint(tmp_path / "first")["model"]
    source = tmp_path / "source.pt"
    (tmp_path / "first" / "checkpoint.pt").rename(source)
    still = ("--lr", "0", "--seed", "2", "--ema", "0.9", "--epochs")  # only the statistics change
    argv = command_line(data, tmp_path / "run", *still, "1", "--resume", "auto")
    assert train([*argv, "--init", str(source)]) == 0
    assert f"--init {source}: loaded" in capsys.readouterr().out
    content = load_checkpoint(tmp_path / "run")
    for part in ("model", "ema"):
        assert torch.equal(content[part]["features.0.weight"], before["features.0.weight"])
        assert torch.equal(content[part]["fc.weight"], before["fc.weight"])
        assert not torch.equal(content[part]["branches.0.weight"], before["branches.0.weight"])
    source.unlink()
    for epochs, init in (("2", ["--init", str(source)]), ("3", []), ("4", ["--init", "other"])):
        argv = command_line(data, tmp_path / "run", *still, epochs, "--resume", "auto", *init)
        assert train(argv) == 0
        assert "--init" not in capsys.readouterr().out
    content = load_checkpoint(tmp_path / "run")
    assert content["epoch"] == 4 and content["options"]["init"] == str(source)
    assert torch.equal(content["model"]["fc.weight"], before["fc.weight"])
    assert "IMAGENET1K_V1" in error_of(
        train, capsys, command_line(data, tmp_path / "new", "--init", str(source))
    )
    assert not (tmp_path / "new").exists() and len(log_records(tmp_path / "run")) == 4


def test_a_run_from_before_this_option_is_resumed(train, data, tmp_path):
    argv = command_line(data, tmp_path, "--resume", "auto", "--epochs")
    assert train([*argv, "1"]) == 0
    content = load_checkpoint(tmp_path)
    del content["options"]["init"]
    torch.save(content, tmp_path / "checkpoint.pt")
    assert train([*argv, "2"]) == 0
    assert load_checkpoint(tmp_path)["options"]["init"] == ""


def test_the_initial_weights_are_not_overwritten(imagenet, data, tmp_path):
    path = save_weights(tmp_path / "a.pth", {})
    with pytest.raises(imagenet.command_line.UserError, match="this command reads it"):
        imagenet.train_options.parse([str(data), "--init", str(path), "--export", str(path)])
