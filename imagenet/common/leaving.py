"""Leave a process group. It is never torn down, because that can wait for a peer for ever.

`destroy_process_group` waits for the other processes: with gloo without a limit (PyTorch 2.6), with
NCCL until its watchdog ends the process. Python's own exit tears the group down as well.
"""

import contextlib
import multiprocessing
import os
import sys
import time
import traceback
from collections.abc import Callable
from typing import NoReturn

import torch.distributed as dist

WAIT_S = 60


def run_script(main: Callable[[], int]) -> NoReturn:
    """Call `main` and end the process with the status that it returns."""
    try:
        status = main()
    except Exception:
        if not dist.is_initialized():
            raise
        traceback.print_exc()
        status = 1
    if not dist.is_initialized():
        sys.exit(status)
    leave(status)


def leave(status: int) -> NoReturn:
    """End this process and its children at once."""
    for child in multiprocessing.active_children():  # DataLoader workers
        child.terminate()
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError):
            stream.flush()
    os._exit(status)


def wait_for_peers(store: dist.Store, own_rank: int, count: int) -> None:
    """Wait until all `count` processes have called this, so that none leaves another in its work.

    A process that has failed never calls it. The wait therefore ends after `WAIT_S` seconds.
    """
    end = time.monotonic() + WAIT_S
    with contextlib.suppress(RuntimeError):  # the store is gone
        store.add("finished", 1)
        wait_for_count(store, "finished", count, end)
        # Process 0 leaves last, because without torchrun it holds the store.
        if own_rank == 0:
            wait_for_count(store, "left", count - 1, end)
        else:
            store.add("left", 1)


def wait_for_count(store: dist.Store, key: str, count: int, end: float) -> None:
    """Wait until the value of `key` is `count`, or until the time `end`."""
    while store.add(key, 0) < count and time.monotonic() < end:
        time.sleep(0.02)
