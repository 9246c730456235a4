"""Train all runs of the study that are not done, then print its tables.

    python study/run.py --data DIR --out DIR --jobs 2

reads images from DIR/train/<class> and DIR/val/<class>. `--preset paper` trains the paper's
networks on CIFAR-100 in DIR instead. study/README.md explains the plan. A run is done when its log
is in study/PRESET. Finished runs are skipped; interrupted runs resume from their checkpoints in
--out.
"""

import argparse
import os
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from itertools import takewhile
from pathlib import Path
from typing import NamedTuple

# The repository's folder, and the script folder that the study uses.
sys.path.insert(0, str(Path(__file__).parents[1]))
sys.path.insert(0, str(Path(__file__).parents[1] / "wrn_DKS"))

import torch

from common.command_line import (
    ArgumentParser,
    UserError,
    bounded_number,
    exit_status,
)
from common.progress import format_duration
from common.signals import check_signals, defer_signals
from epoch_log import LOG
from study.data import prepare_data
from study.logs import log_path, read_run, read_study, write_log
from study.plan import Preset, Row, Run
from study.presets import add_plan_flags, chosen_plan
from study.report import tables

MAIN = Path(__file__).parents[1] / "wrn_DKS" / "main.py"


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line and return the exit status."""
    return exit_status(lambda: run_study(parse(argv)))


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = ArgumentParser(
        prog="study/run.py", description="Train all runs of the study not yet done."
    )
    parser.add_argument(
        "--data",
        type=Path,
        required=True,
        metavar="DIR",
        help="folder of train/ and val/, or CIFAR",
    )
    parser.add_argument(
        "--out", type=Path, required=True, metavar="DIR", help="folder for checkpoints and output"
    )
    parser.add_argument(
        "--jobs",
        type=bounded_number(int, 1, 1000),
        default=1,
        help="parallel runs; several of them use one thread each and take the GPUs in turn",
    )
    add_plan_flags(parser)
    return parser.parse_args(argv)


def run_study(options: argparse.Namespace) -> None:
    """Train what is missing, then print the tables.

    Raises:
        UserError: the data are unsuitable, a log is of another plan, or a run failed.
    """
    preset, logs = chosen_plan(options)
    missing = [run for run in preset.runs() if not read_run(logs, run, preset)]
    print(f"{preset}, {len(missing)} to train; logs in {logs}", flush=True)
    if missing:
        rows = dict.fromkeys(run.row for run in missing)
        data = {row: prepare_data(preset, row, options.data, options.out) for row in rows}
        logs.mkdir(parents=True, exist_ok=True)
        folders = Folders(data, options.out / options.preset, logs)
        if failed := train_runs(missing, preset, folders, options.jobs):
            raise UserError(
                f"{len(failed)} of {len(missing)} runs failed: {', '.join(failed)}; repeat the "
                "command to try them again"
            )
    print(f"\n{tables(read_study(logs, preset), preset)}")


class Folders(NamedTuple):
    """Where the runs read and write."""

    data: dict[Row, Path]
    out: Path
    logs: Path

    def save(self, run: Run) -> Path:
        """Return the folder of a run's checkpoint."""
        return self.out / run.name

    def output(self, run: Run) -> Path:
        """Return the file with everything that a run prints."""
        return self.save(run) / "output.txt"


def train_runs(runs: Sequence[Run], preset: Preset, folders: Folders, jobs: int) -> list[str]:
    """Train `jobs` runs at a time, each in a process; return the names of those that failed.

    No process outlives this function.
    """
    waiting, running, failed = list(runs), {}, []
    free = [run_environment(job, jobs, visible_gpus()) for job in range(jobs)]
    try:
        while waiting or running:
            while waiting and free:
                run, environment = waiting.pop(0), free.pop(0)
                with defer_signals():  # so that every started process is in `running`
                    process = start_run(run, preset, folders, environment)
                    running[process] = run, environment, time.perf_counter()
            check_signals()
            time.sleep(0.1)
            for process in [process for process in running if process.poll() is not None]:
                run, environment, start = running.pop(process)
                free.append(environment)
                time_s = format_duration(time.perf_counter() - start)
                if process.returncode:
                    failed.append(run.name)
                    outcome = f"FAILED {run.name} after {time_s}: {failure(run, folders)}"
                else:
                    write_log(run, folders.save(run) / LOG, log_path(folders.logs, run))
                    outcome = f"done {run.name} in {time_s}: {errors(run, preset, folders)}"
                print(f"{outcome} ({len(waiting) + len(running)} left)", flush=True)
    finally:
        for process in running:
            process.terminate()
        for process in running:
            process.wait()
    return failed


def visible_gpus() -> list[str]:
    """Return the names by which CUDA knows the GPUs that this process may use."""
    names = os.environ.get("CUDA_VISIBLE_DEVICES")
    if names is None:
        return [str(index) for index in range(torch.cuda.device_count())]
    given = [name.strip() for name in names.split(",")]
    return list(takewhile(lambda name: name and not name.startswith("-"), given))  # as CUDA does


def run_environment(job: int, jobs: int, gpus: Sequence[str]) -> dict[str, str]:
    """Return the environment variables of the runs of a job, from 0 to `jobs` - 1."""
    one_thread = {"OMP_NUM_THREADS": "1"} if jobs > 1 else {}
    one_gpu = {"CUDA_VISIBLE_DEVICES": gpus[job % len(gpus)]} if gpus else {}
    return one_thread | one_gpu


def start_run(
    run: Run, preset: Preset, folders: Folders, environment: Mapping[str, str]
) -> subprocess.Popen:
    """Start or resume a run in a process of its own, with more environment variables."""
    save = folders.save(run)
    save.mkdir(parents=True, exist_ok=True)
    with open(folders.output(run), "a") as output:
        return subprocess.Popen(
            [sys.executable, str(MAIN), *run.command_line(preset, folders.data[run.row], save)],
            env={**os.environ, **environment},
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,  # Ctrl-C in a terminal reaches only this process, which ends it
        )


def failure(run: Run, folders: Folders) -> str:
    """Return the last line that a failed run printed."""
    lines = folders.output(run).read_text(errors="replace").split("\n")
    return next((line for line in reversed(lines) if line.strip()), "it printed nothing")


def errors(run: Run, preset: Preset, folders: Folders) -> str:
    """Return the last epoch's errors of a finished run."""
    last = read_run(folders.logs, run, preset).epochs[-1]
    train, test = 100 - last["train_acc"], 100 - last["test_acc"]
    return f"training error {train:.2f} %, test error {test:.2f} %"


if __name__ == "__main__":
    sys.exit(main())
