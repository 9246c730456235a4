"""wrn_DKS/main.py: training, testing, evaluation, export and wrong input, on the digits."""

import pytest
import torch
from cifar_runs import assert_same_run, assert_same_weights, records, results, weights


def test_log_has_the_released_keys_and_the_terms_of_the_loss(cifar_run):
    last = records(cifar_run)[-1]
    released = (
        "train_loss train_acc test_loss test_acc train_acc_ep1 train_acc_ep2 test_acc_ep1 "
        "test_acc_ep2 epoch num_classes n_parameters train_time test_time depth width dataset lr"
    )
    assert set(released.split()) <= last.keys()
    assert (last["epoch"], last["num_classes"], last["learning_rate"]) == (4, 10, 0.1 * 0.2)
    terms = last["train_loss_backbone"] + last["train_loss_branches"] + last["train_loss_synergy"]
    assert terms == pytest.approx(last["train_loss"], rel=1e-5)
    assert last["n_parameters"] == sum(
        value.numel()
        for name, value in weights(cifar_run).items()
        if "running" not in name and "num_batches" not in name
    )
    assert any(path.name.startswith("events.out.tfevents") for path in cifar_run.iterdir())


@pytest.mark.parametrize(
    ("method", "losses", "errors"),
    [
        ("baseline", {"total", "backbone"}, {"backbone"}),
        ("ds", {"total", "backbone", "branches"}, {"backbone", "shallow branch", "deep branch"}),
        (
            "dks",
            {"total", "backbone", "branches", "synergy"},
            {"backbone", "shallow branch", "deep branch"},
        ),
    ],
)
def test_tensorboard_has_no_losses_that_the_method_lacks(wrn, method, losses, errors):
    count = len(errors)
    result = wrn.engine.EpochResult(
        dict.fromkeys(wrn.synergy.Losses._fields, 1.0),
        [50.0] * count,
        1,
        1.0,
        40.0,
        [[0.0] * count] * count,
    )
    tags = wrn.epoch_log.tensorboard_scalars({"train": result, "test": result}, method).keys()
    for part in ("train", "test"):
        assert {tag.split("/")[1] for tag in tags if tag.startswith(f"loss {part}/")} == losses
    found = {tag.split("/")[1] for tag in tags if tag.startswith("error test/")}
    assert found == errors | {"ensemble"}


def test_tensorboard_has_the_numbers_of_the_log(cifar_run):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events, log = EventAccumulator(str(cifar_run)).Reload(), records(cifar_run)
    for tag, value in (
        ("loss train/total", lambda record: record["train_loss"]),
        ("loss test/synergy", lambda record: record["test_loss_synergy"]),
        ("error train/backbone", lambda record: 100 - record["train_acc"]),
        ("error test/shallow branch", lambda record: 100 - record["test_acc_ep1"]),
        ("error test/deep branch", lambda record: 100 - record["test_acc_ep2"]),
        ("error test/ensemble", lambda record: record["test_error_ensemble"]),
        (
            "divergence test/backbone to deep branch",
            lambda record: record["test_divergences"][0][2],
        ),
        ("learning rate", lambda record: record["learning_rate"]),
    ):
        points = events.Scalars(tag)
        assert [point.step for point in points] == [1, 2, 3, 4], tag
        assert [point.value for point in points] == pytest.approx(list(map(value, log))), tag


def test_training_loss_decreases(cifar_run):
    assert records(cifar_run)[-1]["train_loss"] < 0.95 * records(cifar_run)[0]["train_loss"]


def test_test_every_only_omits_tests(cifar_main, cifar_run, tmp_path):
    """The last epoch of each part of the run is tested too."""
    folder = tmp_path / "run"
    words = ("--epoch_step", "[3]", "--save", folder, "--test_every", 3)
    assert cifar_main("--epochs", 2, *words) == 0
    assert cifar_main("--epochs", 4, *words, "--resume", "auto") == 0
    assert ["test_acc" in record for record in records(folder)] == [False, True, True, True]
    for actual, expected in zip(results(folder), results(cifar_run), strict=True):
        assert (actual.pop("test_every"), expected.pop("test_every")) == (3, 1)
        if "test_acc" not in actual:
            expected = {k: v for k, v in expected.items() if not k.startswith("test_")}
        assert actual == expected
    assert_same_weights(folder, cifar_run)


@pytest.mark.parametrize("method", ["baseline", "ds"])
def test_baseline_and_ds_have_no_synergy_loss(cifar_main, tmp_path, method, capsys):
    assert cifar_main("--epochs", 1, "--method", method, "--save", tmp_path / "x") == 0
    (record,) = records(tmp_path / "x")
    assert record["train_loss_synergy"] == 0
    assert (record["train_acc_ep1"] is None) == (method == "baseline")
    assert ("of the ensemble" in capsys.readouterr().out) == (method == "ds")


def test_evaluating_a_checkpoint_and_its_export_prints_the_logged_errors(
    cifar_main, cifar_run, tmp_path, capsys
):
    exported = tmp_path / "backbone.pt"
    path = cifar_run / "checkpoint.pt"
    assert cifar_main("--evaluate", "--resume", path, "--export", exported) == 0
    out = capsys.readouterr().out
    last = records(cifar_run)[-1]
    for name, error in (
        ("backbone", 100 - last["test_acc"]),
        ("shallow branch", 100 - last["test_acc_ep1"]),
        ("deep branch", 100 - last["test_acc_ep2"]),
        ("ensemble", last["test_error_ensemble"]),
    ):
        assert f"{name}: {error:.2f} %" in out
    content = torch.load(exported, weights_only=True)
    assert (content["depth"], content["width"]) == (10, 0.25)
    assert content["classes"] == list("0123456789") and len(content["mean"]) == 3
    assert not any("branches" in name for name in content["model"])
    keys = "format depth width image_size classes mean std model dataset"
    assert content.keys() == set(keys.split())  # as documented in run_state.py
    assert cifar_main("--evaluate", "--resume", exported) == 0
    out = capsys.readouterr().out
    assert f"backbone: {100 - last['test_acc']:.2f} %" in out and "shallow" not in out
    assert cifar_main("--resume", exported, "--save", tmp_path / "x") == 2


def test_default_folders_are_numbered(cifar_main, monkeypatch, tmp_path, capsys):
    monkeypatch.chdir(tmp_path)
    for name in ("wrn-10-0.25-dks-seed5", "wrn-10-0.25-dks-seed5-2"):
        assert cifar_main("--epochs", 1, "--seed", 5) == 0
        assert f"logs/{name}\n" in capsys.readouterr().out
        assert (tmp_path / "logs" / name / "checkpoint.pt").exists()


def test_dropout_depends_only_on_the_seed(cifar_main, tmp_path):
    for name in ("a", "b"):
        assert cifar_main("--epochs", 1, "--dropout", "--save", tmp_path / name) == 0
        torch.rand(3)
    assert_same_run(tmp_path / "a", tmp_path / "b")


def test_bfloat16_trains_and_resumes(cifar_main, tmp_path):
    words = ("--dtype", "bfloat16", "--save", tmp_path / "x")
    assert cifar_main("--epochs", 1, *words) == 0
    assert cifar_main("--epochs", 2, *words, "--resume", "auto") == 0
    assert records(tmp_path / "x")[-1]["train_loss"] < 20


def test_nonfinite_loss_stops_the_run_at_once(wrn, cifar_main, monkeypatch, tmp_path, capsys):
    """On the CPU; on a GPU within 50 steps."""
    folder, steps, train_step = tmp_path / "x", [], wrn.engine.Trainer.train_step

    def count(trainer, batch):
        steps.append(1)
        return train_step(trainer, batch)

    monkeypatch.setattr(wrn.engine.Trainer, "train_step", count)
    words = ("--epochs", 1, "--lr", "1e30", "--batch_size", 64)
    assert cifar_main(*words, "--save", folder) == 2
    error = capsys.readouterr().err
    assert f"not finite at step {len(steps)} of epoch 1" in error and len(steps) < 5
    assert error.count("\n") == 1
    assert not (folder / "checkpoint.pt").exists()


def test_nonfinite_weights_are_not_saved(wrn, cifar_main, monkeypatch, tmp_path, capsys):
    """The last step of an epoch can break the weights although its loss was finite."""
    train_epoch, folder = wrn.engine.Trainer.train_epoch, tmp_path / "x"

    def break_second_epoch(trainer, batches, epoch, *others):
        result = train_epoch(trainer, batches, epoch, *others)
        if epoch == 1:
            trainer.model.classifier.fc.bias.data.fill_(float("inf"))
        return result

    monkeypatch.setattr(wrn.engine.Trainer, "train_epoch", break_second_epoch)
    assert cifar_main("--epochs", 3, "--save", folder) == 2
    assert "after epoch 2" in capsys.readouterr().err
    assert torch.load(folder / "checkpoint.pt", weights_only=True)["epoch"] == 1


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("--depth 12", "6n + 4"),
        ("--width 0.01", "expected at least"),
        ("--epoch_step 60", "list of epochs"),
        ("--epoch_step [a]", "list of epochs"),
        ("--ngpu 4", "torchrun --nproc_per_node 4"),
        ("--image-size 16", "8 pixels"),
        ("--dataset folder --dataroot /nonexistent", "no such folder"),
        ("--dataset folder --dataroot /nonexistent --save a/b", "no such folder"),
        ("--evaluate", "--resume FILE"),
        ("--resume auto", "--save DIR"),
        ("--resume nowhere/x.pt", "no such file"),
        ("--device cuda:77", "--device cuda:77"),
        ("--device nonsense", "--device nonsense"),
        ("--device cpu --gpu_id 0", "not allowed with"),
        ("--epoch_step [2] --lr-milestones 1", "not allowed with"),
        ("--lr-milestones [x]", "59,119,159"),
        ("--resume x --model_path y", "not allowed with"),
        ("--predict nowhere.jpg --resume auto", "requires --resume FILE"),
        ("--json /nonexistent/x.json", "create it"),
        ("--export /nonexistent/x.pt", "create it"),
        ("--save /dev/null/x", "can't be written"),
        ("--method dsk", "invalid choice"),
        ("--seed -1", "whole number"),
    ],
)
def test_wrong_input_is_a_one_line_error(cifar_main, words, message, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert cifar_main(*words.split()) == 2
    error = capsys.readouterr().err
    assert message in error and error.startswith("error: ") and error.count("\n") == 1
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("save", [(), ("--save", "logs/wrn-10-0.25-dks-seed5")])
def test_export_can_not_overwrite_files_of_the_run(cifar_main, tmp_path, monkeypatch, capsys, save):
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "logs/wrn-10-0.25-dks-seed5"
    folder.mkdir(parents=True)
    for name in ("checkpoint.pt", "log.txt", "lock"):
        assert cifar_main("--epochs", 1, "--seed", 5, *save, "--export", folder / name) == 2
        assert "choose another name" in capsys.readouterr().err
    assert not list(folder.iterdir())


def test_a_run_does_not_overwrite_another_one(cifar_main, cifar_run, tmp_path, capsys):
    before = {path: path.read_bytes() for path in cifar_run.iterdir()}
    other = tmp_path / "x"
    assert cifar_main("--epochs", 1, "--save", other) == 0
    assert cifar_main("--epochs", 4, "--save", cifar_run) == 2
    other_checkpoint = other / "checkpoint.pt"
    assert cifar_main("--epochs", 4, "--save", cifar_run, "--resume", other_checkpoint) == 2
    assert capsys.readouterr().err.count("already contains a run") == 2
    assert before == {path: path.read_bytes() for path in cifar_run.iterdir()}


def test_a_third_branch_is_trained_and_reported(wrn, cifar_main, monkeypatch, tmp_path, capsys):
    """Adding a row to the table of branches is all it takes."""
    specs = wrn.wide_resnet.branch_specs(10, 0.25)
    more = (*specs, specs[1]._replace(stages=((12, 1),)))
    monkeypatch.setattr(wrn.wide_resnet, "branch_specs", lambda depth, width: more)
    assert cifar_main("--epochs", 1, "--save", tmp_path / "x") == 0
    out = capsys.readouterr().out
    assert "test error of the branch 3: " in out and "shallow" not in out
    assert wrn.report.main([str(tmp_path / "x")]) == 0
    assert "| branch 3" in capsys.readouterr().out
