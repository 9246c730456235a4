"""Join the process group of a run that torchrun, or a scheduler, has started."""

import contextlib
import os
import time
import uuid
from collections.abc import Iterator
from datetime import timedelta

import torch
import torch.distributed as dist

from .command_line import UserError
from .heartbeat import Heartbeat
from .host_names import check_host_names
from .leaving import wait_for_peers

START_S = 90  # torchrun starts all processes at about the same time; imports take some of it


@contextlib.contextmanager
def process_group(device: torch.device) -> Iterator[None]:
    """Initialize the group for the block, in which the processes watch each other.

    The environment variables of torchrun say who belongs to it; without them there is no group. It
    is not destroyed after the block: call the script with `run_script`.

    Args:
        device: of this process.

    Raises:
        UserError: other machines cannot connect to one of the machines, or a process has not
            started in time.
    """
    if "WORLD_SIZE" not in os.environ or "RANK" not in os.environ:
        yield
        return
    limit = timedelta(seconds=START_S)
    store, rank, count = next(dist.rendezvous("env://", timeout=limit))
    if "TORCHELASTIC_RUN_ID" in os.environ:
        prefix = fresh_store_prefix(store, rank, count)
    else:
        prefix = "run"
    store = dist.PrefixStore(prefix, store)
    check_host_names(store, rank, count)
    own_connection = dist.TCPStore(os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"]))
    with Heartbeat(dist.PrefixStore(prefix, own_connection), rank, count):
        dist.init_process_group(
            "nccl" if device.type == "cuda" else "gloo",
            store=store,
            rank=rank,
            world_size=count,
            device_id=device if device.type == "cuda" else None,  # that of this process's NCCL
        )
        yield
        wait_for_peers(store, rank, count)


def fresh_store_prefix(store: dist.Store, own_rank: int, count: int) -> str:
    """Return a key prefix of torchrun's store that no earlier start of the processes has used.

    When torchrun restarts the processes (PyTorch 2.14), it keeps its store and with it the
    addresses of processes that have exited. Process 0 therefore chooses a new prefix. It announces
    the prefix under a random token of each process, which only a running process waits for.

    Raises:
        UserError: another process has not started within `START_S` seconds; raised by process 0.
    """
    token = uuid.uuid4().hex
    if own_rank != 0:
        store.set(f"token of {own_rank}", token)
        prefix = store.get(f"prefix for {token}").decode()  # blocks until it is set
        store.set(f"{prefix} received by {own_rank}", "")
        return prefix
    prefix, waiting, end = token, list(range(1, count)), time.monotonic() + START_S
    while waiting:
        if time.monotonic() > end:
            raise UserError(
                f"process {waiting[0]} of this run has not started within {START_S} s; check its "
                "machine and the network, then resume the run"
            )
        for other in waiting:
            if store.check([f"token of {other}"]):  # may be that of a process that has exited
                store.set(f"prefix for {store.get(f'token of {other}').decode()}", prefix)
        time.sleep(0.02)
        waiting = [other for other in waiting if not store.check([f"{prefix} received by {other}"])]
    return prefix
