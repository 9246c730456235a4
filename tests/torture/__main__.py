"""The command line of the harness: `make torture`, `make torture N=0.1`.

Prints a table in Markdown; every attempt that was not survived is shown, with the command that
repeats it, and makes the exit status 1.
"""

import argparse
import os
import sys
import tempfile
import time
from pathlib import Path

from torture import (
    damaged,
    downloads,
    flags,
    folders,
    full_disk,
    interrupted,
    long_run,
    pictures,
    processes,
)
from torture.attempts import Fault
from torture.harness import Outcome, outcomes, refuse_threads
from torture.scripts import import_all

NOWHERE = "http://127.0.0.1:9"
PROXIES = {"HTTP_PROXY": NOWHERE, "HTTPS_PROXY": NOWHERE, "NO_PROXY": "127.0.0.1"}
FAMILIES = (
    interrupted,
    processes,
    full_disk,
    damaged,
    pictures,
    folders,
    flags,
    downloads,
    long_run,
)
FAULTS = [fault for family in FAMILIES for fault in family.FAULTS]


def main() -> int:
    arguments = parse()
    import_all()
    refuse_threads()
    start, lost = time.monotonic(), 0
    # Whatever asks for another machine is told that there is none.
    for name, value in PROXIES.items():
        os.environ[name] = os.environ[name.lower()] = value
    print("| fault | times | survived | survived means |\n|---|---|---|---|", flush=True)
    with tempfile.TemporaryDirectory(prefix="torture-", ignore_cleanup_errors=True) as place:
        os.environ.update(TORCH_HOME=place, TMPDIR=place, TORCHINDUCTOR_CACHE_DIR=place)
        tempfile.tempdir = place
        for fault in FAULTS:
            if arguments.only in ("", fault.key):
                lost += torture(fault, arguments, Path(place))
    print(f"\nseed {arguments.seed}, {time.monotonic() - start:.0f} s, {lost} not survived")
    return 1 if lost else 0


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="torture", description=__doc__.splitlines()[0])
    parser.add_argument("-n", type=float, default=1.0, help="share of the attempts to make")
    parser.add_argument("--seed", type=int, default=1, help="of all that is drawn at random")
    parser.add_argument("--jobs", type=int, default=2, help="attempts at a time")
    parser.add_argument("--only", default="", choices=["", *(f.key for f in FAULTS)], help="fault")
    parser.add_argument("--attempt", type=int, help="the only attempt to make, by its number")
    return parser.parse_args()


def torture(fault: Fault, arguments: argparse.Namespace, place: Path) -> int:
    """Do a row of the table; returns how many attempts were not survived."""
    times = max(1, round(fault.times * arguments.n))
    indices = range(times) if arguments.attempt is None else [arguments.attempt]
    start, tried, lost = time.monotonic(), 0, 0
    for outcome in outcomes(fault, indices, arguments.seed, place, arguments.jobs):
        tried += 1
        if outcome.why:
            lost += 1
            report(outcome, arguments.seed)
        if sys.stderr.isatty():
            print(f"\r{fault.key} {tried}/{len(indices)}\033[K", end="\r", file=sys.stderr)
    print(f"| {fault.name} | {tried} | {tried - lost} | {fault.means} |", flush=True)
    print(f"{fault.key}: {time.monotonic() - start:.0f} s", file=sys.stderr)
    return lost


def report(outcome: Outcome, seed: int) -> None:
    again = f"python -m torture --seed {seed} --only {outcome.fault.key} --attempt {outcome.index}"
    print(
        f"NOT SURVIVED: {outcome.why}\n  again: cd tests && OMP_NUM_THREADS=1 {again}",
        file=sys.stderr,
        flush=True,
    )


if __name__ == "__main__":
    sys.exit(main())
