"""Rerun the study of baseline, deep supervision and DKS from its table of runs.

    python study.py --data DIR --out DIR --jobs 2

takes images from DIR/train/<class> and DIR/val/<class>; `--preset paper` trains the paper's
networks on CIFAR-100 in DIR instead. study/README.md says what is run and why. A run is done when
its log lies in study/PRESET; what is done is skipped, and what was begun goes on from its
checkpoint below --out.
"""

import argparse
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from command_line import Parser, Refused, exit_status, number, signals_wait
from epoch_log import LOG
from progress import duration
from study_data import prepare_data
from study_log import keep, log_path, read_run, read_study
from study_plan import Preset, Run, add_plan_flags, chosen_plan
from study_report import tables

MAIN = Path(__file__).with_name("main.py")


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit status."""
    return exit_status(lambda: study(parse(argv)))


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = Parser(prog="study.py", description="Train every run of the study that isn't done.")
    parser.add_argument(
        "--data", type=Path, required=True, metavar="DIR", help="train/ and val/ images, or CIFAR"
    )
    parser.add_argument(
        "--out", type=Path, required=True, metavar="DIR", help="checkpoints, outputs, links"
    )
    parser.add_argument(
        "--jobs",
        type=number(int, 1, 1000),
        default=1,
        help="runs at once; more than one have a thread each",
    )
    add_plan_flags(parser)
    return parser.parse_args(argv)


def study(options: argparse.Namespace) -> None:
    """Train what is to be trained, then print the tables.

    Raises:
        Refused: the data don't do, a log is of another plan, or a run failed.
    """
    preset, logs = chosen_plan(options)
    missing = [run for run in preset.runs() if not read_run(logs, run, preset)]
    print(f"{preset}, {len(missing)} of them to do; logs in {logs}", flush=True)
    if missing:
        dataroot = prepare_data(preset, options.data, options.out)
        logs.mkdir(parents=True, exist_ok=True)
        failed = train(
            missing, preset, Folders(dataroot, options.out / options.preset, logs), options.jobs
        )
        if failed:
            raise Refused(
                f"{len(failed)} of {len(missing)} runs failed: {', '.join(failed)}; the same "
                "command tries them again"
            )
    print(f"\n{tables(read_study(logs, preset), preset)}")


class Folders(NamedTuple):
    """Where the runs find and leave things."""

    data: Path
    out: Path
    logs: Path


def train(runs: Sequence[Run], preset: Preset, folders: Folders, jobs: int) -> list[str]:
    """Train the runs, so many at once, each in a process; returns the names of those that failed.

    However it ends, no process of it is left.
    """
    waiting, running, failed = list(runs), {}, []
    try:
        while waiting or running:
            while waiting and len(running) < jobs:
                run = waiting.pop(0)
                with signals_wait():  # none may arrive between a start and its entry here
                    running[start(run, preset, folders, jobs)] = run, time.perf_counter()
            time.sleep(0.1)
            for process in [process for process in running if process.poll() is not None]:
                run, since = running.pop(process)
                took = duration(time.perf_counter() - since)
                if process.returncode:
                    failed.append(run.name)
                    outcome = f"FAILED {run.name} after {took}: {reason(run, folders)}"
                else:
                    keep(save_of(run, folders) / LOG, log_path(folders.logs, run))
                    outcome = f"done {run.name} in {took}: {errors(run, preset, folders)}"
                print(f"{outcome} ({len(waiting) + len(running)} to go)", flush=True)
    finally:
        for process in running:
            process.terminate()
        for process in running:
            process.wait()
    return failed


def start(run: Run, preset: Preset, folders: Folders, jobs: int) -> subprocess.Popen:
    """Begin a run, or go on with it, in a process of its own."""
    save = save_of(run, folders)
    save.mkdir(parents=True, exist_ok=True)
    words = run.command_line(preset, folders.data, save)
    one_thread = {"OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "passive"} if jobs > 1 else {}
    with open(output_of(run, folders), "a") as output:
        return subprocess.Popen(
            [sys.executable, str(MAIN), *words],
            env={**os.environ, **one_thread},
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,  # a terminal's Ctrl-C reaches this process alone, which ends it
        )


def save_of(run: Run, folders: Folders) -> Path:
    return folders.out / run.name


def output_of(run: Run, folders: Folders) -> Path:
    """What the run prints."""
    return save_of(run, folders) / "output.txt"


def reason(run: Run, folders: Folders) -> str:
    """The last line that a failed run printed."""
    lines = output_of(run, folders).read_text(errors="replace").split("\n")
    return next((line for line in reversed(lines) if line.strip()), "it printed nothing")


def errors(run: Run, preset: Preset, folders: Folders) -> str:
    """The last epoch's, of a run that is done."""
    last = read_run(folders.logs, run, preset).epochs[-1]
    train, test = 100 - last["train_acc"], 100 - last["test_acc"]
    return f"training error {train:.2f} %, test error {test:.2f} %"


if __name__ == "__main__":
    sys.exit(main())
