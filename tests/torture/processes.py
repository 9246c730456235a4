"""Runs of several processes, one of which is killed; two runs with the same folder."""

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

from torture.attempts import Attempt, Fault, expect, expect_user_error
from torture.children import POLL_S, Child, ProcessResult
from torture.interrupted import prepare_both
from torture.runs import (
    CIFAR_RUN,
    TRAINING_RUN,
    SmallRun,
    cifar_argv,
    expect_same_run,
    resume_and_compare,
)
from torture.scripts import CIFAR


def start_torchrun(attempt: Attempt, save: Path) -> Child:
    """Start the small run of wrn_DKS/ in two processes, with up to two restarts."""
    launcher = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", "2"]
    launcher += ["--max-restarts", "2", "--master-addr", "127.0.0.1", "--master-port"]
    launcher += [str(random.SystemRandom().randrange(20_000, 30_000))]
    argv = [*launcher, str(CIFAR.folder.path / "main.py"), *cifar_argv(attempt, save)]
    environment = {**os.environ, "CUDA_VISIBLE_DEVICES": ""}

    def exec_launcher() -> int:
        os.execve(sys.executable, argv, environment)

    return Child(" ".join(argv), exec_launcher, attempt.folder / save.name)


def prepare_torchrun(attempt: Attempt) -> None:
    result = start_torchrun(attempt, attempt.shared / "reference").wait(150)
    expect(result.status == 0, "expected status 0", result)


def worker_killed(attempt: Attempt) -> None:
    """Kill one of the two processes at a random moment; torchrun restarts both."""
    save = attempt.folder / "run"
    child = start_torchrun(attempt, save)
    try:
        epochs = attempt.rng.randint(0, 3)  # in the log at the time
        while not child.has_ended() and logged_epochs(save) < epochs:
            time.sleep(POLL_S)
        while not (workers := children_of(child.pid)) and not child.has_ended():
            time.sleep(POLL_S)
        time.sleep(attempt.rng.random())
        os.kill(attempt.rng.choice(workers), signal.SIGKILL)
        result = child.wait(150)
    finally:
        child.send(signal.SIGTERM)  # torchrun then ends its workers
    expect(result.status == 0, "expected status 0", result)
    expect("Traceback" not in result.err, "a traceback", result)
    expect_same_run(CIFAR_RUN, save, attempt.shared / "reference")


def logged_epochs(save: Path) -> int:
    log = save / CIFAR_RUN.log
    return log.read_text().count("\n") if log.exists() else 0


def children_of(pid: int) -> list[int]:
    listing = subprocess.run(["ps", "-o", "pid=", "--ppid", str(pid)], capture_output=True)
    return [int(word) for word in listing.stdout.split()]


def same_folder(attempt: Attempt) -> None:
    """Start two runs at once; the one that locks the folder waits in its first save."""
    run: SmallRun = (CIFAR_RUN, TRAINING_RUN)[attempt.index % 2]
    attempt.shared /= run.script.module
    save, refused = attempt.folder / "run", attempt.folder / "refused"

    def before() -> None:
        run.before()
        checkpoint = run.script.folder.checkpoint
        original = checkpoint.write_atomically

        def wait_and_write(*arguments):
            while not refused.exists():
                time.sleep(POLL_S)
            original(*arguments)

        checkpoint.write_atomically = wait_and_write

    argv = run.argv(attempt, save)
    both = [attempt.start(run.script, argv, before) for _ in range(2)]
    while not any(child.has_ended() for child in both):
        time.sleep(POLL_S)
    refused.touch()
    results: list[ProcessResult] = [child.wait(60) for child in both]
    results.sort(key=lambda each: each.status == 2)
    expect(results[0].status == 0, "expected status 0", results[0])
    expect_user_error(results[1], "another run is writing there")
    resume_and_compare(run, attempt, save)


FAULTS = [
    Fault(
        "worker",
        "SIGKILL of a worker of `torchrun --nproc_per_node 2 --max-restarts 2`",
        5,
        "the run finishes; weights and log equal those of two uninterrupted processes",
        worker_killed,
        prepare_torchrun,
        limit_s=240,
    ),
    Fault(
        "same-folder",
        "two runs with the same `--save` at once",
        5,
        "one-line error for the second; the first ends as if alone",
        same_folder,
        prepare_both,
    ),
]
