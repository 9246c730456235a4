"""Inject faults and count how many are survived: `make torture`, `make torture N=0.1`.

Prints a Markdown table. For every attempt that was not survived, it prints what went wrong and the
command that repeats the attempt; the exit status is then 1.
"""

import argparse
import os
import sys
import tempfile
import time
from pathlib import Path

from torture import (
    cluster,
    damaged,
    downloads,
    flags,
    folders,
    full_disk,
    images,
    interrupted,
    long_run,
    processes,
)
from torture.attempts import Fault
from torture.harness import Outcome, require_single_thread, run_attempts
from torture.scripts import import_all

UNREACHABLE = "http://127.0.0.1:9"
PROXIES = {"HTTP_PROXY": UNREACHABLE, "HTTPS_PROXY": UNREACHABLE, "NO_PROXY": "127.0.0.1"}
FAMILIES = (
    interrupted,
    processes,
    cluster,
    full_disk,
    damaged,
    images,
    folders,
    flags,
    downloads,
    long_run,
)
FAULTS = [fault for family in FAMILIES for fault in family.FAULTS]


def main() -> int:
    options = parse()
    import_all()
    require_single_thread()
    start, failures = time.monotonic(), 0
    # No attempt may reach another machine.
    for name, value in PROXIES.items():
        os.environ[name] = os.environ[name.lower()] = value
    print("| fault | attempts | survived | expected |\n|---|---|---|---|", flush=True)
    with tempfile.TemporaryDirectory(prefix="torture-", ignore_cleanup_errors=True) as folder:
        os.environ.update(TORCH_HOME=folder, TMPDIR=folder, TORCHINDUCTOR_CACHE_DIR=folder)
        tempfile.tempdir = folder
        for fault in FAULTS:
            if options.only in ("", fault.key):
                failures += torture(fault, options, Path(folder))
    seconds = time.monotonic() - start
    print(f"\nseed {options.seed}, {seconds:.0f} s, {failures} not survived")
    return 1 if failures else 0


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="torture", description=__doc__.splitlines()[0])
    parser.add_argument("-n", type=float, default=1.0, help="fraction of the attempts to make")
    parser.add_argument("--seed", type=int, default=1, help="random seed")
    parser.add_argument("--jobs", type=int, default=2, help="number of parallel attempts")
    parser.add_argument(
        "--only", default="", choices=["", *(f.key for f in FAULTS)], help="run only this fault"
    )
    parser.add_argument("--attempt", type=int, help="run only the attempt with this index")
    return parser.parse_args()


def torture(fault: Fault, options: argparse.Namespace, folder: Path) -> int:
    """Print a row of the table; return how many attempts were not survived."""
    if fault.missing and (reason := fault.missing()):
        print(f"| {fault.name} | 0 | | skipped: {reason} |", flush=True)
        return 0
    count = max(1, round(fault.attempts * options.n))
    indices = range(count) if options.attempt is None else [options.attempt]
    start, done, failures = time.monotonic(), 0, 0
    for outcome in run_attempts(fault, indices, options.seed, folder, options.jobs):
        done += 1
        if outcome.failure:
            failures += 1
            report(outcome, options.seed)
        if sys.stderr.isatty():
            print(f"\r{fault.key} {done}/{len(indices)}\033[K", end="\r", file=sys.stderr)
    print(f"| {fault.name} | {done} | {done - failures} | {fault.expected} |", flush=True)
    print(f"{fault.key}: {time.monotonic() - start:.0f} s", file=sys.stderr)
    return failures


def report(outcome: Outcome, seed: int) -> None:
    """Print why an attempt was not survived, and how to repeat it."""
    command = f"python -m torture --seed {seed} --only {outcome.fault.key}"
    print(
        f"NOT SURVIVED: {outcome.failure}\n  repeat with: cd tests && OMP_NUM_THREADS=1 {command} "
        f"--attempt {outcome.index}",
        file=sys.stderr,
        flush=True,
    )


if __name__ == "__main__":
    sys.exit(main())
