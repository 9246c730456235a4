"""wrn_DKS/main.py from end to end, on the digits: train, stop, resume, evaluate, export, refuse."""

import json
import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import reference
import torch

SMALL = "--dataset digits --depth 10 --width 0.25 --batch_size 256".split()
CHANGING = {
    "train_time", "test_time", "train_images_per_s", "peak_memory_mib", "resume", "save", "epochs"
}  # fmt: skip


@pytest.fixture(scope="module")
def main(wrn):
    """Runs the command line with the small network's options before the others."""
    return lambda *words: wrn.main.main([*SMALL, *map(str, words)])


@pytest.fixture(scope="module")
def run(main, tmp_path_factory):
    """A run of four epochs of DKS, never stopped."""
    folder = tmp_path_factory.mktemp("run")
    assert main("--epochs", 4, "--epoch_step", "[3]", "--save", folder) == 0
    return folder


def records(folder):
    lines = (folder / "log.txt").read_text().splitlines()
    assert all(line.startswith("json_stats: ") for line in lines)
    return [json.loads(line.removeprefix("json_stats: ")) for line in lines]


def without_times(folder):
    return [{k: v for k, v in record.items() if k not in CHANGING} for record in records(folder)]


def weights(folder):
    return torch.load(folder / "checkpoint.pt", weights_only=True)["model"]


def assert_same_run(folder, other):
    assert without_times(folder) == without_times(other)
    ours, theirs = weights(folder), weights(other)
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


def test_log_and_events(run):
    last = records(run)[-1]
    released = (
        "train_loss train_acc test_loss test_acc train_acc_ep1 train_acc_ep2 test_acc_ep1 "
        "test_acc_ep2 epoch num_classes n_parameters train_time test_time depth width dataset lr"
    )
    assert set(released.split()) <= last.keys()
    assert (last["epoch"], last["num_classes"], last["learning_rate"]) == (4, 10, 0.1 * 0.2)
    parts = last["train_loss_backbone"] + last["train_loss_branches"] + last["train_loss_synergy"]
    assert parts == pytest.approx(last["train_loss"], rel=1e-5)
    assert last["n_parameters"] == sum(
        v.numel() for k, v in weights(run).items() if "running" not in k and "num_b" not in k
    )
    assert any(path.name.startswith("events.out.tfevents") for path in run.iterdir())


def test_testing_seldom_changes_nothing_else(main, run, tmp_path):
    """Tested are every third epoch and the last: of the part that is resumed, and of the whole."""
    folder = tmp_path / "seldom"
    words = ("--epoch_step", "[3]", "--save", folder, "--test_every", 3)
    assert main("--epochs", 2, *words) == 0
    assert main("--epochs", 4, *words, "--resume", "auto") == 0
    assert ["test_acc" in record for record in records(folder)] == [False, True, True, True]
    for record, full in zip(without_times(folder), without_times(run), strict=True):
        assert (record.pop("test_every"), full.pop("test_every")) == (3, 1)
        if "test_acc" not in record:
            full = {key: value for key, value in full.items() if not key.startswith("test_")}
        assert record == full
    ours, theirs = weights(folder), weights(run)
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


def test_it_learns(run):
    assert records(run)[-1]["train_loss"] < 0.95 * records(run)[0]["train_loss"]


@pytest.mark.parametrize("method", ["baseline", "ds"])
def test_other_methods(main, tmp_path, method, capsys):
    assert main("--epochs", 1, "--method", method, "--save", tmp_path / "x") == 0
    (record,) = records(tmp_path / "x")
    assert record["train_loss_synergy"] == 0
    assert (record["train_acc_ep1"] is None) == (method == "baseline")
    lines = capsys.readouterr().out
    assert ("of the ensemble" in lines) == (method == "ds")
    assert "77,850" not in lines and "multiply-adds an image" in lines


def test_stopped_at_every_epoch_and_resumed(wrn, main, run, monkeypatch, tmp_path, capsys):
    """Before and after the milestone: the same weights and log as the run never stopped."""
    folder, evaluate = tmp_path / "x", wrn.engine.Trainer.evaluate
    options = ("--epochs", 4, "--epoch_step", "[3]", "--save", folder, "--resume", "auto")
    for finished in range(4):
        calls = iter(range(2))

        def stop_in_second_epoch(trainer, batches, calls=calls):
            if next(calls):
                raise wrn.command_line.Interrupted(signal.SIGTERM)
            return evaluate(trainer, batches)

        monkeypatch.setattr(wrn.engine.Trainer, "evaluate", stop_in_second_epoch)
        assert main(*options) == (143 if finished < 3 else 0)
        assert len(records(folder)) == finished + 1
    assert_same_run(folder, run)
    assert "--resume auto" in capsys.readouterr().out


def test_a_log_ahead_of_its_checkpoint_is_cut(main, run, tmp_path):
    """As when it is killed between the two: the epoch is repeated and logged once."""
    folder = tmp_path / "x"
    assert main("--epochs", 2, "--epoch_step", "[3]", "--save", folder) == 0
    with open(folder / "log.txt", "a") as log:
        log.write((run / "log.txt").read_text().splitlines()[2] + "\njson_stats: {half a li")
    more = ("--epochs", 4, "--epoch_step", "[3]", "--resume", folder / "checkpoint.pt")
    assert main(*more) == 0
    assert_same_run(folder, run)


def test_killed_and_resumed(run, wrn, tmp_path):
    """SIGKILL at some moment of a process of its own."""
    words = [*SMALL, "--epochs", "4", "--epoch_step", "[3]", "--save", str(tmp_path)]
    command = [sys.executable, "main.py", *words, "--resume", "auto"]
    environment = {**os.environ, "OMP_NUM_THREADS": str(torch.get_num_threads())}
    process = subprocess.Popen(command, cwd=wrn.path, env=environment)
    while not (tmp_path / "log.txt").exists():
        assert process.poll() is None
        time.sleep(0.01)
    process.kill()
    process.wait()
    done = subprocess.run(command, cwd=wrn.path, env=environment, check=True, capture_output=True)
    assert b"test error of the backbone" in done.stdout
    assert_same_run(tmp_path, run)


@pytest.mark.parametrize(("name", "status"), [("SIGINT", 130), ("SIGTERM", 143)])
def test_signals_end_it_cleanly(wrn, tmp_path, name, status):
    words = [*SMALL, "--epochs", "10000", "--save", str(tmp_path)]
    process = subprocess.Popen(
        [sys.executable, "main.py", *words], cwd=wrn.path, stdout=-1, stderr=-1, text=True
    )
    while not (tmp_path / "checkpoint.pt").exists():
        assert process.poll() is None
        time.sleep(0.01)
    process.send_signal(getattr(signal, name))
    out, errors = process.communicate(timeout=60)
    assert process.returncode == status
    assert "--resume auto" in out and errors == f"stopped by {name}\n"
    assert torch.load(tmp_path / "checkpoint.pt", weights_only=True)["epoch"] >= 1


def test_a_full_run_can_be_extended_or_shown_again(main, run, capsys):
    assert main("--epochs", 4, "--epoch_step", "[3]", "--save", run, "--resume", "auto") == 0
    error = 100 - records(run)[-1]["test_acc"]
    assert f"test error of the backbone: {error:.2f} %" in capsys.readouterr().out
    assert len(records(run)) == 4


def test_evaluate_and_export(main, run, tmp_path, capsys):
    exported = tmp_path / "backbone.pt"
    assert main("--evaluate", "--resume", run / "checkpoint.pt", "--export", exported) == 0
    lines = capsys.readouterr().out
    last = records(run)[-1]
    for name, error in (
        ("backbone", 100 - last["test_acc"]),
        ("shallow branch", 100 - last["test_acc_ep1"]),
        ("deep branch", 100 - last["test_acc_ep2"]),
        ("ensemble", last["test_error_ensemble"]),
    ):
        assert f"{name}: {error:.2f} %" in lines
    content = torch.load(exported, weights_only=True)
    assert (content["depth"], content["width"]) == (10, 0.25)
    assert content["classes"] == list("0123456789") and len(content["mean"]) == 3
    assert not any("branches" in name for name in content["model"])
    assert main("--evaluate", "--resume", exported) == 0
    lines = capsys.readouterr().out
    assert f"backbone: {100 - last['test_acc']:.2f} %" in lines and "shallow" not in lines
    assert main("--resume", exported, "--save", tmp_path / "x") == 2


def test_default_folder_is_numbered(wrn, main, monkeypatch, tmp_path, capsys):
    monkeypatch.chdir(tmp_path)
    for name in ("wrn-10-0.25-dks-seed5", "wrn-10-0.25-dks-seed5-2"):
        assert main("--epochs", 1, "--seed", 5) == 0
        assert f"logs/{name}\n" in capsys.readouterr().out
        assert (tmp_path / "logs" / name / "checkpoint.pt").exists()


def test_dropout_depends_on_the_seed_alone(main, tmp_path):
    for name in ("a", "b"):
        assert main("--epochs", 1, "--dropout", "--save", tmp_path / name) == 0
        torch.rand(3)
    assert_same_run(tmp_path / "a", tmp_path / "b")


@pytest.mark.parametrize("dtype", ["bfloat16", "half"])
def test_other_number_types(main, tmp_path, dtype):
    assert main("--epochs", 1, "--dtype", dtype, "--save", tmp_path / "x") == 0
    full = dtype.replace("half", "float16")
    assert main("--epochs", 2, "--dtype", full, "--save", tmp_path / "x", "--resume", "auto") == 0
    assert records(tmp_path / "x")[-1]["train_loss"] < 20


def test_a_loss_that_is_not_finite_stops_the_run(main, run, tmp_path, capsys):
    folder = tmp_path / "x"
    assert main("--epochs", 1, "--lr", "1e30", "--save", folder) == 2
    error = capsys.readouterr().err
    assert "not finite since step" in error and "of epoch 1" in error and error.count("\n") == 1
    assert not (folder / "checkpoint.pt").exists()


def test_a_network_that_is_not_finite_is_not_saved(wrn, main, monkeypatch, tmp_path, capsys):
    """As when the epoch's last step breaks it, after the loss was seen."""
    train_epoch, folder = wrn.engine.Trainer.train_epoch, tmp_path / "x"

    def breaks_in_second_epoch(trainer, batches, epoch, *others):
        trained = train_epoch(trainer, batches, epoch, *others)
        if epoch == 1:
            trainer.model.classifier.fc.bias.data.fill_(float("inf"))
        return trained

    monkeypatch.setattr(wrn.engine.Trainer, "train_epoch", breaks_in_second_epoch)
    assert main("--epochs", 3, "--save", folder) == 2
    assert "after epoch 2 classifier.fc.bias" in capsys.readouterr().err
    assert torch.load(folder / "checkpoint.pt", weights_only=True)["epoch"] == 1


@pytest.mark.parametrize(
    ("words", "says"),
    [
        ("--depth 12", "6n + 4"),
        ("--width 0.01", "no channel"),
        ("--epoch_step 60", "list of epochs"),
        ("--epoch_step [a]", "list of epochs"),
        ("--ngpu 4", "torchrun --nproc_per_node 4"),
        ("--image-size 16", "8 pixels only"),
        ("--dataset folder --dataroot /nonexistent", "no such folder"),
        ("--evaluate", "--resume FILE"),
        ("--resume auto", "--save DIR"),
        ("--resume nowhere/x.pt", "no such file"),
        ("--device cuda:77", "--device cuda:77"),
        ("--device nonsense", "--device nonsense"),
        ("--device cpu --gpu_id 0", "both choose"),
        ("--export /nonexistent/x.pt", "make it"),
        ("--save /dev/null/x", "can't be written"),
        ("--method dsk", "invalid choice"),
        ("--seed -1", "whole number"),
    ],
)
def test_bad_input(main, words, says, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(*words.split()) == 2
    error = capsys.readouterr().err
    assert says in error and error.startswith("error: ") and error.count("\n") == 1
    assert not list(tmp_path.rglob("checkpoint.pt")) and not (tmp_path / "nowhere").exists()


@pytest.mark.parametrize("save", [(), ("--save", "logs/wrn-10-0.25-dks-seed5")])
def test_the_export_is_no_file_of_the_run(main, tmp_path, monkeypatch, capsys, save):
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "logs/wrn-10-0.25-dks-seed5"
    folder.mkdir(parents=True)
    for name in ("checkpoint.pt", "log.txt", "lock"):
        assert main("--epochs", 1, "--seed", 5, *save, "--export", folder / name) == 2
        assert "own file" in capsys.readouterr().err
    assert not list(folder.iterdir())


def test_stopped_before_anything_is_saved(wrn, main, tmp_path, monkeypatch, capsys):
    """--resume auto would start from nothing what was started from a file."""

    def stop(trainer, *args):
        raise wrn.command_line.Interrupted(signal.SIGTERM)

    monkeypatch.setattr(wrn.engine.Trainer, "train_epoch", stop)
    assert main("--epochs", 1, "--save", tmp_path / "x") == 143
    assert capsys.readouterr().out.endswith("to continue, run the same command again\n")


def test_nothing_is_overwritten(main, run, tmp_path, capsys):
    before = {path: path.read_bytes() for path in run.iterdir()}
    other = tmp_path / "x"
    assert main("--epochs", 1, "--save", other) == 0
    assert main("--epochs", 4, "--save", run) == 2
    assert main("--epochs", 4, "--save", run, "--resume", other / "checkpoint.pt") == 2
    assert main("--lr", 0.2, "--method", "ds", "--save", run, "--resume", "auto") == 2
    errors = capsys.readouterr().err
    assert errors.count("holds a run") == 2 and "--lr 0.2 (was 0.1)" in errors
    assert main("--depth", 16, "--evaluate", "--resume", run / "checkpoint.pt") == 2
    assert "give --depth 10" in capsys.readouterr().err
    assert before == {path: path.read_bytes() for path in run.iterdir()}


def test_a_damaged_checkpoint_is_refused(main, run, tmp_path, capsys):
    content = torch.load(run / "checkpoint.pt", weights_only=True)
    damages = {
        "format": lambda c: c.update(format=99),
        "classes": lambda c: c.update(classes=[1, 2]),
        "mean": lambda c: c.update(mean=[float("nan")] * 3),
        "epoch": lambda c: c.update(epoch=-1),
        "optimizer": lambda c: c.update(optimizer={}),
        "options": lambda c: c.pop("options"),
        "option": lambda c: c["options"].update(surplus=1),
        "key": lambda c: c.update(surplus=1),
        "model": lambda c: c["model"].popitem(),
    }
    for name, damage in damages.items():
        damaged = {**content, "model": dict(content["model"])}
        damage(damaged)
        path = tmp_path / f"{name}.pt"
        torch.save(damaged, path)
        words = ("--epochs", 4, "--epoch_step", "[3]", "--save", tmp_path / "s", "--resume", path)
        assert main(*words) == 2, name
        assert capsys.readouterr().err.count("\n") == 1
    assert not (tmp_path / "s" / "checkpoint.pt").exists()


@pytest.fixture(scope="module")
def legacy(tmp_path_factory):
    """A checkpoint as the released script saves it, in the form of 2019, from the formula."""
    path = tmp_path_factory.mktemp("legacy") / "model.pt7"
    with np.load(reference.FILE) as file:
        params = reference.parameters(file)
    trainable = [name for name in params if "running" not in name]
    keys = [id(params[name]) for name in trainable]  # as torch had them before 1.5
    momentum = {
        key: {"momentum_buffer": numbered(params[name], i)}
        for i, (key, name) in enumerate(zip(keys, trainable, strict=True))
    }
    group = {"lr": 0.1, "momentum": 0.9, "dampening": 0, "weight_decay": 5e-4, "nesterov": False}
    optimizer = {"state": momentum, "param_groups": [{**group, "params": keys}]}
    content = {"params": params, "epoch": 3, "optimizer": optimizer}
    torch.save(content, path, _use_new_zipfile_serialization=False)
    return path


def numbered(tensor, number):
    """A tensor of that shape in which every element tells its place, in the tensor `number`."""
    return torch.arange(float(tensor.numel())).view(tensor.shape) / 1e6 + number


def write_hundred_classes(root):
    from synthetic import write_folders

    names = {f"c{i:02}": 1 for i in range(100)}
    write_folders(root, names, "train")
    return write_folders(root, names, "test")


def test_released_checkpoints_are_evaluated_exported_and_resumed(wrn, legacy, tmp_path, capsys):
    root = write_hundred_classes(tmp_path / "images")
    words = ["--dataset", "folder", "--dataroot", str(root), "--depth", "16", "--width", "1"]
    exported, folder = tmp_path / "x.pt", tmp_path / "run"
    evaluate = [*words, "--evaluate", "--resume", str(legacy), "--export", str(exported)]
    assert wrn.main.main(evaluate) == 0
    assert "shallow branch" in capsys.readouterr().out
    assert wrn.main.main([*words, "--evaluate", "--resume", str(exported)]) == 0
    go_on = [*words, "--epochs", "4", "--save", str(folder), "--resume", str(legacy)]
    assert wrn.main.main(go_on) == 0
    assert [record["epoch"] for record in records(folder)] == [4]
    wrong = [*words, "--depth", "22", "--evaluate", "--resume", str(legacy)]
    assert wrn.main.main(wrong) == 2
    assert "of another network" in capsys.readouterr().err


def test_released_optimizer_follows_its_parameters(wrn, legacy):
    """Entry i is the i-th trainable of the release's list, in another order than ours."""
    content = wrn.checkpoint.load(legacy)
    assert_momentum_follows(wrn, content)
    optimizer = content["optimizer"]
    keys = optimizer["param_groups"][0]["params"]
    assert min(keys) > 84  # ids; and now as torch has them since 1.5
    optimizer["state"] = {i: optimizer["state"][key] for i, key in enumerate(keys)}
    optimizer["param_groups"][0]["params"] = list(range(84))
    assert_momentum_follows(wrn, content)


def assert_momentum_follows(wrn, content):
    model = wrn.wide_resnet.WideResNet(16, 1, 100)
    state = wrn.legacy.legacy_state_dict(content["params"])
    model.load_state_dict(state)
    names = [name for name, _ in model.named_parameters()]
    momentum = wrn.legacy.legacy_momentum(content, names)
    theirs = [name for name in state if "running" not in name and "num_batches" not in name]
    assert len(momentum) == 84 and theirs != names
    for place, name in enumerate(names):
        own = dict(model.named_parameters())[name]
        assert torch.equal(momentum[place]["momentum_buffer"], numbered(own, theirs.index(name)))
