"""Faults of a run on two machines, which are simulated by namespaces."""

import contextlib
import shutil
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import training
from synthetic import write_folders

from torture.attempts import Attempt, Fault, expect
from torture.children import POLL_S, ProcessResult
from torture.cluster_runs import END_S, FINISH_S, Cluster, cluster
from torture.namespaces import missing, run
from torture.runs import TRAINING_RUN
from torture.scripts import CIFAR, TRAINING

# A batch of 20 MiB from each of two workers of a machine.
BIG_BATCHES = "--epochs 1 -b 32 --image-size 640 -j 2".split()
RECOVERY_S = 240  # includes 60 s in which torchrun waits for another machine


def prepare(attempt: Attempt) -> None:
    """Write an undisturbed run of each script, once for all faults."""
    own = attempt.shared
    reference = own.parent / "cluster-reference"
    if not reference.exists():
        for attempt.index, script in enumerate((CIFAR, TRAINING)):
            write_reference(attempt, reference / script.module)
    own.rmdir()
    own.symlink_to(reference)


def write_reference(attempt: Attempt, shared: Path) -> None:
    training.write_data(shared / "images")
    for part, count in (("train", 32), ("val", 1)):
        write_folders(shared / "many", dict.fromkeys(("cat", "dog", "eel"), count), part)
    attempt.shared = shared.parent
    with cluster(attempt) as undisturbed:
        undisturbed.save = shared / "reference"
        start = time.monotonic()
        undisturbed.start()
        undisturbed.wait_for_epoch(0)
        (shared / "start_s").write_text(str(time.monotonic() - start))
        results = undisturbed.end(FINISH_S)
        for machine, result in zip(undisturbed.machines, results, strict=True):
            expect(result.status == 0, "status", undisturbed.describe(machine, result))


def machine_killed(attempt: Attempt) -> None:
    """Kill all processes of a machine, half of the time without a farewell of its network."""
    with cluster(attempt, restarts=3) as nodes:
        nodes.start()
        nodes.sleep_until_random_moment()
        victim = attempt.rng.choice(nodes.machines)
        if attempt.rng.random() < 0.5:
            victim.disconnect()
        victim.kill()
        time.sleep(5 * attempt.rng.random())
        nodes.start([victim])
        nodes.expect_success(nodes.restart_failed(RECOVERY_S))


def agent_stopped(attempt: Attempt) -> None:
    """Send SIGTERM to one torchrun; start its machine again if torchrun may restart processes."""
    restarts = 3 * (attempt.index // 2 % 2)
    with cluster(attempt, restarts=restarts) as nodes:
        nodes.start()
        nodes.sleep_until_random_moment()
        victim = attempt.rng.choice(nodes.machines)
        victim.terminate()
        if restarts:
            nodes.expect_success(nodes.restart_failed(RECOVERY_S))
        else:
            end_and_resume(nodes)


def link_cut(seconds: float, attempt: Attempt) -> None:
    """Cut the link of one machine, for good if `seconds` is 0."""
    with cluster(attempt) as nodes:
        nodes.start()
        nodes.sleep_until_random_moment()
        machine = attempt.rng.choice(nodes.machines)
        machine.disconnect()
        if seconds:
            time.sleep(seconds)
            machine.connect()
        end_and_resume(nodes)


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
        check_and_resume(nodes, results, "shared")


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
        check_and_resume(nodes, results, "space")


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
        check_and_resume(nodes, results)


def small_shm(attempt: Attempt) -> None:
    """Fill a /dev/shm of 64 MiB, by large batches or by another program."""
    small = attempt.rng.choice(((0,), (1,), (0, 1)))
    with cluster(attempt, small_shm=small) as nodes:
        if nodes.run == TRAINING_RUN and attempt.index // 2 % 2:
            nodes.more = ["--dataroot", str(nodes.shared / "many"), *BIG_BATCHES]
        elif nodes.run == TRAINING_RUN:
            nodes.more = ["-j", "2"]
        nodes.start()
        if "--dataroot" in nodes.more:
            results = nodes.end(END_S)
            nodes.expect_reasons(results, "--shm-size")
            return
        nodes.sleep_until_random_moment()
        for index in small:
            fill_shm(nodes, index)
        check_and_resume(nodes, nodes.end(END_S), "--shm-size")


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


def loopback_name(attempt: Attempt) -> None:
    """Give machines names that resolve to 127.0.1.1; name the interface in half of the attempts."""
    machines = attempt.rng.choice(((0,), (1,), (0, 1)))
    named = attempt.index // 2 % 2
    with cluster(attempt, loopback=machines) as nodes:
        if named:
            nodes.variables["GLOO_SOCKET_IFNAME"] = "eth0"
        nodes.start()
        results = nodes.end(END_S)
        if named or not any(result.status for result in results):
            nodes.expect_success(results)
            return
        nodes.expect_reasons(results, "GLOO_SOCKET_IFNAME")
        nodes.resume(GLOO_SOCKET_IFNAME="eth0")


def end_and_resume(nodes: Cluster) -> None:
    check_and_resume(nodes, nodes.end(END_S))


def check_and_resume(nodes: Cluster, results: list[ProcessResult], mention: str = "") -> None:
    """Expect success, or a reason from each machine and that the run can be resumed."""
    if any(result.status != 0 for result in results):
        nodes.expect_reasons(results, mention)
        nodes.resume()
    else:
        nodes.expect_success(results)


ENDS = f"within {END_S} s every machine ends with a line that names the reason"
SAME = "weights, momentum and log (except times) equal those of two undisturbed machines"
RESUMES = f"{ENDS}, and the resumed run's {SAME}"


def fault(key: str, name: str, expected: str, scenario: Callable[[Attempt], None]) -> Fault:
    name = f"two machines, `torchrun --nnodes 2`: {name}"
    return Fault(f"cluster-{key}", name, 10, expected, scenario, prepare, 600, missing)


FAULTS = [
    fault(
        "killed",
        "SIGKILL of a whole machine, which starts again; `--max-restarts 3`",
        f"the run finishes; {SAME}",
        machine_killed,
    ),
    fault(
        "stopped",
        "SIGTERM to one torchrun, with and without `--max-restarts 3`",
        f"{RESUMES}; with restarts, the run finishes when the machine starts again",
        agent_stopped,
    ),
    fault("cut-5s", "the link cut for 5 s", f"the run finishes; {SAME}", partial(link_cut, 5)),
    fault("cut", "the link cut for good", RESUMES, partial(link_cut, 0)),
    fault("not-shared", "`--save` not shared, the run resumed", RESUMES, save_not_shared),
    fault("disk-full", "the disk full", RESUMES, disk_full),
    fault(
        "slow-save", "SIGTERM while a save takes 45 s", f"the save is kept; {RESUMES}", slow_save
    ),
    fault("shm", "`/dev/shm` of 64 MiB, filled", RESUMES, small_shm),
    fault(
        "loopback",
        "host names that resolve to 127.0.1.1",
        f"{RESUMES}; with `GLOO_SOCKET_IFNAME`, the run finishes",
        loopback_name,
    ),
]
