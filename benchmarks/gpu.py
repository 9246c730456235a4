"""Check this code on a GPU, within ten minutes, and print one table.

    make gpu-check                                      every check, and gpu-check.json
    python benchmarks/gpu.py --only agreement input     these checks
    python benchmarks/gpu.py --full                     also the other dtypes with --compile

Without a GPU, the checks run on the CPU with tiny networks. That tests the checks; it proves
nothing about GPUs.
"""

import argparse
import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from functools import partial
from itertools import chain
from pathlib import Path
from typing import NamedTuple

sys.path.insert(1, str(Path(__file__).parents[1] / "wrn_DKS"))  # after the folder of this file

import numpy as np
import torch
from PIL import Image

from common.command_line import Incomplete, run_script
from common.distributed import select_device
from timing import Check, attempt

FOLDER = Path(__file__).resolve().parent
WRN, IMAGENET = (FOLDER.parent / name for name in ("wrn_DKS", "imagenet"))
STEPS = {  # checks in gpu_steps.py; the last one leaves little memory
    WRN: "environment agreement synchronization infinity compilation throughput memory".split(),
    IMAGENET: "agreement synchronization throughput".split(),
}
LIMIT_S = 300  # of a command
DIGITS = [WRN / "main.py", *"--dataset digits --depth 10 --width 1 --device".split()]
TORCHRUN = "-m torch.distributed.run --standalone --nproc_per_node".split()


class Setup(NamedTuple):
    """Where the checks run."""

    device: str  # cpu or cuda
    gpus: int
    full: bool
    folder: Path  # for what they write


def start(*argv: object, **variables: str) -> subprocess.Popen:
    """Start Python with these arguments, in a process group of its own."""
    output = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    place = {"cwd": tempfile.gettempdir(), "env": os.environ | variables}
    argv = [sys.executable, *map(str, argv)]
    return subprocess.Popen(argv, start_new_session=True, **output, **place)


def finish(process: subprocess.Popen, status: int = 0) -> str:
    """Wait for a process, which must end with this status; return its output."""
    try:
        text, _ = process.communicate(timeout=LIMIT_S)
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
    if process.returncode != status:
        raise RuntimeError(f"status {process.returncode}: {text.strip()[-200:]}")
    return text


def wait_for_epoch(folder: Path, process: subprocess.Popen) -> None:
    deadline = time.monotonic() + LIMIT_S
    while not (folder / "log.jsonl").exists() and process.poll() is None:
        assert time.monotonic() < deadline, "no epoch was finished"
        time.sleep(0.05)


def last_record(folder: Path) -> dict:
    return json.loads((folder / "log.jsonl").read_text().splitlines()[-1])


def life_cycle(setup: Setup) -> Iterator[Check]:
    """Stop a run by SIGTERM, resume and export it, and test the export without a GPU."""
    save, exported, tested = (setup.folder / name for name in ("run", "run.pth", "test.json"))
    argv = [*DIGITS, setup.device, "--epochs", 12 if setup.gpus else 3, "-b", 64, "--save", save]
    argv += ["--resume", "auto", "--export", exported]

    def stop() -> tuple[str, bool]:
        process = start(*argv)
        wait_for_epoch(save, process)
        process.terminate()
        return "status 143", "the run is saved" in finish(process, 143)

    def compare() -> tuple[str, bool, list]:
        test = "--evaluate", "--resume", exported, "--json", tested
        finish(start(DIGITS[0], *DIGITS[1:3], "--device", "cpu", *test, CUDA_VISIBLE_DEVICES=""))
        errors = [json.loads(tested.read_text())["top1_error"]]
        errors.append(last_record(save)["test"]["top1_errors"][0])
        text = "{:.2f} % on the CPU, {:.2f} % in the run".format(*errors)
        return text, abs(errors[0] - errors[1]) <= 0.3, errors

    yield attempt("SIGTERM", "status 143, saved", stop)
    yield attempt("resume and export", "status 0", lambda: ("status 0", bool(finish(start(*argv)))))
    yield attempt("error of the export, without a GPU", "0.3 points", compare)


def input_images(setup: Setup) -> Iterator[Check]:
    """Train ResNet-18 on JPEG files, with more and more workers and with the cache."""
    size, count, batch = (224, 6144, 256) if setup.gpus else (40, 24, 8)
    make_images(setup.folder / "images", count)
    words = f"-a resnet18 --dtype bfloat16 --epochs 2 --image-size {size} -b {batch} --method "
    words += "dks" if setup.gpus else "baseline"

    def train(*more: object) -> tuple[str, None, dict]:
        save = setup.folder / "".join(map(str, more[:3]))
        argv = IMAGENET / "train.py", *words.split(), "--device", setup.device, "--save", save
        finish(start(*argv, *more, setup.folder / "images"))
        times = last_record(save)["times"]
        text = "{images_per_s:,.0f} images/s, {waiting_percent:.0f} % of the time waiting"
        return text.format(**times), None, times

    workers = (4, 8, 16) if setup.gpus else (1,)
    cached = ("-j", workers[0], "--cache", setup.folder / "cache")
    for more in *(("-j", each) for each in workers), cached:
        title = f"JPEG files, ResNet-18, {' '.join(map(str, more[:3]))}"
        yield attempt(title, "–", partial(train, *more))


def make_images(folder: Path, count: int) -> None:
    """Write JPEG files of the size of ImageNet's, all alike."""
    pixels = np.random.default_rng(1).integers(0, 256, (25, 33, 3), dtype=np.uint8)
    Image.fromarray(pixels).resize((500, 375)).save(folder.with_suffix(".jpg"))
    for index in range(count + 8):
        part = "train" if index < count else "val"
        path = folder / part / "ab"[index % 2] / f"{index}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(folder.with_suffix(".jpg"), path)


def several_gpus(setup: Setup) -> Iterator[Check]:
    """Compare several GPUs with one; kill a process; start one process too many."""
    count = setup.gpus or 2
    if count > 1:
        yield attempt(f"a killed process of {count}", "60 s", partial(kill_one, setup, count))
    if setup.gpus:
        yield attempt("one process too many", "one line", partial(start_many, setup))
    if setup.gpus > 1:
        yield attempt("weights with SyncBN as on one GPU", "1e-4", partial(synchronize, setup))
        yield attempt(f"WRN-28-10 on 1 and {count} GPUs", "–", partial(scale, setup, count))


def kill_one(setup: Setup, count: int) -> tuple[str, bool]:
    save = setup.folder / "killed"
    process = start(*TORCHRUN, count, *DIGITS, setup.device, "--epochs", 999, "--save", save)
    wait_for_epoch(save, process)
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    os.kill(int(children[-1]), signal.SIGKILL)
    killed = time.monotonic()
    finish(process, 1)
    seconds = time.monotonic() - killed
    return f"the run ended after {seconds:.0f} s", seconds < 60


def start_many(setup: Setup) -> tuple[str, bool]:
    process = start(*TORCHRUN, setup.gpus + 1, *DIGITS, "cuda", "--save", setup.folder / "many")
    lines = [line for line in finish(process, 1).splitlines() if "error: --dev" in line]
    return f"{lines[0][:60]} …" if lines else "no error", len(lines) == 1


def synchronize(setup: Setup) -> tuple[str, bool]:
    weights = []
    for launch, flag in ((), "--seed=1"), ([*TORCHRUN, 2], "--sync-bn"):
        save, words = setup.folder / flag, "cuda --epochs 1 --lr 0.01 -b 719 --save"
        finish(start(*launch, *DIGITS, *words.split(), save, flag, NVIDIA_TF32_OVERRIDE="0"))
        state = torch.load(save / "checkpoint.pt", "cpu", weights_only=True)["model"]
        weights.append(torch.cat([value.double().flatten() for value in state.values()]))
    difference = float((weights[1] - weights[0]).norm() / weights[0].norm())
    return f"{difference:.0e}", difference <= 1e-4


def scale(setup: Setup, count: int) -> tuple[str, None, list]:
    images, rates = setup.folder / "scaling", []
    make_images(images, 2048 * count)
    for gpus in (1, count):
        save, words = setup.folder / f"{gpus}", "--dataset folder --dtype bfloat16 --epochs 2"
        argv = *words.split(), "--dataroot", images, "-b", 128 * gpus, "--save", save
        finish(start(*TORCHRUN, gpus, DIGITS[0], *argv))
        rates.append(last_record(save)["times"]["images_per_s"])
    efficiency = rates[1] / rates[0] / count
    return f"{rates[0]:,.0f} and {rates[1]:,.0f} images/s: {efficiency:.0%}", None, rates


def steps(setup: Setup, half: Path, waiting: list[str]) -> Iterator[Check]:
    """Run checks in a process of their own, and those after one that kills it in another."""
    script, size = FOLDER / "gpu_steps.py", "full" if setup.full else "short"
    while waiting:
        argv = sys.executable, script, half.name, setup.device, size, *waiting
        with open(setup.folder / "errors", "w+") as errors:
            process = subprocess.Popen(argv, stdout=subprocess.PIPE, stderr=errors, text=True)
            for line in process.stdout:
                if row := json.loads(line):
                    yield Check(*row)
                else:
                    waiting = waiting[1:]
            status = process.wait()
            if waiting:
                errors.seek(0)
                text = errors.read().strip().rpartition("\n")[2][:200]
                yield Check(f"{half.name}: {waiting[0]}", f"status {status}: {text}", "–", False)
                waiting = waiting[1:]


def table(rows: list[Check]) -> str:
    """Return the rows as Markdown."""
    lines = ["| check | result | limit | pass |", "|---|---|---|---|"]
    for name, result, limit, passed, _ in rows:
        cells = name, result, limit, {None: "–", True: "yes", False: "**no**"}[passed]
        lines.append(f"| {' | '.join(cell.replace('|', '/') for cell in cells)} |")
    return "\n".join(lines)


COMMANDS = (life_cycle, input_images, several_gpus)


def main() -> None:
    """Run the checks and print the table. Raise `Incomplete` if one of them failed."""
    names = [*STEPS[WRN], *(check.__name__ for check in COMMANDS)]
    parser = argparse.ArgumentParser(description="Check this code on a GPU.")
    parser.add_argument("--only", nargs="+", choices=names, default=names, help="these checks")
    parser.add_argument("--full", action="store_true", help="time more combinations of options")
    parser.add_argument("--json", type=Path, help="also write the rows to this file")
    options, rows, begin = parser.parse_args(), [], time.monotonic()
    device, gpus = select_device("auto").type, torch.cuda.device_count()
    if not gpus:
        os.environ["OMP_NUM_THREADS"] = "1"  # all that tiny networks need
    with tempfile.TemporaryDirectory() as folder:
        setup = Setup(device, gpus, options.full, Path(folder))
        chosen = {half: [n for n in names if n in options.only] for half, names in STEPS.items()}
        parts = [steps(setup, half, waiting) for half, waiting in chosen.items()]
        parts += [check(setup) for check in COMMANDS if check.__name__ in options.only]
        for row in chain(*parts):
            rows.append(row)
            print(f"[{time.monotonic() - begin:.0f} s] {row.name}: {row.result}", file=sys.stderr)
    if not gpus:
        print("No GPU: tiny networks on the CPU, which proves nothing about GPUs.\n")
    print(table(rows))
    if options.json:
        options.json.write_text(json.dumps([row._asdict() for row in rows], indent=2) + "\n")
    if failed := [row.name for row in rows if row.passed is False]:
        raise Incomplete(f"failed: {'; '.join(failed)}")


if __name__ == "__main__":
    run_script(main)
