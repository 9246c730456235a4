"""Faults of a run on two machines, which are simulated by namespaces."""

import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import training
from synthetic import write_folders

from torture.attempts import Attempt, Fault, expect
from torture.cluster_disks import disk_full, save_not_shared, slow_save, small_shm
from torture.cluster_runs import END_S, FINISH_S, cluster
from torture.namespaces import missing
from torture.scripts import CIFAR, TRAINING

TCP_RETRIES = 7  # torchrun's connections fail after about one minute instead of 15
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
    for part, count in (("train", 80), ("val", 1)):
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
            nodes.expect_survival(nodes.end(END_S))


def link_cut(seconds: float, attempt: Attempt) -> None:
    """Cut the link of one machine, for good if `seconds` is 0."""
    with cluster(attempt, retries=0 if seconds else TCP_RETRIES) as nodes:
        nodes.start()
        nodes.sleep_until_random_moment()
        machine = attempt.rng.choice(nodes.machines)
        machine.disconnect()
        if seconds:
            time.sleep(seconds)
            machine.connect()
        nodes.expect_survival(nodes.end(END_S))


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
    fault(
        "cut",
        f"the link cut for good, with `net.ipv4.tcp_retries2={TCP_RETRIES}`",
        RESUMES,
        partial(link_cut, 0),
    ),
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
