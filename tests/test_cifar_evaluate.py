"""wrn_DKS/main.py with a trained network: evaluation, predictions, export; options it records."""

import json
import shutil

import pytest
import torch
from cifar_runs import records
from synthetic import write_folders

NETWORK = "--depth 10 --width 0.25 --batch_size 8 --epochs 1".split()


@pytest.fixture(scope="module")
def main(wrn):
    """Call wrn_DKS/main.py with these options alone."""
    return lambda *words: wrn.main.main([*map(str, words)])


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    """A folder of images of two classes."""
    folder = tmp_path_factory.mktemp("images")
    write_folders(folder, {"cat": 4, "dog": 4}, "train")
    return write_folders(folder, {"cat": 2, "dog": 1}, "val")


@pytest.fixture(scope="module")
def folder_run(main, images, tmp_path_factory):
    """The folder of a plain network trained on the images, at another size than the default."""
    folder = tmp_path_factory.mktemp("run")
    words = ("--dataset", "folder", "--dataroot", images, "--image-size", 16, *NETWORK)
    assert main(*words, "--method", "baseline", "--dtype", "bfloat16", "--save", folder) == 0
    return folder


def test_evaluation_takes_network_and_data_from_the_run(main, folder_run, images, capsys):
    """The folder of a run means its checkpoint; --model_path is another name of --resume."""
    error = 100 - records(folder_run)[-1]["test_acc"]
    for flag, path in (("--resume", folder_run), ("--model_path", folder_run / "checkpoint.pt")):
        assert main("--evaluate", flag, path, "--dtype", "bfloat16") == 0
        out = capsys.readouterr().out
        assert f"{folder_run}/checkpoint.pt: WRN-10-0.25, trained for 1 epoch\n" in out
        assert f"device cpu, dtype bfloat16, 3 test images of {images}\n" in out
        assert f"test error of the backbone: {error:.2f} %" in out
        assert "note:" not in out and "training" not in out  # which has other costs
    assert main("--evaluate", "--resume", folder_run) == 0
    assert "dtype float32" in (out := capsys.readouterr().out)
    assert "note: it was trained with --dtype bfloat16" in out


def test_dataroot_can_be_given_or_is_the_default_one(main, folder_run, images, tmp_path, capsys):
    """The default one if that of the run does not exist any more."""
    moved = shutil.copytree(images, tmp_path / "data")
    assert main("--evaluate", "--resume", folder_run, "--dataroot", moved) == 0
    assert f"3 test images of {moved}\n" in capsys.readouterr().out
    content = torch.load(folder_run / "checkpoint.pt", weights_only=True)
    content["options"]["dataroot"] = str(tmp_path / "nowhere")
    torch.save(content, tmp_path / "x.pt")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path)
        assert main("--evaluate", "--resume", "x.pt") == 0
    assert "3 test images of data\n" in capsys.readouterr().out


def test_all_contradictions_are_named_at_once(main, folder_run, capsys):
    words = "--depth 16 --width 2 --dataset digits --image-size 8".split()
    assert main("--evaluate", "--resume", folder_run, *words) == 2
    error = capsys.readouterr().err
    for part in ("--depth 16 (it has 10)", "--width 2.0 (it has 0.25)",
                 "--dataset digits (it has folder)", "--image-size 8 (it has 16)"):  # fmt: skip
        assert part in error
    assert error.count("\n") == 1
    same = "--depth 10 --width 0.25 --dataset folder --image-size 16".split()
    assert main("--evaluate", "--resume", folder_run, *same) == 0


def test_export_of_a_finished_run_needs_no_data(main, wrn, folder_run, monkeypatch, tmp_path):
    monkeypatch.setattr(wrn.main, "load_dataset", None)
    before = sorted(folder_run.iterdir())
    for words in ((), NETWORK):
        exported = tmp_path / f"{len(words)}.pt"
        assert main("--resume", folder_run, "--export", exported, *words) == 0
        content = torch.load(exported, weights_only=True)
        assert (content["image_size"], content["dataset"]) == (16, "folder")
        assert (content["classes"], content["depth"]) == (["cat", "dog"], 10)
    assert sorted(folder_run.iterdir()) == before


def test_export_of_an_unfinished_run_first_finishes_it(cifar_main, tmp_path):
    words = ("--method", "baseline", "--save", tmp_path / "run")
    assert cifar_main("--epochs", 1, *words) == 0
    exported = tmp_path / "x.pt"
    words = ("--method", "baseline", "--epochs", 2, "--epoch_step", "[]", "--export", exported)
    assert cifar_main(*words, "--resume", tmp_path / "run") == 0
    assert len(records(tmp_path / "run")) == 2 and exported.exists()


def test_the_same_command_of_a_finished_run_keeps_its_export(cifar_main, tmp_path, capsys):
    """As a cluster may start it again. A file with other weights is refused, before training."""
    exported = tmp_path / "x.pt"
    words = ("--method", "baseline", "--epoch_step", "[]", "--resume", "auto", "--export", exported)
    words = (*words, "--save", tmp_path / "run", "--epochs")
    assert cifar_main(*words, 1) == 0
    before = exported.stat()
    assert cifar_main(*words, 1) == 0
    assert "with the weights of this run; left as it is" in capsys.readouterr().out
    assert exported.stat().st_mtime_ns == before.st_mtime_ns
    assert cifar_main(*words, 2) == 2
    assert "x.pt: exists already; choose another name" in capsys.readouterr().err
    assert len(records(tmp_path / "run")) == 1
    content = torch.load(exported, weights_only=True)
    next(iter(content["model"].values())).add_(1)
    torch.save(content, exported)
    for _ in range(2):
        assert cifar_main(*words, 1) == 2
        assert "x.pt: exists already; choose another name" in capsys.readouterr().err
        exported.write_text("something else")


def test_an_export_may_exist_only_if_its_run_may_have_finished(wrn, tmp_path):
    """However it is spelled, --json is another file."""
    run, file = tmp_path / "run", tmp_path / "x.pt"
    parse, refused = wrn.options.parse, wrn.command_line.UserError
    auto = ["--save", str(run), "--resume", "auto", "--export"]
    run.mkdir()
    file.touch()
    with pytest.raises(refused, match="exists already"):
        parse([*auto, str(file)])
    (run / "checkpoint.pt").touch()
    parse([*auto, str(file)])
    with pytest.raises(refused, match="the same file as --export"):
        parse([*auto, str(file), "--json", str(run / ".." / "x.pt")])


def test_exports_are_the_same_only_if_everything_agrees(wrn):
    same_content = wrn.run_state.same_content
    one = {"format": 1, "mean": [0.5], "model": {"a": torch.zeros(2)}}
    assert same_content(one | {"model": {"a": torch.zeros(2)}}, one)
    for other in (
        {},  # any other file
        one | {"mean": [0.4]},
        one | {"epoch": 1},
        one | {"model": {}},
        one | {"model": {"a": torch.ones(2)}},
        one | {"model": one["model"] | {"b": torch.zeros(2)}},
    ):
        assert not same_content(other, one)


def test_export_can_be_evaluated_without_other_options(
    main, cifar_main, cifar_run, tmp_path, capsys
):
    """Exports of older versions do not name their dataset."""
    exported = tmp_path / "x.pt"
    assert main("--resume", cifar_run, "--export", exported) == 0
    assert main("--evaluate", "--resume", exported) == 0
    error = 100 - records(cifar_run)[-1]["test_acc"]
    assert f"backbone: {error:.2f} %" in capsys.readouterr().out
    content = torch.load(exported, weights_only=True)
    del content["dataset"]
    torch.save(content, exported)
    assert cifar_main("--evaluate", "--resume", exported) == 0
    assert f"backbone: {error:.2f} %" in capsys.readouterr().out
    assert main("--evaluate", "--resume", exported) == 2
    assert "choose another dataset" in capsys.readouterr().err


@pytest.mark.parametrize("exported", [False, True])
def test_predictions_name_the_most_likely_classes(
    main, wrn, folder_run, images, tmp_path, capsys, exported
):
    path = folder_run
    if exported:
        path = tmp_path / "x.pt"
        assert main("--resume", folder_run, "--export", path) == 0
    paths = sorted(images.glob("val/*/*"))
    words = ("--dtype", "bfloat16", "--resume", path, "--json", tmp_path / "x.json")
    assert main("--predict", *paths, *words) == 0
    out = capsys.readouterr().out
    predictions = json.loads((tmp_path / "x.json").read_text())
    wrong = 0
    for image, prediction in zip(paths, predictions, strict=True):
        assert prediction["image"] == str(image)
        names = [each["name"] for each in prediction["classes"]]
        probabilities = [each["probability"] for each in prediction["classes"]]
        assert sorted(names) == ["cat", "dog"] and sum(probabilities) == pytest.approx(1)
        assert probabilities == sorted(probabilities, reverse=True)
        assert f"{image}\n  {100 * probabilities[0]:6.2f}%  {names[0]}\n" in out
        wrong += names[0] != image.parent.name
    test_error = 100 - records(folder_run)[-1]["test_acc"]
    assert 100 * wrong / len(paths) == pytest.approx(test_error)


def test_predictions_are_refused_without_class_names(main, images, tmp_path, capsys):
    """The released code's checkpoints have none; --dataset supplies them."""
    torch.save({"params": {}}, tmp_path / "x.pt7")
    (image, *_) = images.glob("val/*/*")
    assert main("--predict", image, "--resume", tmp_path / "x.pt7") == 2
    assert "not a checkpoint of the released code" in capsys.readouterr().err
    for words, message in (
        (["--predict", image, "--evaluate"], "can't be combined"),
        (["--predict", tmp_path / "nowhere.jpg"], "no such file"),
        (["--predict", image, "--json", image], "choose another name"),
    ):
        assert main(*words, "--resume", tmp_path / "x.pt7") == 2
        assert message in capsys.readouterr().err


def test_json_has_the_errors_of_every_classifier(main, cifar_run, cifar_main, tmp_path):
    last, path = records(cifar_run)[-1], tmp_path / "x.json"
    assert main("--evaluate", "--resume", cifar_run, "--json", path) == 0
    evaluated = json.loads(path.read_text())
    assert evaluated["classifiers"] == {
        "backbone": {"top1_error": 100 - last["test_acc"]},
        "shallow branch": {"top1_error": 100 - last["test_acc_ep1"]},
        "deep branch": {"top1_error": 100 - last["test_acc_ep2"]},
        "ensemble": {"top1_error": last["test_error_ensemble"]},
    }
    assert evaluated["top1_error"] == 100 - last["test_acc"] and evaluated["images"] == 360
    assert evaluated["checkpoint"] == str(cifar_run / "checkpoint.pt")
    assert (evaluated["dtype"], evaluated["device"]) == ("float32", "cpu")
    assert evaluated["torch"] == torch.__version__
    assert evaluated["images_per_s"] == pytest.approx(360 / evaluated["seconds"])
    words = ("--epochs", 4, "--epoch_step", "[3]", "--save", cifar_run, "--resume", "auto")
    assert cifar_main(*words, "--json", path) == 0
    trained = json.loads(path.read_text())
    assert trained["classifiers"] == evaluated["classifiers"]
    assert trained["checkpoint"] == evaluated["checkpoint"]


def test_json_can_not_overwrite_files_of_the_run(main, cifar_main, cifar_run, capsys):
    path = cifar_run / "checkpoint.pt"
    assert main("--evaluate", "--resume", cifar_run, "--json", path) == 2
    words = ("--epochs", 4, "--epoch_step", "[3]", "--save", cifar_run, "--resume", "auto")
    for name in ("checkpoint.pt", "log.txt"):
        assert cifar_main(*words, "--json", cifar_run / name) == 2
    assert capsys.readouterr().err.count("choose another name") == 3


def test_json_can_not_overwrite_the_log_of_an_evaluated_run(main, folder_run, capsys):
    before = (folder_run / "log.txt").read_bytes()
    assert main("--evaluate", "--resume", folder_run, "--json", folder_run / "log.txt") == 2
    assert "a file of a run" in capsys.readouterr().err
    assert (folder_run / "log.txt").read_bytes() == before


def test_json_has_the_options_of_the_test_only(main, folder_run, tmp_path):
    """Options that only the training has are not those of this command line."""
    assert main("--evaluate", "--resume", folder_run, "--json", tmp_path / "x.json") == 0
    options = json.loads((tmp_path / "x.json").read_text())["options"]
    assert options["depth"] == 10 and options["image_size"] == 16
    assert not {"method", "epoch_step", "lr"} & options.keys()


def test_export_refuses_options_that_contradict_the_run(main, folder_run, tmp_path, capsys):
    words = ("--resume", folder_run, "--export", tmp_path / "x.pt")
    assert main(*words, "--method", "ds", "--lr", "7") == 2
    error = capsys.readouterr().err
    assert "--method ds (was baseline)" in error and "--lr 7.0 (was 0.1)" in error
    assert main(*words, "--json", tmp_path / "x.json") == 2
    assert "add --evaluate" in capsys.readouterr().err
    assert not (tmp_path / "x.pt").exists()


def test_an_exported_backbone_can_not_be_trained(main, folder_run, tmp_path, capsys):
    exported = tmp_path / "x.pt"
    assert main("--resume", folder_run, "--export", exported) == 0
    words = ("--epochs", 3, "--export", tmp_path / "y.pt", "--save", tmp_path / "run")
    assert main("--resume", exported, *words) == 2
    assert "exported backbone" in capsys.readouterr().err


def test_a_width_with_the_same_channels_agrees_with_the_checkpoint(wrn):
    agree = wrn.options.agree
    assert agree("width", 0.3, 19 / 64) and not agree("width", 0.3, 0.5)
    assert not agree("depth", 10, 16)


def test_the_ensemble_averages_probabilities_not_logits(wrn, monkeypatch):
    """The mean of these logits is largest for class 0, that of the probabilities for class 1."""
    logits = tuple(torch.tensor([row]) for row in ([30.0, 0, 0], [0, 6.0, 0], [0, 6.0, 0]))
    trainer = wrn.engine.Trainer(
        wrn.wide_resnet.WideResNet(10, 0.25, 3),
        wrn.synergy.SynergyLoss(),
        wrn.schedule.StepSchedule(0.1, (), 0.2),
        0.0,
        torch.float32,
        torch.device("cpu"),
    )
    monkeypatch.setattr(trainer, "_forward", lambda model, batch: logits)
    split = wrn.data.Split(torch.zeros(1, 3, 8, 8, dtype=torch.uint8), torch.tensor([1]))
    info = wrn.data.DatasetInfo(["a", "b", "c"], [0.0] * 3, [1.0] * 3)
    result = trainer.evaluate(wrn.loader.Batches(split, info, 1, torch.device("cpu")))
    assert result.errors == [100, 0, 0] and result.ensemble_error == 0
