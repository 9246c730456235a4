"""The lock of a run's folder on a file system without record locks."""

import errno
import os
import socket
import subprocess
import sys

import pytest
from cifar_runs import SMALL_CIFAR_RUN


@pytest.fixture
def folder(wrn, monkeypatch, tmp_path):
    """A folder for a run where no file can be locked."""

    def lockf(file, operation):
        raise OSError(errno.ENOSYS, "Function not implemented")

    monkeypatch.setattr(wrn.run_folder.fcntl, "lockf", lockf)
    return tmp_path / "run"


def refusal(wrn, folder):
    """Return the message with which the folder is refused."""
    with pytest.raises(wrn.command_line.UserError) as error, wrn.run_folder.lock_run_folder(folder):
        pass
    return str(error.value)


@pytest.mark.parametrize("number", ["ENOSYS", "ENOLCK", "ENOTSUP", "EOPNOTSUPP"])
def test_a_file_is_the_lock_where_there_are_no_others(wrn, folder, monkeypatch, capsys, number):
    def lockf(file, operation):
        raise OSError(getattr(errno, number), "no locks here")

    monkeypatch.setattr(wrn.run_folder.fcntl, "lockf", lockf)
    for _ in range(2):  # it is removed at the end
        with wrn.run_folder.lock_run_folder(folder):
            assert (folder / "lock.owner").exists()
            assert "no record locks (no locks here)" in capsys.readouterr().out
        assert [path.name for path in folder.iterdir()] == ["lock"]


def test_other_errors_are_not_taken_for_another_run(wrn, folder, monkeypatch):
    def lockf(file, operation):
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(wrn.run_folder.fcntl, "lockf", lockf)
    assert "can't be locked (Input/output error)" in refusal(wrn, folder)
    assert not folder.exists()


def test_a_living_process_keeps_the_folder(wrn, folder):
    with wrn.run_folder.lock_run_folder(folder):
        assert f"another run is writing there, process {os.getpid()} on" in refusal(wrn, folder)
        assert (folder / "lock.owner").exists()


@pytest.mark.parametrize("reaped", [True, False])
def test_the_file_of_a_killed_process_is_replaced(wrn, folder, reaped):
    child = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    folder.mkdir()
    (folder / "lock.owner").write_text(wrn.owner_file.process_name(child.pid))
    try:
        assert f"process {child.pid} on this machine" in refusal(wrn, folder)
    finally:
        child.kill()
        if reaped:
            child.communicate()
        else:
            os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)  # it stays a zombie
    with wrn.run_folder.lock_run_folder(folder):
        assert str(os.getpid()) in (folder / "lock.owner").read_text()
    assert [path.name for path in folder.iterdir()] == ["lock"]
    child.communicate()


@pytest.mark.skipif(not os.path.exists("/proc/self/stat"), reason="start times come from /proc")
def test_a_later_process_with_the_same_id_does_not_keep_the_folder(wrn, folder):
    folder.mkdir()
    (folder / "lock.owner").write_text(f"{socket.gethostname()} {os.getpid()} 1")
    with wrn.run_folder.lock_run_folder(folder):
        pass


@pytest.mark.parametrize("owner", ["elsewhere 1 1", "", "host -1 1", "no file of ours"])
def test_the_file_of_another_machine_is_kept(wrn, folder, owner):
    folder.mkdir()
    (folder / "lock.owner").write_text(owner)
    assert f"if it has ended, remove {folder / 'lock.owner'}" in refusal(wrn, folder)
    assert (folder / "lock.owner").read_text() == owner


def test_only_one_of_two_replaces_a_stale_file(wrn, folder, monkeypatch):
    """The other one finds the file of the first, and puts it back."""
    folder.mkdir()
    path, stale = folder / "lock.owner", f"{socket.gethostname()} {os.getpid()} 1"
    path.write_text(stale)
    first = wrn.owner_file.process_name(os.getppid())
    rename = os.rename

    def rename_after_the_first(source, target):
        path.write_text(first)
        rename(source, target)

    monkeypatch.setattr(wrn.owner_file.os, "rename", rename_after_the_first)
    assert f"process {os.getppid()} on this machine" in refusal(wrn, folder)
    assert path.read_text() == first


def test_a_failed_start_leaves_no_folder(wrn, folder):
    with pytest.raises(ZeroDivisionError), wrn.run_folder.lock_run_folder(folder):
        raise ZeroDivisionError
    assert not folder.exists()


def test_a_run_trains_there(wrn, folder, capsys):
    words = [*SMALL_CIFAR_RUN, "--epochs", "1", "--save", str(folder)]
    assert wrn.main.main(words) == 0
    assert "no record locks" in capsys.readouterr().out
    names = {path.name for path in folder.iterdir()}
    assert "checkpoint.pt" in names and "lock.owner" not in names
