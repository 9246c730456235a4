"""Runs of several processes, of which one is killed; and two runs that want the same folder."""

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

from torture.attempts import Attempt, Fault, expect, expect_refused
from torture.children import POLL_S, Child, Ended
from torture.interrupted import prepare_both
from torture.runs import CIFAR_RUN, TRAINING_RUN, SmallRun, cifar_words, expect_same_run, finish
from torture.scripts import CIFAR


def launched(attempt: Attempt, save: Path) -> Child:
    """Start the CIFAR side's small run in two processes, which may be started three times."""
    launcher = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", "2"]
    launcher += ["--max-restarts", "2", "--master-addr", "127.0.0.1", "--master-port"]
    launcher += [str(random.SystemRandom().randrange(20_000, 30_000))]
    words = [*launcher, str(CIFAR.folder.path / "main.py"), *cifar_words(attempt, save)]
    environment = {**os.environ, "CUDA_VISIBLE_DEVICES": ""}

    def exec_launcher() -> int:
        os.execve(sys.executable, words, environment)

    return Child(" ".join(words), exec_launcher, attempt.folder / save.name)


def prepare_launched(attempt: Attempt) -> None:
    save = attempt.shared / "reference"
    start = time.monotonic()
    ended = launched(attempt, save).wait(150)
    expect(ended.status == 0, "expected status 0", ended)
    (attempt.shared / "seconds").write_text(str(time.monotonic() - start))


def worker_killed(attempt: Attempt) -> None:
    """Kill one of the two some time after the run has begun; the launcher starts both again."""
    save = attempt.folder / "run"
    child = launched(attempt, save)
    try:
        records = attempt.draws.randint(0, 3)  # in the log when it happens
        while not child.ended() and logged(save) < records:
            time.sleep(POLL_S)
        while not (workers := children_of(child.pid)) and not child.ended():
            time.sleep(POLL_S)
        time.sleep(attempt.draws.random())
        os.kill(attempt.draws.choice(workers), signal.SIGKILL)
        ended = child.wait(150)
    finally:
        child.send(signal.SIGTERM)  # so that it ends its workers
    expect(ended.status == 0, "expected status 0", ended)
    expect("Traceback" not in ended.err, "a traceback", ended)
    expect_same_run(CIFAR_RUN, save, attempt.shared / "reference")


def logged(save: Path) -> int:
    log = save / CIFAR_RUN.log
    return log.read_text().count("\n") if log.exists() else 0


def children_of(pid: int) -> list[int]:
    listing = subprocess.run(["ps", "-o", "pid=", "--ppid", str(pid)], capture_output=True)
    return [int(word) for word in listing.stdout.split()]


def same_folder(attempt: Attempt) -> None:
    """Two runs are started at once; the one that has the folder waits in its first save."""
    run: SmallRun = (CIFAR_RUN, TRAINING_RUN)[attempt.index % 2]
    attempt.shared /= run.script.module
    save, refused = attempt.folder / "run", attempt.folder / "refused"

    def before() -> None:
        run.before()
        checkpoint = run.script.folder.checkpoint
        whole = checkpoint.write_atomically

        def wait_and_write(*arguments):
            while not refused.exists():
                time.sleep(POLL_S)
            whole(*arguments)

        checkpoint.write_atomically = wait_and_write

    words = run.words(attempt, save)
    both = [attempt.start(run.script, words, before) for _ in range(2)]
    while not any(child.ended() for child in both):
        time.sleep(POLL_S)
    refused.touch()
    ended: list[Ended] = [child.wait(60) for child in both]
    ended.sort(key=lambda each: each.status == 2)
    expect(ended[0].status == 0, "expected status 0", ended[0])
    expect_refused(ended[1], "another run is writing there")
    finish(run, attempt, save)


FAULTS = [
    Fault(
        "worker",
        "SIGKILL of a worker of `torchrun --nproc_per_node 2 --max-restarts 2`",
        5,
        "the run ends by itself; weights and log are those of two processes never disturbed",
        worker_killed,
        prepare_launched,
        limit_s=240,
    ),
    Fault(
        "same-folder",
        "two runs given the same `--save` at once",
        5,
        "the second is refused in one line; the first ends as if alone",
        same_folder,
        prepare_both,
    ),
]
