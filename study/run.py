"""Train all runs of a study that are not done, then print its tables.

    python study/run.py --data DIR --out DIR --jobs 2

reads images from DIR/train/<class> and DIR/val/<class>. README.md explains the plans. A run is done
when its log is in study/PRESET. An interrupted run is resumed from its checkpoint in --out.
"""

import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path
from queue import SimpleQueue
from typing import NoReturn

sys.path.insert(1, str(Path(__file__).parents[1] / "wrn_DKS"))  # after the folder of this file

import torch

from common.command_line import Interrupted, UserError, build_parser, run_script
from common.images import list_class, list_images
from common.logs import LOG
from common.options import COUNT, run_flag
from data import CIFAR, load_cifar
from logs import read_run, write_log
from plan import PlanOptions, Run
from report import tables

MAIN = Path(__file__).parents[1] / "wrn_DKS" / "main.py"
OUTPUT = "output.txt"  # what a run prints


@dataclass(frozen=True)
class Options(PlanOptions):
    rows: Sequence[str] = run_flag(
        (), str, "only these rows (default: all)", nargs="+", metavar="NAME"
    )
    seeds: int = run_flag(5, COUNT, "at most so many runs of each row")
    data: Path = run_flag(None, Path, "folder of the images, or of CIFAR-100", required=True)
    out: Path = run_flag(None, Path, "folder of checkpoints and output", required=True)
    jobs: int = run_flag(
        1, COUNT, "parallel runs; several of them use one thread each, and take the GPUs in turn"
    )


def main(argv: Sequence[str] | None = None) -> None:
    parser = build_parser(Options, "study/run.py", "Train all runs of a study not yet done.")
    options = Options(**parser.parse_given(argv))
    preset, logs = options.plan()
    rows = list(dict.fromkeys(run.row for run in preset.runs()))
    if unknown := [row for row in options.rows if row not in rows]:
        raise UserError(f"--rows {unknown[0]}: no such row; choose from {', '.join(rows)}")
    chosen = [run for run in preset.runs() if run.row in (options.rows or rows)]
    missing = [run for run in chosen if run.seed <= options.seeds and not is_done(run, logs)]
    print(f"{preset}, {len(missing)} to train; logs in {logs}", flush=True)
    if missing and (failed := train_all(missing, options, logs)):
        raise UserError(
            f"{len(failed)} of {len(missing)} runs failed: {', '.join(failed)}; repeat the command "
            "to try them again"
        )
    print(f"\n{tables(preset, logs)}")


def is_done(run: Run, logs: Path) -> bool:
    log = read_run(logs, run)
    return log is not None and log.is_finished


def train_all(runs: Sequence[Run], options: Options, logs: Path) -> list[str]:
    """Train `--jobs` runs at a time, each in a process; return the names of those that failed."""
    signal.signal(signal.SIGTERM, stop)
    logs.mkdir(parents=True, exist_ok=True)
    roots = prepare_data(runs, options)
    gpus = [f"cuda:{index}" for index in range(torch.cuda.device_count())] or ["auto"]
    devices: SimpleQueue[str] = SimpleQueue()
    for job in range(options.jobs):
        devices.put(gpus[job % len(gpus)])
    environment = os.environ | ({"OMP_NUM_THREADS": "1"} if options.jobs > 1 else {})
    folder, processes, failed = options.out / options.preset, [], []

    def train(run: Run) -> int:
        save, device = folder / run.name, devices.get()
        save.mkdir(parents=True, exist_ok=True)
        values = {"dataroot": roots[run.first_class], "save": save, "device": device}
        values |= run.options() | {"resume": "auto"}
        flags = [f"--{name}" if v is True else f"--{name}={v}" for name, v in values.items()]
        words = [sys.executable, MAIN, *flags]
        with open(save / OUTPUT, "a") as output:
            process = subprocess.Popen(words, env=environment, stdout=output, stderr=output)
            processes.append(process)
            status = process.wait()
        devices.put(device)
        if status == 0:
            write_log(run, save / LOG, logs / f"{run.name}.jsonl")
        return status

    with ThreadPoolExecutor(options.jobs) as pool:
        futures = {pool.submit(train, run): run.name for run in runs}
        try:
            for future in as_completed(futures):
                name = futures[future]
                if future.result():
                    failed.append(name)
                text = (folder / name / OUTPUT).read_text(errors="replace") or "no output\n"
                outcome = "FAILED" if name in failed else "done"
                print(f"{outcome} {name}: {text.splitlines()[-1]}", flush=True)
        except BaseException:  # a signal, such as Ctrl-C
            pool.shutdown(wait=False, cancel_futures=True)
            for process in processes:
                process.terminate()  # it saves its checkpoint
            raise
    return failed


def stop(signum: int, frame: object) -> NoReturn:
    raise Interrupted(signum)


def prepare_data(runs: Sequence[Run], options: Options) -> dict[int, Path]:
    """Return the folder for `--dataroot`, by the first class of a run."""
    firsts, split = {run.first_class for run in runs}, runs[0].preset.split
    if split:
        data = options.data.resolve()
        return {first: link_split(data, options.out, first, *split) for first in firsts}
    if (name := runs[0].config().dataset) in CIFAR:
        load_cifar(name, options.data)  # downloads it once, for all runs
    return dict.fromkeys(firsts, options.data)


def link_split(data: Path, out: Path, first: int, count: int, images: int) -> Path:
    """Make a folder of links, a split of `count` classes of `data` from number `first` on.

    The first `images` of each class in `data`/train, by name, go to its train/. All others of these
    classes, and those in `data`/val, go to its test/.

    Raises:
        UserError: `data` has too few classes or images.
    """
    folder = out / f"split-{count}x{images}-from-{first + 1}"
    shutil.rmtree(folder, ignore_errors=True)
    classes = list_images(data / "train").classes[first : first + count]
    if len(classes) < count:
        raise UserError(f"{data}/train: fewer than {first + count} classes")
    for name in classes:
        train, val = (list_class(data / part / name)[0] for part in ("train", "val"))
        if len(train) <= images:
            raise UserError(f"{data}/train/{name}: {len(train)} images, expected over {images}")
        for index, path in enumerate(train + val):
            part = "train" if index < images else "test"
            link = folder / part / name / f"{index:05}-{Path(path).name}"
            link.parent.mkdir(parents=True, exist_ok=True)
            link.symlink_to(path)
    return folder


if __name__ == "__main__":
    run_script(main)
