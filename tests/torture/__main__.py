"""Inject faults and bad input by the hundred: `make torture`, `make torture N=0.1`.

Every attempt runs the real programs, in a temporary folder and without a network. Prints a Markdown
table and, for each attempt that was not survived, what happened; the exit status is then 1.
"""

import argparse
import ctypes
import os
import random
import shutil
import sys
import tempfile
import threading
import time
import traceback
import warnings
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

os.environ |= {"CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"}  # before torch

from halves import write_data
from processes import ForkedPython, child_processes
from torture.checkpoints import checkpoints
from torture.harness import Attempt
from torture.inputs import command_lines, folders, images
from torture.runs import full_disk, interrupted, torchrun, two_processes

# Each makes an `Attempt` and fails if it is not survived. Paragraphs of its docstring are cells of
# the table: what is done, and what survived means.
CHECKS = {interrupted: 240, full_disk: 120, two_processes: 120, torchrun: 20, checkpoints: 480}
CHECKS |= {images: 600, folders: 160, command_lines: 600}  # attempts at N = 1

local = threading.local()  # of a thread: `python`, which starts its programs


def attempt(function: Callable, seed: int, folder: Path, index: int) -> str:
    """Make an attempt; return what went wrong, or an empty text."""
    own = folder / f"{function.__name__}-{index}"
    own.mkdir()
    rng = random.Random(f"{seed} {function.__name__} {index}")
    try:
        function(Attempt(own, folder / "shared", index, rng, local.python))
        return ""
    except Exception:
        return traceback.format_exc()
    finally:
        shutil.rmtree(own, ignore_errors=True)


def torture(function: Callable, indices: Sequence[int], seed: int, folder: Path, pool) -> int:
    """Make attempts and print a row of the table; return how many were not survived."""
    start, problems, name = time.monotonic(), 0, function.__name__
    outcomes = pool.map(partial(attempt, function, seed, folder), indices)
    for index, problem in zip(indices, outcomes, strict=True):
        problems += bool(problem)
        if problem:
            repeat = f"--seed {seed} --only {name} --attempt {index}"
            print(f"NOT SURVIVED, {repeat}: {problem}", file=sys.stderr, flush=True)
    what, means = (" ".join(part.split()) for part in function.__doc__.split("\n\n"))
    print(f"| {what} | {len(indices)} | {len(indices) - problems} | {means} |", flush=True)
    print(f"{name}: {time.monotonic() - start:.0f} s", file=sys.stderr, flush=True)
    return problems


def main() -> int:
    parser = argparse.ArgumentParser(prog="torture", description=__doc__.splitlines()[0])
    names = [check.__name__ for check in CHECKS]
    parser.add_argument("-n", type=float, default=1.0, help="fraction of the attempts to make")
    parser.add_argument("--seed", type=int, default=1, help="random seed")
    parser.add_argument("--only", choices=names, metavar="NAME", help=", ".join(names))
    parser.add_argument("--attempt", nargs=1, type=int, help="make only the attempt of this index")
    options, folder, pythons = parser.parse_args(), Path(tempfile.mkdtemp(prefix="torture-")), []
    ctypes.CDLL(None).prctl(36, 1, 0, 0, 0)  # PR_SET_CHILD_SUBREAPER: orphans become its children
    proxies = dict.fromkeys(("HTTP_PROXY", "HTTPS_PROXY", "https_proxy"), "http://127.0.0.1:9")
    os.environ |= {**proxies, "TORCH_HOME": str(folder), "TORCHDYNAMO_DISABLE": "1"}
    warnings.simplefilter("ignore")  # of PIL
    write_data(folder / "shared" / "images")

    def start_python() -> None:
        local.python = ForkedPython(Path(tempfile.mkdtemp(dir=folder)))
        pythons.append(local.python)

    print("| check | attempts | survived | survived means |\n|---|---|---|---|", flush=True)
    failed = 0
    with ThreadPoolExecutor(2, initializer=start_python) as pool:
        for function, count in CHECKS.items():
            indices = options.attempt or range(round(count * options.n) or 1)
            if options.only in (None, function.__name__):
                failed += torture(function, indices, options.seed, folder, pool)
    for python in pythons:
        python.close()
    end = time.monotonic() + 15  # the workers of a killed run look for it every 5 s
    while (left := child_processes(os.getpid())) and time.monotonic() < end:
        os.waitpid(-1, os.WNOHANG)
        time.sleep(0.05)
    shutil.rmtree(folder, ignore_errors=True)
    print(f"\nseed {options.seed}: {failed} not survived, {len(left)} processes left", flush=True)
    return 1 if failed or left else 0


if __name__ == "__main__":
    sys.exit(main())
