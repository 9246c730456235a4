"""Train all runs of a study, then print their tables.

    python study/run.py --data DIR --out DIR --jobs 2

The same command resumes interrupted runs and passes over finished ones.
"""

import signal
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

sys.path.insert(1, str(Path(__file__).parents[1] / "wrn_DKS"))  # after the folder of this file

from common import report
from common.command_line import ArgumentParser, UserError, choice, run_script
from common.options import COUNT
from plan import CHANGES, FULL_SIZE, PRESETS

MAIN = Path(__file__).parents[1] / "wrn_DKS" / "main.py"
CLASSES, IMAGES = 20, 50  # of a split, and for training in each class


def main(argv: list[str] | None = None) -> None:
    parser = ArgumentParser(prog="study/run.py", description="Train all runs of a study.")
    add = parser.add_argument
    add("--preset", type=choice(*PRESETS), default="scaled", help="or follow-up, or cifar100")
    add("--data", type=Path, required=True, help="folder of the images; see README.md")
    add("--out", type=Path, required=True, help="folder of the runs")
    add("--seeds", type=COUNT, default=5, help="at most so many runs of each row (default: all)")
    add("--jobs", type=COUNT, default=1, help="number of parallel runs")
    given = parser.parse_given(argv)
    preset, folder = PRESETS[given["preset"]], given["out"] / given["preset"]
    runs: dict[str, dict] = {}
    for row, seeds in preset.rows.items():
        method, _, change = row.partition("-")
        data = given["data"].resolve()
        if preset is not FULL_SIZE:
            data = link_split(data, folder, 20 if change == "21to40" else 0)
        for seed in range(1, 1 + min(seeds, given["seeds"])):
            own = {"method": method, "seed": seed, "dataroot": data, "resume": "auto"}
            runs[f"{row}-seed{seed}"] = preset.options | own | CHANGES.get(change, {})
    if failed := train_all(runs, folder, given["jobs"]):
        raise UserError(f"{len(failed)} of {len(runs)} runs failed; see {folder / failed[0]}.txt")
    report.main([str(folder)])


def link_split(data: Path, folder: Path, first: int) -> Path:
    """Make a folder of links, a split of `CLASSES` classes of `data` from number `first` on.

    The first `IMAGES` of each class in `data`/train, by name, go to its train/. All others of these
    classes, and those in `data`/val, go to its test/.
    """
    split = folder / f"classes-from-{first + 1}"
    classes = sorted((data / "train").iterdir())[first : first + CLASSES]
    if len(classes) < CLASSES:
        raise UserError(f"{data}/train: fewer than {first + CLASSES} classes")
    for path in classes:
        train, val = (sorted((data / part / path.name).iterdir()) for part in ("train", "val"))
        for index, image in enumerate(train + val):
            part = "train" if index < IMAGES else "test"
            link = split / part / path.name / f"{index:05}-{image.name}"
            link.parent.mkdir(parents=True, exist_ok=True)
            if not link.is_symlink():
                link.symlink_to(image)
    return split


def train_all(runs: dict[str, dict], folder: Path, jobs: int) -> list[str]:
    """Train `jobs` runs at a time, each in a process; return the names of those that failed."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # as Ctrl-C
    folder.mkdir(parents=True, exist_ok=True)
    processes = []

    def train(name: str) -> str:
        options = runs[name] | {"save": folder / name}
        flags = [f"--{key}" if v is True else f"--{key}={v}" for key, v in options.items()]
        with open(folder / f"{name}.txt", "a") as output:
            command = [sys.executable, MAIN, *flags]
            process = subprocess.Popen(command, stdout=output, stderr=output)
            processes.append(process)
            status = process.wait()
        # One write, end of line included: two threads can print at the same time.
        print(f"{name}: {'FAILED' if status else 'done'}\n", end="", flush=True)
        return name if status else ""

    with ThreadPoolExecutor(jobs) as pool:
        try:
            return [failed for failed in pool.map(train, runs) if failed]
        finally:
            for process in processes:  # that still run after a signal, such as Ctrl-C
                process.terminate()  # saves the checkpoint


if __name__ == "__main__":
    run_script(main)
