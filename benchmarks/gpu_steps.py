"""The checks of `gpu.py` that run training steps of one script folder, in this process.

    python benchmarks/gpu_steps.py HALF cpu|cuda short|full CHECK ...

HALF is wrn_DKS or imagenet. On the CPU, everything is tiny. Prints each row as JSON, and null
after the last one of each check; other output goes to standard error.
"""

import contextlib
import io
import json
import os
import resource
import signal
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator
from functools import partial
from itertools import islice, product
from pathlib import Path
from unittest import mock

sys.path.insert(1, str(Path(__file__).parents[1] / sys.argv[1]))  # after the folder of this file

import torch
from torch import Tensor

import steps
from common.distributed import select_device
from common.engine import Trainer
from common.evaluation import Batch
from timing import Check, attempt, facts

HALF = sys.argv[1]
CPU, DEVICE = torch.device("cpu"), select_device(sys.argv[2])
torch.backends.cudnn.benchmark = True  # as in main.py
IS_GPU, FULL = DEVICE.type == "cuda", sys.argv[3] == "full"
LIMIT_S = 3600 if FULL else 500  # of a check; a longer one is killed
WRN, RESNET = "--dataset folder --depth", "--data . -j 0 -a"
NETWORKS = {
    "wrn_DKS": {
        "WRN-10-1": f"{WRN} 10 --width 1 -b 32",
        "WRN-16-2": f"{WRN} 16 --width 2 -b 128",
        "WRN-28-10": f"{WRN} 28 --width 10 -b 128",
    },
    "imagenet": {
        "ResNet-18": f"{RESNET} resnet18 --image-size 64 -b 32",
        "ResNet-50": f"{RESNET} resnet50 -b 256",
    },
}[HALF]
(SMALL, SMALL_FLAGS), *LARGE = NETWORKS.items()  # the first is checked, the others are timed
if not IS_GPU:
    tiny = {"wrn_DKS": "--image-size 8 -b 8", "imagenet": "--image-size 40 -b 4 --method baseline"}
    SMALL_FLAGS += f" {tiny[HALF]}"
    LARGE = [(SMALL, SMALL_FLAGS)]
# The dtype, TF32 or not, and the limits of the relative differences of the loss and of the update.
# That of the update is wide, because rounding decides whether a ReLU that is almost 0 is open.
PRECISIONS = {
    "float32": ("float32", False, 1e-5, 0.05),
    "TF32": ("float32", True, 1e-3, 0.4),
    "float16": ("float16", False, 1e-3, 0.4),
    "bfloat16": ("bfloat16", False, 2e-2, 0.8),
}
if not IS_GPU:  # which has no TF32, and takes minutes for convolutions in float16
    for name in ("TF32", "float16")[: 1 if HALF == "wrn_DKS" else 2]:
        del PRECISIONS[name]
MODES = ("", "--compile", "reduce-overhead") if IS_GPU else ("",)
METHODS = ("dks", "baseline") if IS_GPU or HALF == "wrn_DKS" else ("baseline",)
OPTIONS = (
    "--dtype float32",
    "--dtype bfloat16 --cutmix 1 --ema 0.9",
    "--dtype float16 --mixup 1 --ema 0.9 --grad-accumulation 2 --label-smoothing 0.1",
)


def small_run(
    words: str, device: torch.device = DEVICE, batches: float = 3.5
) -> tuple[Trainer, Iterable[Batch]]:
    """Return the trainer of the small network, in training mode, and the batches of an epoch."""
    trainer, loader = steps.make_run(f"{SMALL_FLAGS} {words}", device, batches)
    trainer.model.train()
    return trainer, loader.epoch(0)


def agreement() -> Iterator[Check]:
    """Compare a step with that on the CPU in float32, from the same weights on the same images."""
    reference = one_step("float32", CPU, tf32=False)
    for name, (dtype, tf32, *limits) in PRECISIONS.items():

        def compare(dtype=dtype, tf32=tf32, limits=limits) -> tuple:
            pairs = zip(one_step(dtype, DEVICE, tf32), reference, strict=True)
            found = [float((ours - other).norm() / other.norm()) for ours, other in pairs]
            passed = all(a <= b for a, b in zip(found, limits, strict=True))
            return "loss {:.0e}, update {:.0e}".format(*found), passed, found

        title = f"{SMALL}: a step in {name} as on the CPU"
        yield attempt(title, "{:g}, {:g}".format(*limits), compare)
    yield attempt(f"{SMALL}: batches as on the CPU, with CutMix", "equal bits", same_batches)


def one_step(dtype: str, device: torch.device, tf32: bool) -> tuple[Tensor, Tensor]:
    """Train one step; return the loss and the change of all parameters, on the CPU."""
    with torch.backends.cudnn.flags(enabled=True, benchmark=True, allow_tf32=tf32):
        trainer, batches = small_run(f"--method dks --dtype {dtype}", device)
        enabled = trainer.scaler.is_enabled()  # with a scale that does not overflow in this step
        trainer.scaler = torch.amp.GradScaler(device.type, 256.0, enabled=enabled)
        before = parameters(trainer)
        loss = trainer.train_step(next(batches))
    return loss.cpu(), parameters(trainer) - before


def parameters(trainer: Trainer) -> Tensor:
    return torch.cat([each.detach().cpu().flatten() for each in trainer.model.parameters()])


def same_batches() -> tuple[str, bool]:
    pairs = list(zip(*(small_run("--cutmix 1", each)[1] for each in (CPU, DEVICE)), strict=True))
    same = [torch.equal(one[i].cpu(), other[i].cpu()) for one, other in pairs for i in (0, 1)]
    return f"{len(pairs)} batches", all(same)


def synchronization() -> Iterator[Check]:
    """Train three steps in which waiting for the GPU is an error."""

    def train(words: str) -> tuple[str, bool | None]:
        trainer, batches = small_run(words)
        trainer.train_step(next(batches))  # initializes
        set_mode = torch.cuda.set_sync_debug_mode if IS_GPU else lambda mode: None
        set_mode("error")
        try:
            losses = [trainer.train_step(batch) for batch in islice(batches, 3)]
        finally:
            set_mode("default")
        trainer.check_losses()
        return f"none in {len(losses)} steps" if IS_GPU else "ran", IS_GPU or None

    for words in OPTIONS if IS_GPU or HALF == "wrn_DKS" else OPTIONS[1:2]:
        yield attempt(f"{SMALL} {words}: waiting for the GPU", "none", partial(train, words))


def infinity() -> Iterator[Check]:
    """Overflow a gradient in float16."""

    def skip() -> tuple[str, bool]:
        trainer, batches = small_run("--dtype float16")
        trainer.train_step(next(batches))
        before, scale = parameters(trainer), trainer.scaler.get_scale()
        next(trainer.model.parameters()).register_hook(lambda gradient: gradient * float("inf"))
        trainer.train_step(next(batches))
        trainer.check_losses()
        ratio, same = trainer.scaler.get_scale() / scale, torch.equal(before, parameters(trainer))
        return f"scale × {ratio:g}, weights {'un' * same}changed", same and ratio == 0.5

    yield attempt(f"{SMALL}: infinite gradient in float16", "× 0.5, unchanged", skip)


def memory() -> Iterator[Check]:
    """Run out of memory: the command must end with one line."""
    import main

    def run_out() -> tuple[str, bool]:
        errors = io.StringIO()
        with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stderr(errors):
            words = f"--dataset digits --depth 28 --width 4 -b 1437 --device {DEVICE} --save"
            status = main.main([*words.split(), folder])
        text = errors.getvalue()
        passed = (status, text[:17], text.count("\n")) == (2, "error: not enough", 1)
        return f"status {status}: {text.strip()[:60]} …", passed

    if IS_GPU:
        torch.cuda.set_per_process_memory_fraction(0.005)
    else:
        used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (used + 2**28, resource.RLIM_INFINITY))
    yield attempt("out of memory", "status 2, one line", run_out)


def compilation() -> Iterator[Check]:
    """Compare the losses of full batches and of a partial one with and without --compile."""

    def compare() -> tuple:
        from torch._dynamo.utils import counters

        losses, seconds = [], []
        # Compiling kernels takes a CPU a minute.
        compile = partial(torch.compile, backend="inductor" if IS_GPU else "aot_eager")
        for words in ("--lr 0", "--lr 0 --compile"):
            with mock.patch("torch.compile", compile):
                trainer, batches = small_run(words, batches=2.5)
            start = time.perf_counter()
            losses.append(torch.stack([trainer.train_step(b) for b in batches]).cpu())
            seconds.append(time.perf_counter() - start)
        difference = float(((losses[0] - losses[1]) / losses[0]).abs().max())
        graphs, breaks = counters["stats"]["unique_graphs"], sum(counters["graph_break"].values())
        text = f"loss {difference:.0e}, {graphs} graphs, {breaks} breaks, {seconds[1]:.0f} s"
        return text, difference <= 1e-3 and (graphs, breaks) == (2, 0), seconds

    yield attempt(f"{SMALL} --compile: as without", "1e-3, 2 graphs, 0 breaks", compare)


def throughput() -> Iterator[Check]:
    """Time training steps, and those of the released configuration."""
    dtypes = ("float32", "bfloat16", "float16")[: 3 if IS_GPU else 2]
    peaks = {dtype: steps.matmul_tflops(getattr(torch, dtype), DEVICE) for dtype in dtypes}
    text = ", ".join(f"{dtype} {peak:.3g} TFLOP/s" for dtype, peak in peaks.items())
    yield Check("matrix products (float32: TF32)", text, values=peaks)
    for name, flags in LARGE:
        for method in METHODS:
            words, released = f"{flags} --method {method}", []
            work = partial(time_released, words, released)
            yield attempt(f"{name} {method}, released configuration", "–", work)
            for dtype, mode in product(dtypes, MODES):
                if mode and not FULL and (dtype, method) != ("bfloat16", "dks"):
                    continue
                if mode != "reduce-overhead" or name == "WRN-16-2":
                    work = f"{words} --dtype {dtype}", mode, peaks[dtype], released
                    title = f"{name} {method}, {dtype} {mode}".strip()
                    yield attempt(title, "–", partial(time_steps, *work))


def time_released(words: str, released: list[dict]) -> tuple[str, None, dict]:
    """Time steps that are eager, in float32 and NCHW, and read the loss back."""
    trainer, batches = steps.make_run(words, DEVICE, 1)
    batch = next(iter(batches.epoch(0)))
    network = trainer.model.to(memory_format=torch.contiguous_format)
    step = steps.released_step(network, 1e-4, DEVICE)
    released.append(steps.step_costs(partial(step, *batch[:2]), DEVICE))
    return steps.describe_costs(released[0], batch.total), None, released[0]


def time_steps(words: str, mode: str, peak: float, released: list[dict]) -> tuple:
    """Time steps on one batch, and compare them with the released configuration."""
    torch.compiler.reset()  # after a few networks, it would compile no more
    trainer, batches = steps.make_run(f"{words} {mode if mode == '--compile' else ''}", DEVICE, 1)
    if mode == "reduce-overhead":  # CUDA graphs, which no option selects
        trainer._parallel = torch.compile(trainer.model, dynamic=False, mode=mode)
    batch = next(iter(batches.epoch(0)))
    trainer.model.train()
    costs = steps.step_costs(partial(trainer.train_step, batch), DEVICE)
    flops = steps.training_flops(trainer.model, batch.images)
    text = steps.describe_costs(costs, batch.total, flops, peak)
    ratio = f", {released[0]['ms'] / costs['ms']:.2f} × released" if released else ""
    return text + ratio, None, costs


def main() -> None:
    rows, checks = os.fdopen(os.dup(1), "w"), globals() | {"environment": partial(facts, DEVICE)}
    os.dup2(2, 1)
    for name in sys.argv[4:]:
        signal.alarm(LIMIT_S)
        for row in checks[name]():
            print(json.dumps(row), file=rows, flush=True)
            torch.cuda.empty_cache()
        print(json.dumps(None), file=rows, flush=True)


if __name__ == "__main__":
    main()
