"""Disks and memory of a run on two machines, which are simulated by namespaces."""

import contextlib
import shutil
import time
from pathlib import Path

from torture.attempts import Attempt, expect
from torture.children import POLL_S
from torture.cluster_runs import END_S, Cluster, cluster
from torture.namespaces import run
from torture.runs import TRAINING_RUN

# A batch of 37 MiB from each of two workers of a machine.
BIG_BATCHES = "--epochs 1 -b 64 --image-size 640 -j 2".split()


def save_not_shared(attempt: Attempt) -> None:
    """Interrupt and resume a run whose machines each have their own folder."""
    with cluster(attempt, private=True) as nodes:
        own, other = (machine.disk for machine in nodes.machines)
        nodes.start()
        nodes.sleep_until_random_moment()
        if attempt.rng.random() < 0.5:  # the second machine has a checkpoint too, perhaps older
            with contextlib.suppress(FileNotFoundError):
                shutil.copy(own / "checkpoint.pt", other)
            nodes.sleep_until_random_moment()
        for machine in nodes.machines:
            machine.kill()
        nodes.start()
        results = nodes.end(END_S)
        shutil.copytree(own, nodes.save, dirs_exist_ok=True)
        nodes.share_save()
        nodes.expect_survival(results, "shared")


def disk_full(attempt: Attempt) -> None:
    """Fill the disk that contains the folder of the run."""
    with cluster(attempt) as nodes:
        nodes.save.mkdir()
        run("mount", "-t", "tmpfs", "-o", "size=8m", "tmpfs", str(nodes.save))
        nodes.start()
        nodes.sleep_until_random_moment()
        fill(nodes.save / "other")
        results = nodes.end(END_S)
        (nodes.save / "other").unlink()
        nodes.expect_survival(results, "space")


def slow_save(attempt: Attempt) -> None:
    """Stop a run in, or in half of imagenet/'s attempts before, a save of 45 s, which must last."""
    request = attempt.folder / "slow-save"
    with cluster(attempt) as nodes:
        nodes.variables["TORCH_ELASTIC_SHUTDOWN_TIMEOUT"] = "100"
        if nodes.run == TRAINING_RUN and attempt.index // 2 % 2:
            nodes.start()
            nodes.wait_for_epoch(0)
            nodes.sleep_until_random_moment()
            request.touch()
        else:
            request.write_text(str(attempt.rng.randrange(1, nodes.run.saves)))
            nodes.start()
            while request.exists() and not nodes.any_ended():
                time.sleep(POLL_S)
            time.sleep(3 * attempt.rng.random())
        for machine in attempt.rng.choice((nodes.machines, *zip(nodes.machines, strict=True))):
            machine.terminate()
        results = nodes.end(END_S)
        is_kept = (attempt.folder / "saved").exists() or request.exists()
        expect(is_kept, "the slow save was lost", nodes.describe(nodes.machines[0], results[0]))
        nodes.expect_survival(results)


def small_shm(attempt: Attempt) -> None:
    """Fill a /dev/shm of 64 MiB, by large batches or by another program."""
    small = attempt.rng.choice(((0,), (1,), (0, 1)))
    with cluster(attempt, small_shm=small) as nodes:
        if nodes.run == TRAINING_RUN and attempt.index // 2 % 2:
            nodes.images, nodes.more = nodes.shared / "many", BIG_BATCHES
        elif nodes.run == TRAINING_RUN:
            nodes.more = ["-j", "2"]
        nodes.start()
        if nodes.more == BIG_BATCHES:
            nodes.expect_reasons(nodes.end(END_S), "--shm-size")
            return
        nodes.sleep_until_random_moment()
        for index in small:
            fill_shm(nodes, index)
        nodes.expect_survival(nodes.end(END_S), "--shm-size")


def fill_shm(nodes: Cluster, index: int) -> None:
    init = nodes.machines[index].init()
    if init:
        with contextlib.suppress(FileNotFoundError):  # it has just ended
            fill(Path(f"/proc/{init}/root/dev/shm/other"))


def fill(path: Path) -> None:
    """Write a file until the disk is full."""
    with contextlib.suppress(OSError), open(path, "wb", buffering=0) as file:
        while True:
            file.write(bytes(4096))
