"""Termination signals: none is lost, wherever it arrives."""

import contextlib
import os
import signal
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from finalizers import FINALIZERS, in_del, in_progress_bar
from PIL import Image
from training import command_line, load_checkpoint, run_train, write_data

# Where signals are not deferred, Python reports the exception that it swallows.
pytestmark = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")


def at_call(monkeypatch, owner, name, count, action) -> list:
    """Run `action` before call number `count` of a function; return the list of its calls."""
    original, calls = getattr(owner, name), []

    def wrapped(*args, **kwargs):
        calls.append(1)
        if len(calls) == count:
            action()
        return original(*args, **kwargs)

    monkeypatch.setattr(owner, name, wrapped)
    return calls


@pytest.mark.parametrize("finalizer", FINALIZERS)
def test_a_swallowed_signal_still_sets_the_exit_status(wrn, capsys, finalizer):
    finished = []

    def run():
        finalizer()
        finished.append(1)

    assert wrn.command_line.exit_status(run) == 143
    assert finished and capsys.readouterr().err.endswith("stopped by SIGTERM\n")


@pytest.mark.parametrize("finalizer", FINALIZERS)
def test_a_step_is_finished_before_a_cifar_run_stops(
    wrn, cifar_main, tmp_path, monkeypatch, capsys, finalizer
):
    """Of six steps an epoch."""
    steps = at_call(monkeypatch, wrn.engine.Trainer, "train_step", 8, finalizer)
    assert cifar_main("--epochs", 3, "--save", tmp_path) == 143
    assert len(steps) == 8
    out, err = capsys.readouterr()
    assert out.endswith("--resume auto (epoch 2 starts again)\n")
    assert err == "stopped by SIGTERM\n"
    assert load_checkpoint(tmp_path)["epoch"] == 1


def test_a_cifar_run_stops_between_test_batches(wrn, cifar_main, tmp_path, monkeypatch):
    batches = at_call(monkeypatch, wrn.engine, "pairwise_divergences", 1, in_del)
    assert cifar_main("--epochs", 1, "--save", tmp_path) == 143
    assert len(batches) == 1 and not (tmp_path / "checkpoint.pt").exists()


def test_a_cifar_run_stops_when_its_progress_bar_is_collected(
    wrn, cifar_main, tmp_path, monkeypatch
):
    sent = []

    def collect(bar):
        if not sent:
            sent.append(1)
            os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(wrn.progress.Bar, "__del__", collect)
    assert cifar_main("--epochs", 3, "--save", tmp_path) == 143
    assert sent
    path = tmp_path / "checkpoint.pt"
    assert not path.exists() or load_checkpoint(tmp_path)["epoch"] == 1


def test_a_signal_while_a_cifar_run_is_saved_stops_it_before_the_next_epoch(
    wrn, cifar_main, tmp_path, monkeypatch
):
    steps = at_call(monkeypatch, wrn.engine.Trainer, "train_step", 100, in_del)
    at_call(monkeypatch, wrn.checkpoint, "save", 1, in_del)
    assert cifar_main("--epochs", 3, "--save", tmp_path) == 143
    assert len(steps) == 6 and load_checkpoint(tmp_path)["epoch"] == 1


def test_an_evaluation_stops_between_batches(wrn, cifar_main, cifar_run, monkeypatch):
    batches = at_call(monkeypatch, wrn.engine, "pairwise_divergences", 1, in_del)
    assert cifar_main("--evaluate", "--resume", cifar_run, "--batch_size", 100) == 143
    assert len(batches) == 1


@pytest.mark.parametrize("finalizer", FINALIZERS)
def test_an_imagenet_run_is_saved_after_the_step(imagenet, tmp_path, monkeypatch, finalizer):
    at_call(monkeypatch, imagenet.engine.Trainer, "train_step", 2, finalizer)
    data = write_data(tmp_path / "images")
    assert run_train(imagenet, command_line(data, tmp_path / "run")) == 143
    assert load_checkpoint(tmp_path / "run")["step"] == 2


def test_an_imagenet_run_is_saved_once_if_the_signal_arrives_meanwhile(
    imagenet, tmp_path, monkeypatch
):
    saves = at_call(monkeypatch, imagenet.checkpoint, "save", 1, in_del)
    data = write_data(tmp_path / "images")
    assert run_train(imagenet, command_line(data, tmp_path / "run")) == 143
    assert len(saves) == 1 and load_checkpoint(tmp_path / "run")["epoch"] == 1


def test_an_imagenet_evaluation_stops_between_batches(imagenet, monkeypatch):
    batch = torch.zeros(2, 3, 8, 8), torch.zeros(2, dtype=torch.int64)
    network = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(192, 5))
    network.forward = lambda images: (torch.zeros(len(images), 5),)
    batches = at_call(monkeypatch, imagenet.evaluate, "batch_counts", 1, in_del)

    def run():
        imagenet.evaluate.evaluate(network, [batch] * 3, torch.device("cpu"))

    assert imagenet.command_line.exit_status(run) == 143
    assert len(batches) == 1


def test_reading_images_ends_at_once(wrn, tmp_path, monkeypatch):
    """The images that wait for their turn are not read any more."""
    ending, read = threading.Event(), []

    class Pool(ThreadPoolExecutor):
        def shutdown(self, wait=True, cancel_futures=False):
            super().shutdown(wait=False, cancel_futures=cancel_futures)
            ending.set()
            super().shutdown(wait=True)

    def read_rgb(path):
        read.append(path)
        assert len(read) < 3 or ending.wait(60)
        return Image.new("RGB", (8, 8))

    def bar(images, *args, **options):
        for number, image in enumerate(images):
            if number == 1:
                in_progress_bar()
            yield image

    monkeypatch.setattr(wrn.images, "ThreadPoolExecutor", Pool)
    monkeypatch.setattr(wrn.images, "read_rgb", read_rgb)
    monkeypatch.setattr(wrn.images, "tqdm", bar)
    paths = [tmp_path / f"{number}.png" for number in range(100)]
    run = lambda: wrn.images.read_squares(paths, 8, 1, "reading")  # noqa: E731
    assert wrn.command_line.exit_status(run) == 143
    assert len(read) <= 3


@pytest.mark.parametrize(
    ("protect", "after_s", "ends"), [(False, -1, True), (True, -1, False), (False, 60, False)]
)
def test_a_repeated_signal_ends_the_process(wrn, monkeypatch, protect, after_s, ends):
    """Except while a file is written, and if a launcher sends the signal twice at once."""
    monkeypatch.setattr(wrn.signals, "REPEATED_AFTER_S", after_s)

    def run():
        with wrn.signals.defer_signals(protect):
            in_del()
            in_del()

    child = os.fork()
    if not child:
        with contextlib.suppress(BaseException):
            os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
            os._exit(wrn.command_line.exit_status(run))
        os._exit(1)
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    assert status == (-signal.SIGTERM if ends else 143)
