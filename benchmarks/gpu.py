"""Check this code on a GPU, within ten minutes, and print one table.

    make gpu-check                                      every check, and gpu-check.json
    python benchmarks/gpu.py --only agreement memory    these checks

Without a GPU, the checks run on the CPU with tiny networks. That tests the checks; it proves
nothing about GPUs.
"""

import argparse
import contextlib
import json
import os
import platform
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

os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # of the profiler, which would print lines
sys.path.insert(1, str(Path(__file__).parents[1] / "wrn_DKS"))  # after the folder of this file

import numpy as np
import torch
from PIL import Image

from common.command_line import Incomplete, run_script
from common.distributed import available_cores, describe_device, select_device
from timing import Check, attempt, timed

FOLDER = Path(__file__).resolve().parent
WRN, IMAGENET = (FOLDER.parent / name for name in ("wrn_DKS", "imagenet"))
STEPS = {  # checks in gpu_steps.py; the last one leaves little memory
    WRN: "agreement synchronization infinity compilation throughput memory".split(),
    IMAGENET: "agreement synchronization throughput".split(),
}
LIMIT_S = 300  # of a command
GPUS = torch.cuda.device_count()
DEVICE = "cuda" if GPUS else "cpu"
DIGITS = [WRN / "main.py", *"--dataset digits --depth 10 --width 1 --device".split(), DEVICE]
TORCHRUN = "-m torch.distributed.run --standalone --nproc_per_node".split()


def environment(folder: Path) -> Iterator[Check]:
    """Yield what one should know about the machine, and what would fail later."""
    versions = f"Python {platform.python_version()}, PyTorch {torch.__version__}"
    if GPUS:
        device, (major, minor) = torch.device("cuda"), torch.cuda.get_device_capability()
        # Kernels of a smaller minor version run too.
        usable = {f"sm_{major}{each}" for each in range(minor + 1)}
        found = bool(usable.intersection(torch.cuda.get_arch_list()))
        name = f"{GPUS} × {describe_device(device)}, capability {major}.{minor}"
        yield Check("GPU", name, "PyTorch has kernels", found)
        source = torch.empty(2**28, dtype=torch.uint8, pin_memory=True)
        copy = partial(source.to(device).copy_, source, non_blocking=True)
        seconds = min(timed(copy, device) for _ in range(5))
        yield Check("copies from pinned memory", f"{2**28 / 1e9 / seconds:.1f} GB/s")
        nccl = ".".join(map(str, torch.cuda.nccl.version()))
        versions += f", cuDNN {torch.backends.cudnn.version()}, NCCL {nccl}"
    yield Check("versions", versions)
    cores = available_cores()
    yield Check("CPU cores", f"{cores}, {cores / max(1, GPUS):g} for each GPU")
    free = shutil.disk_usage("/dev/shm").free / 2**30
    yield Check("/dev/shm, for data-loading workers", f"{free:.1f} GiB free", "1 GiB", free >= 1)
    compiler = shutil.which(os.environ.get("CC", "gcc"))
    yield Check("C compiler, for --compile", compiler or "none", "one", compiler is not None)


def start(*argv: object, **variables: str) -> subprocess.Popen:
    """Start Python with these arguments, in a process group of its own."""
    output = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    argv = [sys.executable, *map(str, argv)]
    return subprocess.Popen(argv, start_new_session=True, env=os.environ | variables, **output)


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


def wait_for_epoch(save: Path, process: subprocess.Popen) -> None:
    deadline = time.monotonic() + LIMIT_S
    while not (save / "log.jsonl").exists() and process.poll() is None:
        assert time.monotonic() < deadline, "no epoch was finished"
        time.sleep(0.05)


def last_record(save: Path) -> dict:
    return json.loads((save / "log.jsonl").read_text().splitlines()[-1])


def life_cycle(folder: Path) -> Iterator[Check]:
    """Stop a run by SIGTERM, resume and export it, and test the export without a GPU."""
    save, exported, tested = (folder / name for name in ("run", "run.pth", "test.json"))
    argv = [*DIGITS, "--epochs", 12 if GPUS else 3, "-b", 64, "--save", save]
    argv += ["--resume", "auto", "--export", exported]

    def stop() -> tuple[str, bool]:
        process = start(*argv)
        wait_for_epoch(save, process)
        process.terminate()
        return "status 143", "the run is saved" in finish(process, 143)

    def compare() -> tuple[str, bool, list]:
        test = "--evaluate", "--resume", exported, "--json", tested, "--device", "cpu"
        finish(start(*DIGITS[:3], *test, CUDA_VISIBLE_DEVICES=""))
        errors = [json.loads(tested.read_text())["top1_error"]]
        errors.append(last_record(save)["test"]["top1_errors"][0])
        text = "{:.2f} % on the CPU, {:.2f} % in the run".format(*errors)
        return text, abs(errors[0] - errors[1]) <= 0.3, errors

    yield attempt("SIGTERM", "status 143, saved", stop)
    yield attempt("resume and export", "status 0", lambda: ("status 0", bool(finish(start(*argv)))))
    yield attempt("error of the export, without a GPU", "0.3 points", compare)


def input_images(folder: Path) -> Iterator[Check]:
    """Train ResNet-18 on JPEG files, with more and more workers and with the cache."""
    size, count, batch, method = (224, 6144, 256, "dks") if GPUS else (40, 24, 8, "baseline")
    make_images(folder / "images", count)
    words = f"-a resnet18 --dtype bfloat16 --epochs 2 --image-size {size} -b {batch} --method "
    argv = IMAGENET / "train.py", *f"{words}{method} --device {DEVICE}".split(), folder / "images"

    def train(save: Path, *more: object) -> tuple[str, None, dict]:
        finish(start(*argv, *more, "--save", save))
        times = last_record(save)["times"]
        text = "{images_per_s:,.0f} images/s, {waiting_percent:.0f} % of the time waiting"
        return text.format(**times), None, times

    workers = (4, 8, 16) if GPUS else (1,)
    for more in *(("-j", each) for each in workers), ("-j", workers[0], "--cache", folder / "c"):
        title = f"JPEG files, ResNet-18, {' '.join(map(str, more[:3]))}"
        yield attempt(title, "–", train, folder / title, *more)


def make_images(images: Path, count: int) -> None:
    """Write JPEG files of the size of ImageNet's, all alike."""
    pixels = np.random.default_rng(1).integers(0, 256, (25, 33, 3), dtype=np.uint8)
    Image.fromarray(pixels).resize((500, 375)).save(images.with_suffix(".jpg"))
    for index in range(count + 8):
        path = images / ("train" if index < count else "val") / "ab"[index % 2] / f"{index}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.hardlink_to(images.with_suffix(".jpg"))


def several_gpus(folder: Path) -> Iterator[Check]:
    """Compare several GPUs with one; kill a process; start one process too many."""
    if GPUS != 1:
        yield attempt("a killed process", "60 s", kill_one, folder)
    if GPUS:
        yield attempt("one process too many", "one line", start_many, folder)
    if GPUS > 1:
        yield attempt("weights with SyncBN as on one GPU", "1e-4", synchronize, folder)
        yield attempt(f"WRN-28-10 on 1 and {GPUS} GPUs", "–", scale, folder)


def kill_one(folder: Path) -> tuple[str, bool]:
    save = folder / "killed"
    process = start(*TORCHRUN, GPUS or 2, *DIGITS, "--epochs", 999, "--save", save)
    wait_for_epoch(save, process)
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    killed = time.monotonic()
    os.kill(int(children[-1]), signal.SIGKILL)
    finish(process, 1)
    seconds = time.monotonic() - killed
    return f"the run ended after {seconds:.0f} s", seconds < 60


def start_many(folder: Path) -> tuple[str, bool]:
    text = finish(start(*TORCHRUN, GPUS + 1, *DIGITS, "--save", folder / "many"), 1)
    lines = [line for line in text.splitlines() if "error: --dev" in line]
    return f"{lines[0][:60]} …" if lines else "no error", len(lines) == 1


def synchronize(folder: Path) -> tuple[str, bool]:
    weights = []
    for launch, flag in ((), "--seed=1"), ([*TORCHRUN, 2], "--sync-bn"):
        save, words = folder / flag, "--epochs 1 --lr 0.01 -b 719 --save"
        finish(start(*launch, *DIGITS, *words.split(), save, flag, NVIDIA_TF32_OVERRIDE="0"))
        state = torch.load(save / "checkpoint.pt", "cpu", weights_only=True)["model"]
        weights.append(torch.cat([value.double().flatten() for value in state.values()]))
    difference = float((weights[1] - weights[0]).norm() / weights[0].norm())
    return f"{difference:.0e}", difference <= 1e-4


def scale(folder: Path) -> tuple[str, None, list]:
    images, rates = folder / "scaling", []
    make_images(images, 2048 * GPUS)
    for gpus in (1, GPUS):
        save, words = folder / f"{gpus}", "--dataset folder --dtype bfloat16 --epochs 2"
        argv = *words.split(), "--dataroot", images, "-b", 128 * gpus, "--save", save
        finish(start(*TORCHRUN, gpus, DIGITS[0], *argv))
        rates.append(last_record(save)["times"]["images_per_s"])
    efficiency = rates[1] / rates[0] / GPUS
    return f"{rates[0]:,.0f} and {rates[1]:,.0f} images/s: {efficiency:.0%}", None, rates


def steps(half: Path, names: list[str]) -> Iterator[Check]:
    """Run checks of training steps in a process of their own, which a fault or a limit may kill."""
    argv = sys.executable, FOLDER / "gpu_steps.py", half.name, DEVICE, *names
    with subprocess.Popen(argv, stdout=subprocess.PIPE, text=True) as process:
        for line in process.stdout:
            yield Check(*json.loads(line))
    if status := process.returncode:
        yield Check(f"{half.name}: the rest", f"status {status}; see above", "status 0", False)


COMMANDS = (environment, life_cycle, input_images, several_gpus)


def main() -> None:
    """Run the checks and print the table. Raise `Incomplete` if one of them failed."""
    names = [*(check.__name__ for check in COMMANDS), *STEPS[WRN]]
    parser = argparse.ArgumentParser(description="Check this code on a GPU.")
    parser.add_argument("--only", nargs="+", choices=names, default=names, help="these checks")
    parser.add_argument("--json", type=Path, help="also write the rows to this file")
    options, rows = parser.parse_args(), []
    select_device("auto")  # one line if it does not work
    if not GPUS:
        os.environ["OMP_NUM_THREADS"] = "1"  # all that tiny networks need
        print("No GPU: tiny networks on the CPU, which proves nothing about GPUs.\n")
    print("| check | result | limit | pass |\n|---|---|---|---|", flush=True)
    with tempfile.TemporaryDirectory() as folder:
        parts = [check(Path(folder)) for check in COMMANDS if check.__name__ in options.only]
        for half, checks in STEPS.items():
            if chosen := [check for check in checks if check in options.only]:
                parts.append(steps(half, chosen))
        for row in chain(*parts):
            rows.append(row)
            verdict = {None: "–", True: "yes", False: "**no**"}[row.passed]
            cells = [cell.replace("|", "/") for cell in (row.name, row.result, row.limit, verdict)]
            print(f"| {' | '.join(cells)} |", flush=True)
    if options.json:
        options.json.write_text(json.dumps([row._asdict() for row in rows], indent=2) + "\n")
    if failed := [row.name for row in rows if row.passed is False]:
        raise Incomplete(f"failed: {'; '.join(failed)}")


if __name__ == "__main__":
    run_script(main)
