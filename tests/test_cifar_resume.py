"""wrn_DKS/main.py stopped and resumed: the same weights and log as without interruption."""

import os
import signal
import time

import pytest
import torch
from cifar_runs import SMALL_CIFAR_RUN, assert_same_run, records


def test_run_stopped_in_each_epoch_resumes_to_the_same_weights(
    wrn, cifar_main, cifar_run, monkeypatch, tmp_path, capsys
):
    folder, evaluate = tmp_path / "x", wrn.engine.Trainer.evaluate
    options = ("--epochs", 4, "--epoch_step", "[3]", "--save", folder, "--resume", "auto")
    for finished in range(4):
        calls = iter(range(2))

        def stop_in_second_epoch(trainer, batches, calls=calls):
            if next(calls):
                raise wrn.command_line.Interrupted(signal.SIGTERM)
            return evaluate(trainer, batches)

        monkeypatch.setattr(wrn.engine.Trainer, "evaluate", stop_in_second_epoch)
        assert cifar_main(*options) == (143 if finished < 3 else 0)
        assert len(records(folder)) == finished + 1
    assert_same_run(folder, cifar_run)
    out = capsys.readouterr().out
    for finished in (1, 2):
        assert f"with --save {folder} --resume auto (epoch {finished + 1} starts again)\n" in out
    assert f"resumed from {folder}/checkpoint.pt: 1 epoch done\n" in out
    assert f"resumed from {folder}/checkpoint.pt: 3 epochs done\n" in out


def test_log_records_after_the_checkpoint_are_removed(cifar_main, cifar_run, tmp_path):
    """A run killed between log and checkpoint repeats the epoch and logs it once."""
    folder = tmp_path / "x"
    assert cifar_main("--epochs", 2, "--epoch_step", "[3]", "--save", folder) == 0
    with open(folder / "log.txt", "a") as log:
        third_epoch = (cifar_run / "log.txt").read_text().splitlines()[2]
        log.write(third_epoch + "\njson_stats: {half a li")
    words = ("--epochs", 4, "--epoch_step", "[3]", "--resume", folder / "checkpoint.pt")
    assert cifar_main(*words) == 0
    assert_same_run(folder, cifar_run)


def wait_for_file(path):
    deadline = time.monotonic() + 120
    while not path.exists():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_killed_run_resumes_to_the_same_weights(wrn_runs, cifar_run, tmp_path):
    words = [*SMALL_CIFAR_RUN, "--epochs", "4", "--epoch_step", "[3]", "--save", str(tmp_path)]
    run = wrn_runs.start([*words, "--resume", "auto"])
    wait_for_file(tmp_path / "log.txt")
    os.kill(run, signal.SIGKILL)
    wrn_runs.wait(run, -signal.SIGKILL)
    output = wrn_runs.wait(wrn_runs.start([*words, "--resume", "auto"]))
    assert "test error of the backbone" in output
    assert_same_run(tmp_path, cifar_run)


@pytest.mark.parametrize(("name", "status"), [("SIGINT", 130), ("SIGTERM", 143)])
def test_signals_stop_a_run_with_a_checkpoint(wrn_runs, tmp_path, name, status):
    run = wrn_runs.start([*SMALL_CIFAR_RUN, "--epochs", "10000", "--save", str(tmp_path)])
    wait_for_file(tmp_path / "checkpoint.pt")
    os.kill(run, getattr(signal, name))
    output = wrn_runs.wait(run, status)
    assert "--resume auto" in output and output.endswith(f"\nstopped by {name}\n")
    assert torch.load(tmp_path / "checkpoint.pt", weights_only=True)["epoch"] >= 1


def test_run_stopped_before_its_first_checkpoint_is_not_told_to_resume(
    wrn, cifar_main, tmp_path, monkeypatch, capsys
):
    def stop(trainer, *args):
        raise wrn.command_line.Interrupted(signal.SIGTERM)

    monkeypatch.setattr(wrn.engine.Trainer, "train_epoch", stop)
    assert cifar_main("--epochs", 1, "--save", tmp_path / "x") == 143
    advice = "to continue, run the same command again (epoch 1 starts again)\n"
    assert capsys.readouterr().out.endswith(advice)


def test_resuming_a_finished_run_prints_its_errors(cifar_main, cifar_run, capsys):
    words = ("--epochs", 4, "--epoch_step", "[3]", "--save", cifar_run, "--resume", "auto")
    assert cifar_main(*words) == 0
    error = 100 - records(cifar_run)[-1]["test_acc"]
    assert f"test error of the backbone: {error:.2f} %" in capsys.readouterr().out
    assert len(records(cifar_run)) == 4


def test_fewer_epochs_than_a_run_has_are_refused(cifar_main, cifar_run, tmp_path, capsys):
    for words in (
        ("--save", cifar_run, "--resume", "auto"),
        ("--resume", cifar_run, "--export", tmp_path / "x.pt"),
    ):
        assert cifar_main(*words, "--epochs", 3) == 2
        out, error = capsys.readouterr()
        assert error == (
            f"error: --epochs 3: the run in {cifar_run}/checkpoint.pt has 4 finished epochs; use "
            "--epochs 4 or more\n"
        )
        assert "test error" not in out
    assert not (tmp_path / "x.pt").exists()


def test_an_older_run_with_a_milestone_given_twice_keeps_it(cifar_main, tmp_path, capsys):
    words = ("--save", tmp_path / "x", "--epoch_step")
    assert cifar_main(*words, "[2]", "--epochs", 1) == 0
    path = tmp_path / "x" / "checkpoint.pt"
    content = torch.load(path, weights_only=True)
    content["options"]["epoch_step"] = [2, 2]
    torch.save(content, path)
    assert cifar_main(*words, "[2,2]", "--epochs", 2, "--resume", "auto") == 0
    assert "decayed to 0.004 at epoch 2\n" in capsys.readouterr().out


def test_a_resumed_run_keeps_its_milestones(cifar_main, tmp_path, capsys):
    folder = tmp_path / "x"
    assert cifar_main("--epochs", 2, "--save", folder) == 0
    assert "decayed to 0.02 at epoch 2\n" in capsys.readouterr().out
    assert cifar_main("--epochs", 4, "--save", folder, "--resume", "auto") == 0
    assert "decayed to 0.02 at epoch 2\n" in capsys.readouterr().out
    assert [record["epoch_step"] for record in records(folder)] == [[2]] * 4
    words = ("--epochs", 5, "--save", folder, "--resume", "auto", "--epoch_step", "[3]")
    assert cifar_main(*words) == 2
    assert "--epoch_step [3] (was [2])" in capsys.readouterr().err


def test_resuming_with_other_options_is_an_error(cifar_main, cifar_run, capsys):
    before = {path: path.read_bytes() for path in cifar_run.iterdir()}
    words = ("--lr", 0.2, "--method", "ds", "--save", cifar_run, "--resume", "auto")
    assert cifar_main(*words) == 2
    assert "--lr 0.2 (was 0.1)" in capsys.readouterr().err
    assert cifar_main("--depth", 16, "--save", cifar_run, "--resume", "auto") == 2
    assert "--depth 16 (was 10)" in capsys.readouterr().err
    assert before == {path: path.read_bytes() for path in cifar_run.iterdir()}


@pytest.mark.parametrize(
    "damage",
    [
        lambda c: c.update(format=99),
        lambda c: c.update(classes=[1, 2]),
        lambda c: c.update(mean=[float("nan")] * 3),
        lambda c: c.update(epoch=-1),
        lambda c: c.update(optimizer={}),
        lambda c: c.pop("options"),
        lambda c: c["options"].update(surplus=1),
        lambda c: c.update(surplus=1),
        lambda c: c["model"].popitem(),
    ],
)
def test_damaged_checkpoint_is_a_one_line_error(cifar_main, cifar_run, tmp_path, capsys, damage):
    content = torch.load(cifar_run / "checkpoint.pt", weights_only=True)
    damage(content)
    path = tmp_path / "x.pt"
    torch.save(content, path)
    words = ("--epochs", 4, "--epoch_step", "[3]", "--save", tmp_path / "s", "--resume", path)
    assert cifar_main(*words) == 2
    assert capsys.readouterr().err.count("\n") == 1
    assert not (tmp_path / "s" / "checkpoint.pt").exists()
