"""Flags, refusals and signals, as both folders' scripts have them; a run's folder and log."""

import os
import signal

import pytest


@pytest.fixture
def parser(wrn):
    parser = wrn.command_line.Parser(prog="x")
    parser.add_argument("--batch_size", type=wrn.command_line.bounded_number(int, 1, 100))
    parser.add_argument("--image-size", type=wrn.command_line.bounded_number(float, 0))
    parser.add_argument("--count", type=wrn.command_line.bounded_number(int, 1))
    parser.add_argument("names", nargs="*")
    return parser


def test_hyphens_and_underscores(parser):
    for words in (["--batch-size", "3", "--image_size=4"], ["--batch_size=3", "--image-size", "4"]):
        options = parser.parse_args([*words, "a_b-c"])
        assert (options.batch_size, options.image_size, options.names) == (3, 4.0, ["a_b-c"])


@pytest.mark.parametrize(
    "words",
    ["--batch_size 0", "--batch_size 101", "--batch_size 1.5", "--batch_size x", "--image-size nan",
     "--image-size inf", "--image-size=-1", "--image-size=", "--image-size=--", "--nope",
     "--batch_size", "--batch 3", f"--count {2**63}"],
)  # fmt: skip
def test_bad_flags_are_refused_in_one_line(wrn, parser, words, capsys):
    status = wrn.command_line.exit_status(lambda: parser.parse_args(words.split()))
    error = capsys.readouterr().err
    assert status == 2 and error.startswith("error: ") and error.count("\n") == 1


def test_statuses(wrn, capsys):
    line = wrn.command_line

    def fails(error):
        def run():
            raise error

        return line.exit_status(run)

    assert line.exit_status(lambda: None) == 0
    assert fails(line.UserError("not\nthis")) == 2
    assert fails(OSError(28, "No space left on device")) == 2
    assert capsys.readouterr().err == (
        "error: not this\nerror: [Errno 28] No space left on device\n"
    )
    assert fails(MemoryError()) == 2 == fails(RuntimeError("CPU: can't allocate memory"))
    assert capsys.readouterr().err.count("error: not enough memory") == 2
    with pytest.raises(RuntimeError):
        fails(RuntimeError("shapes differ"))
    with pytest.raises(ZeroDivisionError):  # our own mistakes keep their traceback
        fails(ZeroDivisionError())


@pytest.mark.parametrize(("name", "status"), [("SIGINT", 130), ("SIGTERM", 143), ("SIGHUP", 129)])
def test_signals(wrn, capsys, name, status):
    stop = getattr(signal, name)
    before = signal.getsignal(stop)
    assert wrn.command_line.exit_status(lambda: os.kill(os.getpid(), stop)) == status
    assert f"stopped by {name}" in capsys.readouterr().err
    assert signal.getsignal(stop) is before


def test_a_closed_terminal_is_nothing_under_nohup(wrn):
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        hang_up = lambda: os.kill(os.getpid(), signal.SIGHUP)  # noqa: E731
        assert wrn.command_line.exit_status(hang_up) == 0
    finally:
        signal.signal(signal.SIGHUP, before)


def test_a_folder_is_held_by_one_run(wrn, tmp_path):
    with wrn.run_folder.lock_run_folder(tmp_path / "run"):
        child = os.fork()
        if child == 0:
            try:
                with wrn.run_folder.lock_run_folder(tmp_path / "run"):
                    os._exit(0)
            except wrn.command_line.UserError as refusal:
                os._exit(7 if "another run" in str(refusal) else 1)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7
    with wrn.run_folder.lock_run_folder(tmp_path / "run"):
        pass


def test_a_folder_that_cannot_be_made(wrn, tmp_path):
    (tmp_path / "file").touch()
    with (
        pytest.raises(wrn.command_line.UserError, match="can't be written"),
        wrn.run_folder.lock_run_folder(tmp_path / "file" / "run"),
    ):
        pass


def test_the_log_is_cut(wrn, tmp_path):
    log = wrn.run_folder.Log(tmp_path / "log", "stats: ")
    log.truncate_after(0)  # there is none yet
    for epoch in (1, 2, 3):
        log.append({"epoch": epoch, "error": epoch / 7})
    with open(log.path, "a") as file:
        file.write('stats: {"epoch": 4, "err')  # killed while writing
    assert [record["epoch"] for record in log.records()] == [1, 2, 3]
    log.truncate_after(2)
    assert log.path.read_text().count("\n") == 2
    assert log.records()[1] == {"epoch": 2, "error": 2 / 7}
    log.path.write_text("stats: {]}\n")
    with pytest.raises(wrn.command_line.UserError, match="no record"):
        log.records()
