"""An exported folder: timm builds the same network and the same pixels from it; its model card."""

import json
import math
import os
import re
import shutil

import pytest
import torch
from conftest import ROOT
from PIL import Image
from synthetic import save_weights, write_folders, write_image
from training import command_line, error_of, load_checkpoint, log_records, run_train, write_data

timm = pytest.importorskip("timm")
yaml = pytest.importorskip("yaml")

SIZES = [33, 40, 48, 64, 224, 443]  # 443: the exact fraction is rounded to one pixel less


@pytest.fixture(scope="module")
def train(imagenet):
    return lambda argv: run_train(imagenet, argv)


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return write_data(tmp_path_factory.mktemp("images"))


@pytest.fixture(scope="module")
def small_branches(imagenet):
    """Give ResNet-18 small branches, so that its checkpoints are small."""
    resnet = imagenet.resnet
    stage = resnet.Stage(1, 8)
    branches = (resnet.BranchSpec(2, (stage, stage)), resnet.BranchSpec(3, (stage,)))
    with pytest.MonkeyPatch.context() as patch:
        config = resnet.NETWORKS["resnet18"]._replace(branches=branches)
        patch.setitem(resnet.NETWORKS, "resnet18", config)
        yield


@pytest.fixture(scope="module")
def exported(imagenet, data, small_branches, module_path):
    """A run of a ResNet-18 with averaged weights, and the folder that it exported."""
    flags = ["--ema", "0.9", "--label-smoothing", "0.1", "--export", str(module_path / "r18")]
    assert imagenet.train.main(command_line(data, module_path / "run", *flags)) == 0
    return module_path / "run", module_path / "r18"


@pytest.fixture
def main(imagenet, capsys):
    """Run main.py on the CPU; return its exit status, output and errors."""

    def main(*arguments):
        flags = ["--device", "cpu", "-j", "0", "-b", "3"]
        status = imagenet.main.main([*flags, *map(str, arguments)])
        return status, *capsys.readouterr()

    return main


def logits(network, images):
    with torch.no_grad():
        out = network.eval()(images)
    return out[0] if isinstance(out, tuple) else out


@pytest.mark.parametrize("arch", [
    "resnet18", "resnet34", "resnet50", "resnet101", "resnet152", "resnext50_32x4d",
    "wide_resnet50_2",
])  # fmt: skip
def test_timm_builds_the_same_network(imagenet, tmp_path, arch):
    """Every network of `NETWORKS`, under its name in timm."""
    assert arch in imagenet.resnet.NETWORKS and len(imagenet.resnet.NETWORKS) == 7
    torch.manual_seed(0)
    network = imagenet.resnet.build(arch, branches=False, num_classes=3)
    for module in network.modules():  # as after training
        if isinstance(module, torch.nn.BatchNorm2d):
            module.running_mean.normal_(std=0.1)
            module.running_var.uniform_(0.5, 1.5)
            module.weight.data.uniform_(0.5, 1)
    metadata = imagenet.weights.Metadata(arch, ["eel", "dog", "cat"], 64)
    imagenet.exports.export(network, tmp_path / "a", metadata, "random")
    in_timm = timm.create_model(f"local-dir:{tmp_path / 'a'}", pretrained=True)
    assert in_timm.pretrained_cfg["label_names"] == ["eel", "dog", "cat"]
    images = torch.randn(2, 3, 64, 64)
    assert torch.equal(logits(in_timm, images), logits(network, images))


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize(
    ("resize", "crop_mode"), [("square", "squash"), ("shorter-side", "center")]
)
def test_timm_s_transform_gives_the_pixels_of_evaluation(
    imagenet, tmp_path, size, resize, crop_mode
):
    """An exported folder has the mode of `--resize square`; timm has the other one too."""
    metadata = imagenet.weights.Metadata("resnet18", ["cat", "dog"], size)
    network = imagenet.resnet.build("resnet18", branches=False, num_classes=2)
    config = imagenet.exports.timm_config(network, metadata)["pretrained_cfg"]
    assert config["crop_mode"] == "squash"
    config["crop_mode"] = crop_mode
    transform = timm.data.create_transform(**timm.data.resolve_data_config(pretrained_cfg=config))
    crop = imagenet.presets.evaluation_transform(size, resize)
    normalize = imagenet.presets.Normalization(torch.device("cpu"))
    for shape in ((300, 200), (64, 64), (37, 501)):
        image = Image.open(write_image(tmp_path / f"{shape}.png", size=shape)).convert("RGB")
        assert torch.equal(transform(image), normalize(crop(image)[None])[0])


def test_timm_resizes_to_the_same_side_at_every_size(imagenet):
    crop_fraction, resized_side = imagenet.exports.crop_fraction, imagenet.presets.resized_side
    for size in range(8, 4097):
        assert math.floor(size / crop_fraction(size)) == resized_side(size)
    assert crop_fraction(224) == crop_fraction(64) == 0.875


def test_main_timm_torchvision_and_torch_hub_agree_on_a_photograph(
    imagenet, exported, main, tmp_path
):
    run, folder = exported
    image = write_image(tmp_path / "a.png", size=(300, 200))
    network = timm.create_model(f"local-dir:{folder}", pretrained=True).eval()
    transform = timm.data.create_transform(**timm.data.resolve_model_data_config(network))
    images = transform(Image.open(image))[None]
    expected = logits(network, images)
    hub = torch.hub.load(str(ROOT), "resnet18", source="local", weights=str(folder))
    assert torch.equal(logits(hub, images), expected)
    result = tmp_path / "result.json"
    status, _, err = main("--model_path", folder, "--predict", image, "--json", result)
    assert (status, err) == (0, "")
    (prediction,) = json.loads(result.read_text())
    percent = {each["name"]: each["probability"] for each in prediction["classes"]}
    for name, value in zip(("cat", "dog", "eel"), expected.softmax(1)[0].tolist(), strict=True):
        assert percent[name] == pytest.approx(value, rel=1e-5)


def test_main_evaluates_a_folder_without_further_flags(exported, main, data):
    """With the errors that the card states."""
    run, folder = exported
    status, out, err = main("--model_path", folder, data)
    assert (status, err) == (0, "") and "images of 40 pixels" in out
    top1, top5 = (log_records(run)[-1]["ema"][f"{kind}_errors"][0] for kind in ("top1", "top5"))
    assert out.splitlines()[-1] == f"[Error rate] Top-1: {top1:.4f}%, Top-5: {top5:.4f}%"


def test_the_card_states_what_the_run_s_log_says(exported, data):
    run, folder = exported
    card = (folder / "README.md").read_text()
    _, header, text = card.split("---\n", 2)
    header = yaml.safe_load(header)
    assert (header["library_name"], header["pipeline_tag"]) == ("timm", "image-classification")
    record = log_records(run)[-1]
    rows = re.findall(r"^\| ([*\w ]+?) \| ([\d.]+) \| ([\d.]+) \|$", text, re.MULTILINE)
    names = ["backbone", "shallow branch", "deep branch"]
    expected = [
        (name, f"{top1:.2f}", f"{top5:.2f}")
        for name, top1, top5 in zip(
            names, record["validation"]["top1_errors"], record["validation"]["top5_errors"],
            strict=True,
        )
    ]  # fmt: skip
    for name, entry, keys in (
        ("ensemble", record["validation"], ("ensemble_top1_error", "ensemble_top5_error")),
        ("**averaged weights**", record["ema"], ("top1_errors", "top5_errors")),
    ):
        values = (entry[key] for key in keys)
        values = (value[0] if isinstance(value, list) else value for value in values)
        expected.append((name, *(f"{value:.2f}" for value in values)))
    assert rows[-5:] == expected
    assert ", after epoch 2 of 2:" in text
    assert "These files hold the averaged weights" in text
    assert "13 training images of 3 classes" in text and "5 validation images" in text
    for row in ("| `--ema` | 0.9 |", "| `--label-smoothing` | 0.1 |", "| `--lr` | 0.02 |"):
        assert row in text
    assert "`--mixup`" not in text
    assert f"the folder `{data.name}`" in text
    assert str(run.parent) not in text and str(data.parent) not in text  # paths are private


@pytest.mark.parametrize(
    ("schedule", "names"),
    [("step", ["lr", "lr-schedule", "milestones", "lr-factor"]), ("cosine", ["lr", "lr-schedule"])],
)
def test_the_recipe_has_the_options_that_were_used(imagenet, schedule, names):
    flags = ["DATA", "--lr-schedule", schedule, "--mixup", "0.2"]
    options = imagenet.train_options.parse(flags).with_milestones(None).to_dict()
    run = imagenet.training_run.TrainingRun(options, 2, 8, 13, 1, False, None)
    rows = re.findall(
        r"^\| `--([\w-]+)` \|", imagenet.model_card.describe_recipe(run), re.MULTILINE
    )
    assert [name for name in rows if name.startswith(("lr", "milestones"))] == names
    assert rows[-1] == "mixup" and "seed" in rows and "workers" not in rows


def test_the_card_says_which_numbers_are_missing(imagenet, exported, main, tmp_path):
    """The checkpoint within an epoch; a checkpoint without its log; a bare state dict."""
    run, _ = exported
    content = load_checkpoint(run) | {"ema": {}, "optimizer": {}}
    for name, changes in (("whole", {}), ("within", {"step": content["step"] - 1})):
        folder = tmp_path / name
        folder.mkdir()
        shutil.copy(run / "log.jsonl", folder)
        save_weights(folder / "checkpoint.pt", content["model"], **{
            key: value for key, value in (content | changes).items() if key != "model"
        })  # fmt: skip
        assert main("--model_path", folder, "--export", tmp_path / f"{name}-r18")[0] == 0
        card = (tmp_path / f"{name}-r18" / "README.md").read_text()
        assert ("no record for exactly these weights" in card) == (name == "within")
        assert "| `--epochs` | 2 |" in card and "13 training images" in card
    bare = save_weights(tmp_path / "bare.pth", imagenet.resnet.build("resnet18").state_dict())
    status, _, err = main("--model_path", bare, "--export", tmp_path / "bare")
    assert (status, err) == (0, "")
    card = (tmp_path / "bare" / "README.md").read_text()
    assert card.count("Not known: the weights are not from a checkpoint of `train.py`") == 3
    config = json.loads((tmp_path / "bare" / "config.json").read_text())
    assert config["label_names"] == imagenet.validation_set.imagenet_synsets()
    assert config["pretrained_cfg"]["input_size"] == [3, 224, 224]


def test_options_that_a_resumed_run_may_change_are_listed_if_they_change_the_result(imagenet):
    flags = ["DATA", "--skip-unreadable", "--compile", "--sync-bn", "--workers", "7"]
    options = imagenet.train_options.parse(flags).with_milestones(None).to_dict()
    run = imagenet.training_run.TrainingRun(options, 2, 8, 13, 1, False, None)
    recipe = imagenet.model_card.describe_recipe(run)
    for name in ("skip-unreadable", "compile", "sync-bn"):
        assert f"| `--{name}` | True |" in recipe
    assert "workers" not in recipe


def test_the_card_tells_data_method_and_initial_weights(imagenet, exported):
    card = imagenet.model_card
    run = imagenet.training_run.read_run(exported[0] / "checkpoint.pt")
    text = (exported[1] / "README.md").read_text()
    assert "(DKS, CVPR 2019): auxiliary branches learned" in text
    assert run.record["data_fingerprint"] in text and "could not be read" not in text
    assert "started from other weights" not in text
    record = run.record | {"train": run.record["train"] | {"unreadable": 3}}
    data = card.describe_data({"num_classes": 3}, run._replace(record=record))[0]
    assert "In epoch 2, 3 could not be read" in data
    run = run._replace(options=run.options | {"init": "/home/me/base.pth"})
    assert "started from other weights" in card.describe_limits(run)
    recipe = card.describe_recipe(run)
    assert "| `--init` | `base.pth` |" in recipe and "/home/me" not in recipe


def test_the_averaged_weights_are_in_the_folder(imagenet, exported):
    run, folder = exported
    content = load_checkpoint(run)
    _, state, metadata = imagenet.weights.read_checkpoint(folder / "model.safetensors")
    assert metadata == ("resnet18", ["cat", "dog", "eel"], 40, content["options"]["dtype"])
    assert torch.equal(state["fc.weight"], content["ema"]["fc.weight"])
    assert not torch.equal(state["fc.weight"], content["model"]["fc.weight"])


def test_a_folder_has_a_backbone_only_if_everything_agrees(imagenet, tmp_path):
    network = imagenet.resnet.build("resnet18", branches=False, num_classes=2)
    metadata = imagenet.weights.Metadata("resnet18", ["cat", "dog"], 40)
    imagenet.exports.export(network, tmp_path / "a", metadata, "random")
    has_backbone = imagenet.exports.has_backbone
    assert has_backbone(tmp_path / "a", network, metadata)
    assert not has_backbone(tmp_path / "a", network, metadata._replace(class_names=["dog", "cat"]))
    imagenet.exports.export(network, tmp_path / "b.pth", metadata, "random")
    state = torch.load(tmp_path / "b.pth", weights_only=True)
    del state["fc.bias"]
    torch.save(state, tmp_path / "b.pth")
    assert not has_backbone(tmp_path / "b.pth", network, metadata)
    network.fc.bias.data[0] += 1
    assert not has_backbone(tmp_path / "a", network, metadata)
    config = json.loads((tmp_path / "a" / "config.json").read_text())
    assert config["pretrained_cfg"]["pool_size"] == [2, 2]  # of 40 pixels, rounded up


def test_a_folder_with_a_checkpoint_and_an_export_is_a_run(imagenet, tmp_path):
    weights_path = imagenet.export_path.weights_path
    (tmp_path / "model.safetensors").touch()
    assert weights_path(tmp_path) == tmp_path / "model.safetensors"
    (tmp_path / "checkpoint.pt").touch()
    assert weights_path(tmp_path) == tmp_path / "checkpoint.pt"


def test_the_card_names_the_epoch_of_the_errors(imagenet, exported):
    """A run that is not finished, or was stopped early."""
    run = imagenet.training_run.read_run(exported[0] / "checkpoint.pt")
    run = run._replace(epoch=2, options=run.options | {"epochs": 90})
    assert "after epoch 2 of 90:" in imagenet.model_card.describe_errors({"num_classes": 3}, run)[0]


@pytest.mark.parametrize(
    ("changes", "is_found"),
    [
        ({}, True),
        ({"epochs": 90, "workers": 7, "data": "elsewhere", "skip_unreadable": True}, True),
        ({"grad_accumulation": 2}, True),  # which depends on the number of processes
        ({"seed": 5}, False),
        ({"method": "ds"}, False),
        ({"init": "IMAGENET1K_V1"}, False),
        ({"mixup": 0.2}, False),
    ],
)
def test_the_record_in_the_log_is_of_the_same_run(imagenet, exported, tmp_path, changes, is_found):
    """Another run may have left a log with the same steps."""
    run, _ = exported
    content = load_checkpoint(run) | {"model": {}, "ema": {}, "optimizer": {}}
    shutil.copy(run / "log.jsonl", tmp_path)
    torch.save(content | {"options": content["options"] | changes}, tmp_path / "checkpoint.pt")
    found = imagenet.training_run.read_run(tmp_path / "checkpoint.pt")
    assert (found.record is not None) == is_found
    assert not is_found or found.record["epoch"] == 2


def test_with_cosine_the_record_is_of_as_many_epochs(imagenet):
    fixed = imagenet.training_run.fixed_options
    for schedule, are_equal in (("steps", True), ("cosine", False)):
        one, other = ({"lr_schedule": schedule, "epochs": epochs} for epochs in (90, 100))
        assert (fixed(one) == fixed(other)) == are_equal


def test_the_training_of_an_older_checkpoint_is_known(imagenet, exported, tmp_path):
    """It does not name the decoding, nor the options that are newer."""
    run, _ = exported
    content = load_checkpoint(run) | {"model": {}, "ema": {}, "optimizer": {}}
    del content["decoding"], content["options"]["init"], content["options"]["mixup"]
    torch.save(content, tmp_path / "checkpoint.pt")
    shutil.copy(run / "log.jsonl", tmp_path)
    found = imagenet.training_run.read_run(tmp_path / "checkpoint.pt")
    assert found.epoch == 2 and found.record["step"] == found.step


def test_the_training_is_known_without_its_record(imagenet, exported, tmp_path):
    """There may be no log, or an old one whose records have no options. An export has neither."""
    run, folder = exported
    content = load_checkpoint(run) | {"ema": {}, "optimizer": {}}
    torch.save(content, tmp_path / "checkpoint.pt")
    read_run = imagenet.training_run.read_run
    found = read_run(tmp_path / "checkpoint.pt")
    assert (found.epoch, found.averaged, found.record) == (2, False, None)
    record = {"epoch": 2, "step": found.step}
    (tmp_path / "log.jsonl").write_text(json.dumps(record) + "\n")
    assert read_run(tmp_path / "checkpoint.pt").record is None
    assert read_run(folder / "model.safetensors") is None


def test_a_finished_run_that_is_started_again_exports_the_same(imagenet, train, data, tmp_path):
    argv = command_line(data, tmp_path / "run", "--resume", "auto")
    folders = [tmp_path / "run" / "r18", tmp_path / "r18"]
    for folder in folders:
        assert train([*argv, "--export", str(folder)]) == 0
    assert sorted(os.listdir(folders[0])) == ["README.md", "config.json", "model.safetensors"]
    for name in ("README.md", "config.json"):
        assert (folders[0] / name).read_text() == (folders[1] / name).read_text()
    one, other = (
        imagenet.weights.read_checkpoint(folder / "model.safetensors") for folder in folders
    )
    assert one.metadata == other.metadata and one.state_dict.keys() == other.state_dict.keys()
    assert all(torch.equal(value, other.state_dict[name]) for name, value in one.state_dict.items())


def test_the_same_command_of_a_finished_run_leaves_its_folder(train, data, tmp_path, capsys):
    """As a cluster may start it again. A folder with other weights is refused."""
    argv = command_line(data, tmp_path / "run", "--resume", "auto")
    argv += ["--export", str(tmp_path / "r18"), "--epochs", "1"]
    assert train(argv) == 0
    (tmp_path / "r18" / "README.md").write_text("edited")
    assert train(argv) == 0
    assert "with the weights of this run; left as it is" in capsys.readouterr().out
    assert (tmp_path / "r18" / "README.md").read_text() == "edited"
    more = [*argv, "--epochs", "2"]
    assert "exists already" in error_of(train, capsys, more)  # before any further training
    assert len(log_records(tmp_path / "run")) == 1
    assert train([*more, "--export", str(tmp_path / "later")]) == 0
    assert "exists already" in error_of(train, capsys, more)
    (tmp_path / "r18" / "model.safetensors").unlink()
    assert "exists already" in error_of(train, capsys, more)


def test_the_same_command_of_a_finished_run_leaves_its_file(train, data, tmp_path, capsys):
    file = tmp_path / "r18.pth"
    argv = command_line(data, tmp_path / "run", "--epochs", "1", "--export", str(file))
    file.write_text("of another run")
    assert "exists already" in error_of(train, capsys, argv)
    file.unlink()
    argv += ["--resume", "auto"]
    assert train(argv) == 0
    before = file.stat().st_mtime_ns
    assert train(argv) == 0
    assert "with the weights of this run; left as it is" in capsys.readouterr().out
    assert file.stat().st_mtime_ns == before


def test_an_existing_folder_is_refused_before_training(train, data, tmp_path, capsys):
    (tmp_path / "there").mkdir()
    for export, message in (
        (tmp_path / "there", "exists already"),
        (tmp_path / "no" / "folder", "no such folder"),
        (tmp_path / "run", "the run writes in this folder"),
    ):
        argv = command_line(data, tmp_path / "run", "--export", str(export))
        assert message in error_of(train, capsys, argv)
    argv = command_line(data, tmp_path / "new" / "run", "--export", str(tmp_path / "new"))
    assert "the run writes in this folder" in error_of(train, capsys, argv)
    assert os.listdir(tmp_path) == ["there"]


def test_an_export_may_exist_only_if_its_run_may_have_finished(imagenet, tmp_path):
    """Anything else is refused when a run is resumed, too. Its folder need not exist yet."""
    run, file = tmp_path / "run", tmp_path / "a.pth"
    parse, refused = imagenet.train_options.parse, imagenet.command_line.UserError
    auto = ["DATA", "--save", str(run), "--resume", "auto", "--export"]
    parse([*auto, str(tmp_path / "x" / ".." / "run" / "a.pth")])
    file.touch()
    with pytest.raises(refused, match="exists already"):
        parse([*auto, str(file)])
    run.mkdir()
    (run / "checkpoint.pt").touch()
    parse([*auto, str(file)])
    with pytest.raises(refused, match="no such folder"):
        parse([*auto, str(tmp_path / "no" / "a.pth")])
    with pytest.raises(refused, match="exists already"):
        parse(["DATA", "--save", str(run), "--export", str(file)])


def test_a_folder_is_written_completely_or_not_at_all(imagenet, tmp_path, monkeypatch):
    network = imagenet.resnet.build("resnet18", branches=False, num_classes=2)
    metadata = imagenet.weights.Metadata("resnet18", ["cat", "dog"], 64)

    def fail(*arguments):
        raise OSError(28, "No space left on device")

    refused = imagenet.command_line.UserError
    for owner, name in (
        (imagenet.exports.json, "dumps"),
        (imagenet.weights.checkpoint, "write_atomically"),
    ):
        with monkeypatch.context() as patch, pytest.raises(refused, match="No space left") as error:
            patch.setattr(owner, name, fail)
            imagenet.exports.export(network, tmp_path / "a", metadata, "random")
        assert "\n" not in str(error.value) and os.listdir(tmp_path) == []
    (tmp_path / "a").mkdir()
    with pytest.raises(refused, match="exists already"):
        imagenet.exports.export(network, tmp_path / "a", metadata, "random")
    assert os.listdir(tmp_path / "a") == [] and os.listdir(tmp_path) == ["a"]


def test_names_that_are_not_utf_8_do_not_prevent_an_export(imagenet, tmp_path):
    """As Python reads them from a file system."""
    name = os.fsdecode(b"caf\xe9")
    network = imagenet.resnet.build("resnet18", branches=False, num_classes=2)
    metadata = imagenet.weights.Metadata("resnet18", [name, "ant"], 64)
    imagenet.exports.export(network, tmp_path / "a", metadata, f"`{name}`")
    assert "`caf\\udce9`" in (tmp_path / "a" / "README.md").read_text()
    loaded = imagenet.weights.read_checkpoint(tmp_path / "a" / "model.safetensors")
    assert loaded.metadata.class_names == [name, "ant"]


def test_what_a_folder_does_not_fit_is_refused(exported, main, data, tmp_path):
    run, folder = exported
    other = write_folders(tmp_path / "other", {"cat": 1, "fox": 1})
    bare = save_weights(
        tmp_path / "a.pth", timm.create_model("resnet18", num_classes=3).state_dict()
    )
    new = tmp_path / "new"
    for flags, message in (
        (("--model_path", folder, other), "does not know 1 class of the images, such as fox"),
        (("--model_path", bare, other), "2 classes for a network of 3 classes"),
        (("--model_path", folder, "-a", "resnet50", data), "of resnet18, not resnet50"),
        (("--model_path", run, "--export", folder), "exists already"),
        (("--model_path", run, "--export", new, "--image-size", 64), "training with 40 pixels"),
        (("--model_path", run, "--export", new, "--resize", "shorter-side"), "leave out --resize"),
        (("--model_path", tmp_path / "other", data), "the folder of a run or an export"),
    ):
        status, _, err = main(*flags)
        assert status == 2 and message in err and err.count("\n") == 1, err
    assert not new.exists()


def test_other_networks_are_exported_to_files_alone(imagenet, main, tmp_path):
    network = imagenet.pretrained.build_network("shufflenet_v2_x0_5", num_classes=3)
    path = save_weights(tmp_path / "a.pth", network.state_dict())
    flags = ("-a", "shufflenet_v2_x0_5", "--model_path", path, "--export")
    status, _, err = main(*flags, tmp_path / "folder")
    assert status == 2 and "give a file, such as folder.safetensors" in err
    assert main(*flags, tmp_path / "b.safetensors")[0] == 0


def test_exports_without_safetensors_are_refused_before_training(
    imagenet, data, tmp_path, monkeypatch
):
    monkeypatch.setattr(imagenet.export_path, "find_spec", lambda name: None)
    for name in ("a", "a.safetensors"):
        with pytest.raises(imagenet.command_line.UserError, match="pip install safetensors"):
            imagenet.train_options.parse([str(data), "--export", str(tmp_path / name)])
    imagenet.train_options.parse([str(data), "--export", str(tmp_path / "a.pth")])
