"""DataLoader workers that fail end a run in one line, never in a hang."""

import os
import signal
import threading
from types import SimpleNamespace

import pytest
import torch
from evaluation import NETWORK, run_main, write_checkpoint, write_validation_set
from torch.utils.data import DataLoader
from training import command_line, run_train, write_data

CPU = torch.device("cpu")
FULL = "unable to allocate shared memory(shm) for file </torch_1>: No space left on device (28)"
DEADLINE_S = 60  # of a batch; instead of a hang


class Images:
    """A data set whose items call a function first."""

    def __init__(self, count, call):
        self._count = count
        self._call = call

    def __len__(self):
        return self._count

    def __getitem__(self, index):
        self._call()
        return torch.zeros(3, 4, 4), index


def share_nothing_more():
    """Make this process's shared memory full for everything that is not in it yet."""
    share = torch.UntypedStorage._share_fd_cpu_

    def share_if_shared(storage, *args, **options):
        if not storage.is_shared():
            raise RuntimeError(FULL)
        return share(storage, *args, **options)

    torch.UntypedStorage._share_fd_cpu_ = share_if_shared


def die_of_bus_error():
    os.kill(os.getpid(), signal.SIGBUS)


@pytest.mark.parametrize("failure", [share_nothing_more, die_of_bus_error])
def test_full_shared_memory_is_an_error_and_no_hang(imagenet, failure):
    """The labels of a batch must not be moved to shared memory by the thread that sends it."""
    with (
        pytest.raises(imagenet.command_line.UserError, match="--shm-size=8g.* --ipc=host"),
        imagenet.workers.WorkerSignalGuard() as guard,
    ):
        loader = imagenet.loader.evaluation_loader(Images(4, failure), 2, 1, CPU, guard)
        loader.timeout = DEADLINE_S
        list(imagenet.loader.device_batches(loader, CPU))


def test_batches_of_workers_are_those_of_the_main_process(imagenet):
    for workers in (0, 1):
        with imagenet.workers.WorkerSignalGuard() as guard:
            data = Images(3, lambda: None)
            loader = imagenet.loader.evaluation_loader(data, 2, workers, CPU, guard)
            batches = list(imagenet.loader.device_batches(loader, CPU))
        assert [labels.tolist() for _, labels in batches] == [[0, 1], [2]]
        assert [images.shape for images, _ in batches] == [(2, 3, 4, 4), (1, 3, 4, 4)]


def test_scripts_name_full_shared_memory(imagenet, tmp_path, capfd, monkeypatch):
    monkeypatch.setattr(imagenet.data.ImageFiles, "__getitem__", lambda *_: die_of_bus_error())
    weights = write_checkpoint(tmp_path / "a.pth")
    data = write_validation_set(imagenet, tmp_path / "validation")
    status, _, errors = run_main(imagenet, capfd, data, *NETWORK, weights, "-j", "1")
    assert status == 2 and "--ipc=host" in errors.splitlines()[-1]
    argv = command_line(write_data(tmp_path / "data"), tmp_path / "run", "-j", "1")
    assert run_train(imagenet, argv) == 2
    errors = capfd.readouterr().err
    assert "--ipc=host" in errors.splitlines()[-1] and "Traceback" not in errors


def test_a_dead_pin_memory_thread_is_an_error(imagenet):
    """Memory is pinned for GPUs only; the CPU's loader is given a thread that has ended."""
    loader = DataLoader(Images(4, lambda: None), 2, num_workers=1, persistent_workers=True)
    list(loader)
    thread = threading.Thread(target=lambda: None)
    thread.start()
    thread.join()
    loader._iterator._pin_memory = True
    loader._iterator._pin_memory_thread = thread
    loader._iterator._pin_memory_thread_done_event = threading.Event()
    with pytest.raises(imagenet.command_line.UserError, match=r"Pin memory thread.* --shm-size"):
        list(imagenet.loader.device_batches(loader, CPU))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("DataLoader worker (pid 7) is killed by signal: Bus error. ", "ran out of shared memory"),
        ("DataLoader worker (pid 7) is killed by signal: Killed. ", "Killed.*-j or -b"),
        ("DataLoader worker (pid(s) 7) exited unexpectedly", "--shm-size or --ipc=host"),
        (f"Caught RuntimeError in pin memory thread for device 0.\n  x\n{FULL}", "--shm-size"),
    ],
)
def test_the_error_of_a_worker_may_come_at_any_moment(imagenet, text, message):
    """A signal handler raises it, so it need not come from the loader."""
    with (
        pytest.raises(imagenet.command_line.UserError, match=message),
        imagenet.workers.WorkerSignalGuard(),
    ):
        raise RuntimeError(text)


def test_other_errors_of_workers_keep_their_traceback(imagenet):
    for text in ("a bug", "Caught RuntimeError in DataLoader worker process 0.\n  x\na bug"):
        with pytest.raises(RuntimeError, match="a bug"), imagenet.workers.WorkerSignalGuard():
            raise RuntimeError(text)


def test_no_shared_memory_at_all_is_an_error(imagenet, monkeypatch):
    def event():
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(imagenet.workers, "multiprocessing", SimpleNamespace(Event=event))
    with pytest.raises(imagenet.command_line.UserError, match="--shm-size"):
        imagenet.workers.WorkerSignalGuard()
