"""Runs that are killed, stopped or out of disk space, in one process or two."""

import os
import resource
import subprocess
import time
from pathlib import Path
from signal import SIGINT, SIGKILL, SIGTERM, Signals

import torch.distributed.run
from halves import IMAGENET, OPTIONS, WRN, assert_same_run
from processes import child_processes, free_ports
from torture.harness import PROGRAMS, SHARED, Attempt, Result

DIGITS = "--dataset digits --depth 10 --width 0.25 -b 256 --epochs 3 --device cpu".split()
FOLDER, TINY = [*WRN, *OPTIONS, "--dataroot"], [*IMAGENET, *OPTIONS, "--dataroot"]
CASES = {  # the program, its options, and others; without these, a run is saved once an epoch
    "digits": ("wrn", DIGITS, ""),
    "digits, each step": ("wrn", DIGITS, "--checkpoint-minutes 0 --dropout --ema 0.5"),
    "folder": ("wrn", FOLDER, "--checkpoint-minutes 0.001 --mixup 1 --epochs 5"),
    "tiny": ("train", TINY, "--epochs 5 --grad-accumulation 2"),
    "tiny, each step": ("train", TINY, "--checkpoint-minutes 0 --ema 0.5 -j 1 --dtype bfloat16"),
    "tiny, cached": ("train", TINY, "--checkpoint-minutes 0.001 --cutmix 1 --cache cache"),
}
STEPS = {"digits": 18, "digits, each step": 18, "folder": 15, "tiny": 15}  # with two processes
SECONDS: dict[Path, float] = {}  # that a run has taken, by its folder


def command(attempt: Attempt, case: str, save: Path) -> tuple[str, list]:
    """Return the program of a case, and its arguments."""
    program, options, others = CASES[case]
    data = [] if options is DIGITS else [attempt.shared / "images"]
    return program, [*options, *data, *others.split(), "--save", save, "--resume", "auto"]


def start(attempt: Attempt, case: str, save: Path, processes: int, fault: str = "") -> list[int]:
    """Start a run in one or two processes; return their IDs."""
    group = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": free_ports(1)[0]}
    arguments, group = (*command(attempt, case, save), fault), group if processes == 2 else {}
    return [attempt.start(*arguments, RANK=str(rank), **group) for rank in range(processes)]


def finish(attempt: Attempt, case: str, save: Path, processes: int = 1) -> float:
    """Start or resume a run, which must finish; return how many seconds that takes."""
    pids = start(attempt, case, save, processes)
    attempt.wait_for(save / "lock", pids[0])
    start_s = time.monotonic()
    for pid in pids:
        attempt.wait(pid, f"{case}, {processes} processes").expect_success()
    return time.monotonic() - start_s


def reference(attempt: Attempt, case: str, processes: int = 1) -> Path:
    """Return the folder of an uninterrupted run, which is made on the first call."""
    folder = attempt.shared / f"{case}, {processes}"
    with SHARED:
        if folder not in SECONDS:
            finish(attempt, case, folder, processes)
            SECONDS[folder] = finish(attempt, case, attempt.folder / "again", processes)
    return folder


def expect_same(save: Path, expected: Path) -> None:
    """Expect the weights, the optimizer and the log of another run, and no temporary files."""
    assert_same_run(save, expected)
    left = [path.name for path in save.iterdir() if path.name.endswith((".tmp", ".partial"))]
    assert not left, f"temporary files left behind: {left}"


def is_finished(result: Result) -> bool:
    return "[ensemble]" in result.out or "already finished" in result.out


def interrupted(attempt: Attempt) -> None:
    """SIGKILL, SIGTERM or SIGINT of a run at random moments until it is done; `--resume auto`; or
    a second run with the same `--save`

    exit status 137, 143 or 130, or one line for the second run; in the end, weights, momentum and
    log (except times) equal an uninterrupted run's, to the bit
    """
    rng, save = attempt.rng, attempt.folder / "run"
    case = list(CASES)[attempt.index % len(CASES)]
    expected, status = reference(attempt, case), 1
    while status and rng.random() < 0.8:
        signum = rng.choice((SIGKILL, SIGKILL, SIGTERM, SIGINT))
        (save / "lock").unlink(missing_ok=True)
        pid = attempt.start(*command(attempt, case, save))
        attempt.wait_for(save / "lock", pid)
        time.sleep(rng.random() * SECONDS[expected])
        if rng.random() < 0.1:  # this one may also come after the other
            attempt.run(*command(attempt, case, save)).expect_success_or_error("another run")
        os.kill(pid, signum)
        result = attempt.wait(pid, f"{case}, {Signals(signum).name}")
        status, stopped = result.status, -signum if signum == SIGKILL else 128 + signum
        allowed = {stopped, 0, 1, -signum} if is_finished(result) else {stopped}  # 1: at the end
        if signum == SIGTERM and "\nepoch " not in result.out:
            allowed.add(-signum)  # the run did not yet handle signals
        assert status in allowed, f"expected a status of {allowed}: {result}"
        if status == stopped > 0:
            result.expect_error(f"stopped by {Signals(signum).name}", stopped)
    finish(attempt, case, save)
    expect_same(save, expected)


def full_disk(attempt: Attempt) -> None:
    """a full disk: a small one, or from a random moment on at a random byte of any file

    one line and a whole checkpoint; resumed with free space, the same result
    """
    rng, case = attempt.rng, list(CASES)[attempt.index % len(CASES)]
    expected, disk = reference(attempt, case), attempt.folder / "disk"
    largest = (expected / "checkpoint.pt").stat().st_size
    attempt.folder, is_mounted = disk, os.geteuid() == 0 and rng.random() < 0.5
    disk.mkdir()
    if is_mounted:
        size = f"size={rng.randrange(4096, int(2.5 * largest) + 32_768)}"
        subprocess.run(["mount", "-t", "tmpfs", "-o", size, "torture", disk], check=True)
    try:
        pid = attempt.start(*command(attempt, case, disk / "run"))
        if not is_mounted:
            time.sleep(rng.random() * SECONDS[expected])
            resource.prlimit(pid, resource.RLIMIT_FSIZE, (rng.randrange(largest), -1))
        attempt.wait(pid, f"{case}, full disk").expect_success_or_error()
        if is_mounted:
            subprocess.run(["mount", "-o", "remount,size=100m", disk], check=True)
        finish(attempt, case, disk / "run")
        expect_same(disk / "run", expected)
    finally:
        if is_mounted:
            subprocess.run(["umount", disk], check=True)


def two_processes(attempt: Attempt) -> None:
    """one of two processes is killed or stopped at a random moment, or fails: a bug, a loss that is
    not finite, a full disk

    both end within a minute, and a line names the reason; resumed, the result of two undisturbed
    processes, to the bit
    """
    rng, save = attempt.rng, attempt.folder / "run"
    case = list(STEPS)[attempt.index % len(STEPS)]
    expected, one = reference(attempt, case, 2), rng.randrange(2)
    kind = rng.choice("SIGKILL SIGTERM SIGINT moment moment bug nan disk".split())
    signum = Signals[kind] if kind[0] == "S" else rng.choice((SIGKILL, SIGTERM, SIGINT))
    one *= kind != "disk"  # only rank 0 writes
    is_timed = kind in ("moment", "disk")
    fault = "" if is_timed else f"{one} {rng.randrange(STEPS[case] - 1)} {kind}"
    both = start(attempt, case, save, 2, fault)
    if is_timed:
        attempt.wait_for(save / "lock", both[0])
        time.sleep(rng.random() * SECONDS[expected])
    if kind == "disk":
        resource.prlimit(both[0], resource.RLIMIT_FSIZE, (rng.randrange(2000), -1))
    elif kind == "moment":
        os.kill(both[one], signum)
    results = [attempt.wait(pid, (case, kind, signum, one), 60) for pid in both]
    finished, stopped = {0} if is_finished(results[0]) else set(), {128 + signum}
    allowed = {"bug": {1}, "nan": {2}, "disk": {0, 2}, "SIGKILL": {-SIGKILL}}.get(kind, stopped)
    allowed = allowed | finished | ({-signum} if kind == "moment" else set())
    assert results[one].status in allowed, f"expected a status of {allowed}: {results[one]}"
    assert results[1 - one].status in stopped | finished | {2}, f"{results[1 - one]}"
    for result in results:
        if result.status == 2:
            result.expect_error("not finite" if (result, kind) == (results[one], "nan") else "")
    finish(attempt, case, save, 2)
    expect_same(save, expected)


def torchrun(attempt: Attempt) -> None:
    """SIGKILL of workers of `torchrun --max-restarts 3`; SIGTERM of torchrun, started again

    the run finishes, with the result of two undisturbed processes
    """
    rng, case, save = attempt.rng, attempt.rng.choice(list(STEPS)), attempt.folder / "run"
    expected = reference(attempt, case, 2)
    program, argv = command(attempt, case, save)
    options = "--nproc_per_node 2 --max-restarts 3 --master_port".split() + free_ports(1)
    kill = f"{rng.randrange(2)} {rng.randrange(STEPS[case])} SIGKILL"
    signum, script = rng.choice((SIGKILL, SIGTERM)), torch.distributed.run.__file__
    for interrupts in (True, False):
        variables = {"FAULT": kill, "PYTHONPATH": str(PROGRAMS[program][1])}
        words = script, *options, PROGRAMS[program][0], *argv
        pid = attempt.python.start(*words, cwd=attempt.folder, variables=variables)
        if interrupts:
            attempt.wait_for(save / rng.choice(("lock", "log.jsonl")), pid)
            time.sleep(3 * rng.random())
            for each in [pid] if signum == SIGTERM else child_processes(pid)[:1]:
                os.kill(each, signum)
        result = attempt.wait(pid, f"torchrun, {case}, {signum}, {kill}", 240)
        if result.status == 0 or signum == SIGKILL:
            break
    assert result.status == 0, f"expected success: {result}"
    expect_same(save, expected)
