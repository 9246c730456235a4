"""DataLoader workers: their signals, their shared memory, and their failures in one line."""

import contextlib
import errno
import multiprocessing
import os
import re
import shutil
import signal
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
from torch import Tensor
from torch.utils.data import default_collate, get_worker_info

from common.command_line import UserError

SHARED_MEMORY = Path("/dev/shm")  # on Linux


class WorkerSignalGuard:
    """Keep DataLoader workers alive on termination signals until the block ends.

    Terminals and schedulers signal every process of a run, but the main process needs its workers
    to finish the current step. They therefore ignore the signals, and obey SIGTERM, with which
    DataLoader terminates them, only after the block.

    A worker that dies raises an error wherever the main process happens to be. The block turns it
    into a `UserError`.
    """

    def __init__(self):
        try:
            self._finished = multiprocessing.Event()
        except OSError as error:
            if error.errno != errno.ENOSPC:
                raise
            raise UserError(out_of_shared_memory()) from error

    def __enter__(self) -> "WorkerSignalGuard":
        return self

    def __exit__(self, kind, error, traceback) -> None:
        self._finished.set()
        if reason := worker_failure(error):
            raise UserError(reason) from error

    def __call__(self, worker: int) -> None:
        """Set up a worker; for DataLoader's argument `worker_init_fn`."""
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        signal.signal(signal.SIGHUP, signal.SIG_IGN)
        signal.signal(signal.SIGTERM, self._exit_if_finished)

    def _exit_if_finished(self, signum, frame) -> None:
        if self._finished.is_set():
            os._exit(0)


def collate(samples: Sequence[tuple[Tensor, int]]) -> list[Tensor]:
    """Stack images, channels last in memory, and labels; in a worker, both in shared memory.

    Images are decoded channels last. Another order would take longer than their augmentation.

    DataLoader's own function leaves the labels to a thread that sends the batch. If shared memory
    is full, that thread drops the batch, and the main process waits for it forever. An error raised
    here reaches the main process.
    """
    images, labels = zip(*samples, strict=True)
    nhwc = torch.stack([image.permute(1, 2, 0) for image in images])
    batch = [nhwc.permute(0, 3, 1, 2), default_collate(labels)]
    if get_worker_info():
        for tensor in batch:
            tensor.share_memory_()
    return batch


@contextlib.contextmanager
def worker_errors() -> Iterator[None]:
    """Raise one line, as `UserError`, for an error of a worker in the block, or of its death."""
    try:
        yield
    except UserError as error:
        # DataLoader puts the worker's traceback before the message. The traceback of this process
        # is dropped because it forms a reference cycle that would keep the workers alive.
        reason = str(error).rsplit("UserError: ", 1)[-1]
        raise UserError(reason) from error.with_traceback(None)
    except RuntimeError as error:
        if reason := worker_failure(error):
            raise UserError(reason) from error.with_traceback(None)
        raise


def worker_failure(error: BaseException | None) -> str | None:
    """Return one line about the failure of a worker or of the thread that pins memory.

    Returns:
        None if the error is another one.
    """
    if not isinstance(error, RuntimeError):
        return None
    text = str(error)
    if not any(source in text for source in ("DataLoader worker", "in memory thread")):
        return None
    if "DataLoader worker" in str(error.__cause__):  # it says by which signal
        text = str(error.__cause__)
    if any(sign in text for sign in ("shared memory", os.strerror(errno.ENOSPC), "Bus error")):
        return out_of_shared_memory()
    if refused := re.search(r"file </torch_[^>]*>.*: (.+) \(\d+\)", text):
        return (
            f"a DataLoader worker cannot create shared memory ({refused[1]}); raise the limit, "
            "which `ulimit -a` shows, or use -j 0"
        )
    if "Caught" in text and "DataLoader worker" in text:
        return None  # an error of the code that a worker ran: a bug
    return (
        f"reading the images failed ({text.splitlines()[-1].strip()}), usually because memory ran "
        "out; use a smaller -j or -b, and in Docker a larger --shm-size or --ipc=host"
    )


def out_of_shared_memory() -> str:
    """Return one line for workers that find no shared memory."""
    size = ""
    if SHARED_MEMORY.is_dir():
        size = f" ({SHARED_MEMORY} has {shutil.disk_usage(SHARED_MEMORY).total / 2**20:,.0f} MiB)"
    return (
        f"the DataLoader workers ran out of shared memory{size}; in Docker, start the container "
        "with a larger --shm-size, such as --shm-size=8g, or with --ipc=host; or use a smaller -j "
        "or -b"
    )
