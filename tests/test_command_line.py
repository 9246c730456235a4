"""Flags, errors and signals of all scripts; the lock and the log of a run folder."""

import os
import signal
from pathlib import Path

import pytest


@pytest.fixture
def parser(wrn):
    parser = wrn.command_line.ArgumentParser(prog="x")
    parser.add_argument("--batch_size", type=wrn.command_line.bounded_number(int, 1, 100))
    parser.add_argument("--image-size", type=wrn.command_line.bounded_number(float, 0))
    parser.add_argument("--count", type=wrn.command_line.bounded_number(int, 1))
    parser.add_argument("names", nargs="*")
    return parser


def test_hyphens_and_underscores_are_interchangeable(parser):
    for words in (["--batch-size", "3", "--image_size=4"], ["--batch_size=3", "--image-size", "4"]):
        options = parser.parse_args([*words, "a_b-c"])
        assert (options.batch_size, options.image_size, options.names) == (3, 4.0, ["a_b-c"])


@pytest.mark.parametrize(
    "words",
    ["--batch_size 0", "--batch_size 101", "--batch_size 1.5", "--batch_size x", "--image-size nan",
     "--image-size inf", "--image-size=-1", "--image-size=", "--image-size=--", "--nope",
     "--batch_size", "--batch 3", f"--count {2**63}"],
)  # fmt: skip
def test_invalid_flags_are_one_line_errors(wrn, parser, words, capsys):
    status = wrn.command_line.exit_status(lambda: parser.parse_args(words.split()))
    error = capsys.readouterr().err
    assert status == 2 and error.startswith("error: ") and error.count("\n") == 1


def test_exit_status_and_message_by_exception(wrn, capsys):
    command_line = wrn.command_line

    def status_of(error):
        def run():
            raise error

        return command_line.exit_status(run)

    assert command_line.exit_status(lambda: None) == 0
    assert status_of(command_line.UserError("not\nthis")) == 2
    assert status_of(OSError(28, "No space left on device")) == 2
    assert capsys.readouterr().err == (
        "error: not this\nerror: [Errno 28] No space left on device\n"
    )
    assert status_of(MemoryError()) == 2
    assert status_of(RuntimeError("CPU: can't allocate memory")) == 2
    assert capsys.readouterr().err.count("error: not enough memory") == 2
    with pytest.raises(RuntimeError):
        status_of(RuntimeError("shapes differ"))
    with pytest.raises(ZeroDivisionError):  # bugs keep their traceback
        status_of(ZeroDivisionError())


@pytest.mark.parametrize(("name", "status"), [("SIGINT", 130), ("SIGTERM", 143), ("SIGHUP", 129)])
@pytest.mark.usefixtures("hangup_is_not_ignored")
def test_signals_set_the_exit_status(wrn, capsys, name, status):
    signum = getattr(signal, name)
    before = signal.getsignal(signum)
    assert wrn.command_line.exit_status(lambda: os.kill(os.getpid(), signum)) == status
    assert f"stopped by {name}" in capsys.readouterr().err
    assert signal.getsignal(signum) is before


def test_sighup_is_ignored_under_nohup(wrn):
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        hang_up = lambda: os.kill(os.getpid(), signal.SIGHUP)  # noqa: E731
        assert wrn.command_line.exit_status(hang_up) == 0
    finally:
        signal.signal(signal.SIGHUP, before)


def test_run_folder_is_locked_by_one_process(wrn, tmp_path):
    with wrn.run_folder.lock_run_folder(tmp_path / "run"):
        child = os.fork()
        if child == 0:
            try:
                with wrn.run_folder.lock_run_folder(tmp_path / "run"):
                    os._exit(0)
            except wrn.command_line.UserError as error:
                os._exit(7 if "another run" in str(error) else 1)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7
    with wrn.run_folder.lock_run_folder(tmp_path / "run"):
        pass


def test_failed_start_leaves_no_run_folder(wrn, tmp_path):
    """A folder that existed, or in which something was written, stays."""
    (tmp_path / "old").mkdir()
    (tmp_path / "old" / "notes").touch()
    for name, write in (("a/b", False), ("old", False), ("c", True)):
        folder = tmp_path / name
        with pytest.raises(ZeroDivisionError), wrn.run_folder.lock_run_folder(folder):
            assert (folder / "lock").exists()
            if write:
                (folder / "log").touch()
            raise ZeroDivisionError
    found = sorted(str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*"))
    assert found == ["c", "c/lock", "c/log", "old", "old/notes"]


def test_lock_that_another_run_removed_is_made_again(wrn, tmp_path, monkeypatch):
    """The other run fails between opening the file and locking it here."""
    flock = wrn.run_folder.fcntl.lockf

    def remove_first(file, operation):
        monkeypatch.setattr(wrn.run_folder.fcntl, "lockf", flock)
        (tmp_path / "run" / "lock").unlink()
        (tmp_path / "run").rmdir()
        flock(file, operation)

    monkeypatch.setattr(wrn.run_folder.fcntl, "lockf", remove_first)
    with wrn.run_folder.lock_run_folder(tmp_path / "run"):
        assert (tmp_path / "run" / "lock").exists()


def test_given_options_are_told_from_defaults(parser):
    assert parser.parse_given([]).keys() == {"names"}  # a positional argument
    assert parser.parse_given(["--batch-size", "3"])["batch_size"] == 3


def test_run_folder_that_can_not_be_created_is_an_error(wrn, tmp_path):
    (tmp_path / "file").touch()
    with (
        pytest.raises(wrn.command_line.UserError, match="can't be written"),
        wrn.run_folder.lock_run_folder(tmp_path / "file" / "run"),
    ):
        pass


def test_log_is_truncated_after_an_epoch(wrn, tmp_path):
    log = wrn.json_log.Log(tmp_path / "log", "stats: ")
    log.truncate_after(0)  # the file does not exist yet
    for epoch in (1, 2, 3):
        log.append({"epoch": epoch, "error": epoch / 7})
    with open(log.path, "a") as file:
        file.write('stats: {"epoch": 4, "err')  # killed while writing
    assert [record["epoch"] for record in log.records()] == [1, 2, 3]
    log.truncate_after(2)
    assert log.path.read_text().count("\n") == 2
    assert log.records()[1] == {"epoch": 2, "error": 2 / 7}
    log.path.write_text("stats: {]}\n")
    with pytest.raises(wrn.command_line.UserError, match="not a record"):
        log.records()


def test_a_failed_start_keeps_the_lock_until_its_files_are_removed(wrn, tmp_path, monkeypatch):
    """Otherwise another run could lock the file just before it is removed."""
    folder, statuses, unlink = tmp_path / "run", [], Path.unlink

    def unlink_after_another_run_tried(path, *args, **options):
        child = os.fork()
        if child == 0:
            try:
                wrn.run_folder.open_lock(folder)
            except wrn.command_line.UserError:
                os._exit(7)
            os._exit(0)
        statuses.append(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
        unlink(path, *args, **options)

    monkeypatch.setattr(Path, "unlink", unlink_after_another_run_tried)
    with pytest.raises(ZeroDivisionError), wrn.run_folder.lock_run_folder(folder):
        raise ZeroDivisionError
    assert statuses == [7] and not folder.exists()
