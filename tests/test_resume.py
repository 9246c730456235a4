"""Which checkpoint a run resumes from; what it never overwrites; agreement of the processes."""

import shutil
import socket

import pytest
import torch
from cifar_runs import SMALL_CIFAR_RUN, assert_same_run, assert_same_weights, records
from training import command_line, error_of, load_checkpoint, log_records, run_train, write_data

EPOCHS = ("--epoch_step", "[3]", "--epochs")


class Killed(Exception):
    """Stands for the death of the process; no code catches it."""


def kill_at(monkeypatch, owner, name, count):
    """Raise `Killed` instead of call number `count` of a method."""
    original, calls = getattr(owner, name), []

    def wrapped(*args, **kwargs):
        calls.append(1)
        if len(calls) == count:
            raise Killed
        return original(*args, **kwargs)

    monkeypatch.setattr(owner, name, wrapped)


@pytest.fixture(scope="module")
def train(imagenet):
    return lambda argv: run_train(imagenet, argv)


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return write_data(tmp_path_factory.mktemp("images"))


@pytest.fixture(scope="module")
def two_epochs(cifar_main, tmp_path_factory):
    """The checkpoint of a run like `cifar_run` after two of the epochs."""
    folder = tmp_path_factory.mktemp("two")
    assert cifar_main(*EPOCHS, 2, "--save", folder) == 0
    return folder / "checkpoint.pt"


@pytest.fixture(scope="module")
def one_epoch(train, data, tmp_path_factory):
    """The checkpoint of a run of imagenet/train.py after one epoch."""
    folder = tmp_path_factory.mktemp("one")
    assert train(command_line(data, folder, "--epochs", "1")) == 0
    return folder / "checkpoint.pt"


def contents(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_a_lost_checkpoint_is_not_a_new_run(cifar_main, two_epochs, tmp_path, capsys):
    shutil.copy(two_epochs.parent / "log.txt", tmp_path)
    assert cifar_main(*EPOCHS, 3, "--save", tmp_path, "--resume", "auto") == 2
    assert "log.txt: has 2 epochs, but there is no checkpoint.pt" in capsys.readouterr().err
    assert (tmp_path / "log.txt").read_bytes() == (two_epochs.parent / "log.txt").read_bytes()
    # A copy of the checkpoint under another name is resumed.
    shutil.copy(two_epochs, tmp_path / "copy.pt")
    assert cifar_main(*EPOCHS, 3, "--resume", tmp_path / "copy.pt") == 0
    assert [record["epoch"] for record in records(tmp_path)] == [1, 2, 3]


def test_a_lost_checkpoint_of_imagenet_is_not_a_new_run(train, data, tmp_path, capsys):
    argv = command_line(data, tmp_path, "--resume", "auto")
    assert train(argv) == 0
    (tmp_path / "checkpoint.pt").unlink()
    log = log_records(tmp_path)
    assert "there is no checkpoint.pt beside it" in error_of(train, capsys, argv)
    assert log_records(tmp_path) == log


def test_a_run_killed_before_its_first_checkpoint_starts_again(
    wrn, cifar_main, cifar_run, tmp_path, monkeypatch
):
    """It has logged its first epoch."""
    words = (*EPOCHS, 4, "--save", tmp_path, "--resume", "auto")
    with monkeypatch.context() as patch:
        kill_at(patch, wrn.main, "save_run", 1)
        with pytest.raises(Killed):
            cifar_main(*words)
    assert len(records(tmp_path)) == 1 and not (tmp_path / "checkpoint.pt").exists()
    assert cifar_main(*words) == 0
    assert_same_run(tmp_path, cifar_run)


def test_an_older_copy_does_not_replace_the_checkpoint(cifar_main, two_epochs, tmp_path, capsys):
    folder = shutil.copytree(two_epochs.parent, tmp_path / "run")
    shutil.copy(two_epochs, folder / "old.pt")
    assert cifar_main(*EPOCHS, 3, "--save", folder, "--resume", "auto") == 0
    before = contents(folder)
    for more in ([], ["--save", folder]):
        assert cifar_main(*EPOCHS, 3, "--resume", folder / "old.pt", *more) == 2
        assert "would replace" in capsys.readouterr().err
    assert contents(folder) == before


@pytest.mark.parametrize(
    "place", [("main", "save_run", 1), ("main", "save_run", 2), ("engine.Trainer", "evaluate", 2)]
)
def test_a_restart_goes_on_from_its_own_checkpoint(
    wrn, cifar_main, cifar_run, two_epochs, tmp_path, monkeypatch, capsys, place
):
    """The same command again, as by torchrun --max-restarts: two epochs are left to train."""
    module, name, count = place
    owner = wrn.engine.Trainer if "." in module else wrn.main
    words = (*EPOCHS, 4, "--save", tmp_path, "--resume", two_epochs)
    with monkeypatch.context() as patch:
        kill_at(patch, owner, name, count)
        with pytest.raises(Killed):
            cifar_main(*words)
    capsys.readouterr()
    assert cifar_main(*words) == 0
    source = two_epochs if (name, count) == ("save_run", 1) else tmp_path / "checkpoint.pt"
    assert f"resumed from {source}: " in capsys.readouterr().out
    assert_same_weights(tmp_path, cifar_run)
    assert [record["epoch"] for record in records(tmp_path)] == [3, 4]


def test_a_restart_of_imagenet_goes_on_from_its_own_checkpoint(
    train, data, imagenet, one_epoch, tmp_path, monkeypatch, capsys
):
    """--resume names the folder of the other run."""
    argv = command_line(data, tmp_path / "run", "--epochs", "3", "--resume", str(one_epoch.parent))
    with monkeypatch.context() as patch:
        kill_at(patch, imagenet.engine.Trainer, "evaluate", 2)
        with pytest.raises(Killed):
            train(argv)
    capsys.readouterr()
    assert train(argv) == 0
    assert f"resumed from {tmp_path}/run/checkpoint.pt: 2 epochs" in capsys.readouterr().out
    assert [record["epoch"] for record in log_records(tmp_path / "run")] == [2, 3]
    assert train(command_line(data, tmp_path / "whole", "--epochs", "3")) == 0
    weights, expected = (load_checkpoint(tmp_path / n)["model"] for n in ("run", "whole"))
    assert all(torch.equal(weights[name], value) for name, value in expected.items())


def test_another_checkpoint_is_not_resumed_into_a_run(
    cifar_main, two_epochs, cifar_run, tmp_path, capsys
):
    words = (*EPOCHS, 3, "--save", tmp_path)
    assert cifar_main(*words, "--resume", two_epochs) == 0
    before = contents(tmp_path)
    assert cifar_main(*words, "--resume", cifar_run) == 2
    assert "already contains a run" in capsys.readouterr().err
    assert contents(tmp_path) == before


@pytest.mark.parametrize("other", ["no checkpoint", "a checkpoint of epoch 1", "an error (x)"])
def test_processes_with_another_checkpoint_are_refused(
    wrn, cifar_main, two_epochs, tmp_path, monkeypatch, capsys, other
):
    folder = shutil.copytree(two_epochs.parent, tmp_path / "run")
    before = contents(folder)
    monkeypatch.setattr(wrn.resume, "gather_objects", lambda own: [own, own, other])
    assert cifar_main(*EPOCHS, 3, "--save", folder, "--resume", "auto") == 2
    assert (
        f"process 0 of this run finds a checkpoint of epoch 2, process 2 {other}; --save and "
        "--resume must name the same shared folder and file on every machine"
    ) in capsys.readouterr().err
    assert contents(folder) == before


TWO_MACHINES = """
import os, sys, torch
torch.set_num_threads(1)
import main

folder, *words = sys.argv[1:]
os.environ.update(WORLD_SIZE="2", MASTER_ADDR="127.0.0.1")
pids = []
for rank in "01":
    pid = os.fork()
    if not pid:
        os.environ["RANK"] = rank
        status = main.main([*words, "--save", f"{folder}/{rank}", "--resume", "auto"])
        sys.stderr.flush()
        os._exit(status)
    pids.append(pid)
print(*(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in pids))
"""


def test_machines_that_do_not_share_the_folder_are_refused(python, wrn, two_epochs, tmp_path):
    """Two processes, of which only process 0 finds the checkpoint in its --save."""
    shutil.copytree(two_epochs.parent, tmp_path / "0")
    before = contents(tmp_path / "0")
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = str(listener.getsockname()[1])
    words = [*SMALL_CIFAR_RUN, *EPOCHS, "3"]
    script = tmp_path / "script.py"
    script.write_text(TWO_MACHINES)
    variables = {"MASTER_PORT": port}
    done = python.run(script, tmp_path, *words, path=[wrn.path], variables=variables)
    assert done.stdout.splitlines()[-1] == "2 2", done.stderr
    assert done.stderr.count("process 0 of this run finds") == 2
    assert contents(tmp_path / "0") == before
