"""Flags and their values, one-line errors, exit statuses, and the choice of device and group."""

import os
import signal
import socket
import unittest.mock
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch.distributed as dist


def test_spellings_of_the_same_options(half):
    for words, name, value in (
        ("--batch-size 7", "batch_size", 7),
        ("-b 7", "batch_size", 7),
        ("--image_size 64", "image_size", 64),
        ("-j 3", "workers", 3),
        ("--lr_decay_ratio 0.5", "lr_factor", 0.5),
        ("--milestones 30,60", "milestones", (30, 60)),
        ("--lr-milestones [30,60,30]", "milestones", (30, 60)),
        ("--method DKS", "method", "dks"),
        ("--dtype BFloat16", "dtype", "bfloat16"),
        ("--dtype half", "dtype", "float16"),
        ("--lr 1e-3", "lr", 0.001),
        ("--save=~/x", "save", Path.home() / "x"),
        ("--resume=~/x", "checkpoint", Path.home() / "x"),
    ):
        assert getattr(half.parse(half.argv("x", *words.split())), name) == value, words


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("--batch_size 0", "expected a whole number of at least 1, got '0'"),
        ("--batch_size", "expected one argument"),
        (f"--epochs {2**63}", "expected a whole number"),
        ("--lr nan", "expected a number of at least 0, got 'nan'"),
        ("--lr inf", "got 'inf'"),
        ("--lr=-1", "got '-1'"),
        ("--momentum 1.5", "expected a number from 0 to 1, got '1.5'"),
        ("--seed -1", "--seed"),
        ("--method dkss", "expected baseline, ds, dks, got 'dkss'; did you mean dks?"),
        ("--milestones 30;60", "expected epochs such as 30,60,90, got '30;60'"),
        ("--milestones 30,-60", "got '30,-60'"),
        ("--batch-sise 3", "unknown option --batch-sise; did you mean --batch-size?"),
        ("--batch 3", "unknown option --batch"),  # no abbreviations
        ("--qqq", "unknown option --qqq (--help"),
        ("-x 3", "unrecognized arguments: -x"),
        ("--init=", "an empty argument ('--init='): is a variable of the shell not set?"),
        ("--method=--", "an empty argument ('--method=--')"),
        ("–lr 0.1", "–lr begins with a typographic dash; type hyphens"),
        ("−−lr 0.1", "−−lr begins with a typographic dash; type hyphens"),
        ("--resume auto", "requires --save"),
        ("--warmup-epochs 2", "--warmup-epochs 2"),
        ("--device xla", "--device xla: expected cpu, cuda or cuda:N"),
        ("--device cuda:9", "--device cuda:9 can't be used ("),
        ("--sync-bn", "--sync-bn: runs on GPUs only, not on cpu"),
        ("--lr-schedule cosine --lr-factor 0.5", "--lr-factor has no effect with"),
    ],
)
def test_bad_input_is_one_line(half, tmp_path, capsys, words, message):
    argv = half.argv(tmp_path / "run", *words.split())
    if words == "--resume auto":
        del argv[argv.index("--save") : argv.index("--save") + 2]
    assert message in half.error(capsys, None, argv=argv)
    assert not (tmp_path / "run").exists()


def test_output_that_nobody_reads_does_not_end_a_computation(wrn, monkeypatch):
    reader, writer = os.pipe()
    os.close(reader)
    with open(writer, "w") as closed:
        monkeypatch.setattr("sys.stdout", closed)
        for _ in range(2):
            wrn.distributed.print_once("a line")


def test_help_shows_each_flag_and_default(half, capsys):
    with pytest.raises(SystemExit):
        half.script.main(["--help"])
    text = capsys.readouterr().out
    for name in half.parse(half.argv("x")).__dataclass_fields__:
        assert name == "given" or f"--{name.replace('_', '-')}" in text, name
    assert "(default: 0.9)" in text
    assert "default: None" not in text and "(default: )" not in text and "SUPPRESS" not in text


def test_exit_status_and_message_by_exception(wrn, capsys):
    errors = wrn.command_line
    for error, status, message in (
        (errors.UserError("not\nthis"), 2, "error: not this\n"),
        (errors.Incomplete("most of it"), 1, "error: most of it\n"),
        (OSError(28, "No space left on device"), 2, "error: [Errno 28] No space left on device\n"),
        (KeyboardInterrupt(), 130, "error: stopped by SIGINT\n"),
        (errors.Interrupted(signal.SIGTERM), 143, "error: stopped by SIGTERM\n"),
        (MemoryError(), 2, "error: not enough memory (MemoryError); use a smaller -b\n"),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory"), 2, "error: not enough memory"),
        (dist.DistBackendError("socket, malloc: out of memory"), 2, "error: socket, malloc"),
        (dist.DistNetworkError("timed out"), 2, "look for the error of another process above"),
        (ZeroDivisionError("a bug"), 1, "ZeroDivisionError: a bug"),
    ):
        run = unittest.mock.Mock(side_effect=error)
        assert errors.exit_status(run) == status
        printed = capsys.readouterr().err
        assert message in printed and (printed.count("\n") == 1) == ("bug" not in message)
    assert errors.exit_status(lambda: None) == 0


@pytest.mark.parametrize(
    ("variables", "message"),
    [
        ({"SLURM_NTASKS": "4", "SLURM_PROCID": "0"}, "SLURM_NTASKS is 4"),
        ({"OMPI_COMM_WORLD_SIZE": "2"}, "OMPI_COMM_WORLD_SIZE is 2"),
        ({"RANK": "abc", "WORLD_SIZE": "2"}, "RANK and WORLD_SIZE are set"),
        ({"RANK": "0", "WORLD_SIZE": "1"}, "MASTER_ADDR"),
        ({"RANK": "0", "WORLD_SIZE": "1", "MASTER_ADDR": "localhost"}, "MASTER_PORT"),
        ({"RANK": "0", "WORLD_SIZE": "1", "MASTER_ADDR": "localhost", "MASTER_PORT": "x"}, "'x'"),
    ],
)
def test_an_environment_of_another_launcher_is_refused(
    half, tmp_path, monkeypatch, capsys, variables, message
):
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert message in half.error(capsys, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_too_few_images_for_the_processes_are_refused_at_the_start(half, monkeypatch):
    distributed, error = half.scripts.distributed, half.scripts.command_line.UserError
    monkeypatch.setattr(distributed, "world_size", lambda: 4)
    monkeypatch.setattr(distributed, "rank", lambda: 3)
    assert distributed.shard(4) == slice(3, 4) and distributed.steps_per_epoch(9, 4) == 2
    for images, batch_size in ((3, 8), (9, 3)):
        with pytest.raises(error, match="3 images for 4 processes; use fewer processes, or a l"):
            distributed.steps_per_epoch(images, batch_size)
    with pytest.raises(error, match="3 images for 4 processes"):
        distributed.shard(3)


def test_a_port_in_use_is_named(half, tmp_path, monkeypatch, capsys):
    with socket.socket() as other:
        other.bind(("localhost", 0))
        other.listen()
        port = str(other.getsockname()[1])
        group = {"RANK": "0", "WORLD_SIZE": "2", "MASTER_ADDR": "localhost", "MASTER_PORT": port}
        for name, value in group.items():
            monkeypatch.setenv(name, value)
        error = half.error(capsys, tmp_path / "run")
    assert f"port: {port}" in error and "free the port in MASTER_PORT" in error


def test_a_training_outside_the_main_thread_runs_without_signal_handlers(half, tmp_path):
    with ThreadPoolExecutor(1) as pool:
        assert pool.submit(half.train, tmp_path, "--epochs", 1).result() == 0


@pytest.mark.parametrize("late", [False, True])
def test_a_second_interrupt_ends_a_run_at_once_unless_it_comes_within_moments(
    half, tmp_path, monkeypatch, late
):
    """As `timeout`, torchrun and SLURM send it."""
    if late:
        monkeypatch.setattr(half.scripts.run, "REPEATED_AFTER_S", -1)
    interrupt_twice = lambda trainer: [signal.raise_signal(signal.SIGINT) for _ in "12"]  # noqa: E731
    assert half.train(tmp_path, at={1: interrupt_twice}) == 130
    assert (tmp_path / "checkpoint.pt").exists() != late
