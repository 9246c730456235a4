"""Run a script in pairs of processes that form a process group, each pair with a fault.

    python paired_runs.py FOLDER CASES

FOLDER is a script folder and CASES a JSON list of dicts with these keys:
    fault: name of a function below.
    argv: arguments of the script.
    port: a free port.
    output: path that gets the suffixes .0 and .1, where the processes print to.
    file: path that process 1 must not leave before it exists; it exits with status 99 if it does.

Prints the pairs of exit statuses as a JSON list. A process that tears its group down, as Python's
own exit does, exits with status 98 instead.
"""

import atexit
import errno
import json
import os
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path

FOLDER = Path(__file__).parent.parent / sys.argv[1]
sys.path.insert(0, str(FOLDER))

import torch  # noqa: E402
import torch.distributed  # noqa: E402

import engine  # noqa: E402
from common import checkpoint, heartbeat, json_log  # noqa: E402
from common.leaving import run_script  # noqa: E402

if FOLDER.name == "imagenet":
    from training import TinyNetwork

    import train as script
    import weights

    script.build = TinyNetwork
else:
    import main as script

DEADLINE_S = 120


def before(owner: object, name: str, count: int, action: Callable[..., object]) -> None:
    """Call `action` with the arguments before call number `count` of a function."""
    original, calls = getattr(owner, name), iter(range(1, count + 1))

    def wrapped(*args, **kwargs):
        if next(calls, None) == count:
            action(*args)
        return original(*args, **kwargs)

    setattr(owner, name, wrapped)


def stop(rank: int) -> None:
    """Process 1 receives a signal in its second step; process 0 takes long to save."""
    if rank == 1:
        before(engine.Trainer, "train_step", 2, lambda *_: os.kill(os.getpid(), signal.SIGTERM))
    else:
        before(checkpoint, "save", 1, lambda *_: time.sleep(1))


def stop_later(rank: int) -> None:
    """Process 1 receives a signal after the first epoch of six steps."""
    if rank == 1:
        before(engine.Trainer, "train_step", 8, lambda *_: os.kill(os.getpid(), signal.SIGTERM))


def not_finite(rank: int) -> None:
    """The running mean of a batch norm of process 0 becomes NaN."""

    def spoil(trainer, *_):
        next(trainer.model.buffers()).fill_(float("nan"))

    if rank == 0:
        before(engine.Trainer, "train_step", 2, spoil)


def bug(rank: int) -> None:
    """Process 1 fails alone."""
    if rank == 1:
        before(engine.Trainer, "train_step", 2, lambda *_: 1 / 0)


def slow_export(rank: int) -> None:
    """Process 0 works longer than process 1."""
    if rank == 0:
        before(weights, "export_backbone", 1, lambda *_: time.sleep(1))


def full_disk(rank: int) -> None:
    """Process 0 cannot write the log."""

    def fail(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    if rank == 0:
        before(json_log.os, "fsync", 1, fail)


def silence(rank: int) -> None:
    """Process 1 neither ends nor gives another sign of life after its first one."""
    if rank == 1:
        heartbeat.INTERVAL_S = 3600.0
        before(script, "barrier", 1, lambda *_: torch.distributed.recv(torch.zeros(1), 0))
    else:
        heartbeat.INTERVAL_S, heartbeat.SILENCE_S = 0.05, 1.0


def run(case: dict, rank: int) -> None:
    """Run the script as one of the two processes. Never returns."""

    def main() -> int:
        status = script.main(case["argv"])
        missing = rank == 1 and case["file"] and not os.path.exists(case["file"])
        return 99 if missing else status

    output = os.open(f"{case['output']}.{rank}", os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(output, 1)
    os.dup2(output, 2)
    variables = {"WORLD_SIZE": "2", "RANK": str(rank), "MASTER_ADDR": "127.0.0.1"}
    os.environ.update(variables, MASTER_PORT=case["port"])
    torch.distributed.destroy_process_group = lambda: os._exit(98)
    atexit.register(os._exit, 98)
    globals()[case["fault"]](rank)
    run_script(main)


def wait(pid: int, end: float) -> int:
    """Return the exit status of a process, which is killed at the time `end`."""
    while time.monotonic() < end:
        ended, status = os.waitpid(pid, os.WNOHANG)
        if ended:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.02)
    os.kill(pid, signal.SIGKILL)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def start(case: dict, rank: int) -> int:
    """Fork a process and return its ID."""
    pid = os.fork()
    if not pid:
        try:
            run(case, rank)
        finally:
            os._exit(97)
    return pid


if __name__ == "__main__":
    torch.set_num_threads(1)
    pairs = [[start(case, rank) for rank in range(2)] for case in json.loads(sys.argv[2])]
    end = time.monotonic() + DEADLINE_S
    print(json.dumps([[wait(pid, end) for pid in pair] for pair in pairs]))
