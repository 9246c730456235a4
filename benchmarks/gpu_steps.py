"""The checks of `gpu.py` that run training steps of one script folder, in this process.

    python benchmarks/gpu_steps.py HALF cpu|cuda CHECK ...

HALF is wrn_DKS or imagenet. On the CPU, everything is tiny. Prints rows as JSON.
"""

import contextlib
import importlib
import io
import json
import resource
import signal
import sys
import tempfile
import time
from collections.abc import Iterator
from functools import partial
from itertools import islice, product
from pathlib import Path
from unittest import mock

sys.path.insert(1, str(Path(__file__).parents[1] / sys.argv[1]))  # after the folder of this file

import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from common.command_line import exit_status
from common.distributed import select_device
from common.engine import Trainer
from common.evaluation import Batch
from timing import Check, attempt, released_step, step_costs

IS_CIFAR = sys.argv[1] == "wrn_DKS"
make_run = importlib.import_module("cifar" if IS_CIFAR else "imagenet").make_run
CPU, DEVICE = torch.device("cpu"), select_device(sys.argv[2])
torch.backends.cudnn.benchmark = True  # as in main.py
IS_GPU = DEVICE.type == "cuda"
THOROUGH = IS_GPU or IS_CIFAR  # a ResNet takes a CPU minutes
# The options of the network that is checked and, by name, of those that are timed.
if IS_CIFAR:
    SMALL, WORDS, TINY = "WRN-10-1", "--depth 10 --width 1 -b 32", "--image-size 8 -b 8"
    LARGE = {"WRN-16-2": "--depth 16 --width 2", "WRN-28-10": "--depth 28 --width 10"}
else:
    SMALL, WORDS, TINY = "ResNet-18", "-a resnet18 --image-size 64 -b 32", "--image-size 40 -b 4"
    LARGE = {"ResNet-50": "-a resnet50 -b 256"}
if not IS_GPU:
    WORDS = f"{WORDS} {TINY}"
    LARGE = {SMALL: WORDS}
# The limits of the relative differences of the loss and of the update. The latter is wide, because
# rounding decides whether a ReLU that is almost 0 is open.
PRECISIONS = {
    "float32": (1e-5, 0.05),
    "bfloat16": (2e-2, 0.8),
    "TF32": (1e-3, 0.4),  # on a CPU: float32
    "float16": (1e-3, 0.4),
}
OPTIONS = (
    "--dtype bfloat16 --cutmix 1 --ema 0.9",
    "--dtype float32",
    "--dtype float16 --mixup 1 --ema 0.9 --grad-accumulation 2 --label-smoothing 0.1",
)


def small_run(words: str, device: torch.device = DEVICE) -> tuple[Trainer, Iterator[Batch]]:
    """Return the trainer of the small network, and four batches, of which the last is partial."""
    return make_run(f"{WORDS} {words}", device, 3.5)


def agreement() -> Iterator[Check]:
    """Compare a step with that on the CPU in float32, from the same weights on the same images."""
    reference = one_step("float32", CPU)

    def compare(precision: str) -> tuple[str, bool, list]:
        pairs = zip(one_step(precision, DEVICE), reference, strict=True)
        found = [float((ours - other).norm() / other.norm()) for ours, other in pairs]
        passed = all(a <= b for a, b in zip(found, PRECISIONS[precision], strict=True))
        return "loss {:.0e}, update {:.0e}".format(*found), passed, found

    for name, limits in islice(PRECISIONS.items(), 4 if THOROUGH else 2):
        title = f"{SMALL}: a step in {name} as on the CPU"
        yield attempt(title, "{:g}, {:g}".format(*limits), compare, name)
    yield attempt(f"{SMALL}: batches as on the CPU, with CutMix", "equal bits", same_batches)


def one_step(precision: str, device: torch.device) -> tuple[Tensor, Tensor]:
    """Train one step; return the loss and the change of all parameters, on the CPU."""
    tf32 = precision == "TF32"
    with torch.backends.cudnn.flags(enabled=True, benchmark=True, allow_tf32=tf32):
        trainer, batches = small_run(f"--dtype {'float32' if tf32 else precision}", device)
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
            losses = [trainer.train_step(batch) for batch in batches]
        finally:
            set_mode("default")
        trainer.check_losses()
        return f"none in {len(losses)} steps" if IS_GPU else "ran", IS_GPU or None

    for words in OPTIONS if THOROUGH else OPTIONS[:1]:
        yield attempt(f"{SMALL} {words}: waiting for the GPU", "none", train, words)


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
            status = exit_status(lambda: main.main([*words.split(), folder]))
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

    def compare() -> tuple[str, bool, list]:
        from torch._dynamo.utils import counters

        losses, seconds = [], []
        # Compiling kernels takes a CPU a minute.
        compile = partial(torch.compile, backend="inductor" if IS_GPU else "aot_eager")
        for words in ("--lr 0", "--lr 0 --compile"):
            with mock.patch("torch.compile", compile):
                trainer, batches = small_run(words)
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
    peaks = {dtype: matmul_tflops(getattr(torch, dtype)) for dtype in dtypes}
    text = ", ".join(f"{dtype} {peak:.3g} TFLOP/s" for dtype, peak in peaks.items())
    yield Check("matrix products (float32: TF32)", text, values=peaks)
    for name, method in product(LARGE, ("baseline", "dks")[: 1 + THOROUGH]):
        words = f"{LARGE[name]} --method {method}"
        title = f"{name} {method}, released configuration"
        yield attempt(title, "–", time_steps, words, 0, True)
        for dtype in dtypes:
            compiled = IS_GPU and (dtype, method) == ("bfloat16", "dks")
            for flag in ("", " --compile")[: 1 + compiled]:
                work = time_steps, f"{words} --dtype {dtype}{flag}", peaks[dtype]
                yield attempt(f"{name} {method}, {dtype}{flag}", "–", *work)


def matmul_tflops(dtype: torch.dtype) -> float:
    """Return the TFLOP/s of large matrix products; those in float32 use TF32."""
    size, precision = 8192 if IS_GPU else 256, torch.get_float32_matmul_precision()
    a, b = torch.randn(2, size, size, device=DEVICE, dtype=dtype).unbind()
    torch.set_float32_matmul_precision("high")
    ms = step_costs(lambda: a @ b, DEVICE)["ms"]
    torch.set_float32_matmul_precision(precision)
    return 2 * size**3 / ms / 1e9


def time_steps(words: str, peak_tflops: float, released: bool = False) -> tuple[str, None, dict]:
    """Time steps on one batch, by default this code's."""
    torch.compiler.reset()  # after a few networks, it would compile no more
    trainer, batches = make_run(words, DEVICE, 1)
    batch = next(batches)
    step = released_step(trainer) if released else trainer.train_step
    costs = step_costs(partial(step, batch), DEVICE)
    text = f"{1000 * batch.total / costs['ms']:,.0f} images/s, {costs['ms']:.1f} ms a step "
    text += f"(host {costs['host_ms']:.1f} ms), {costs['busy']:.0%} busy, {costs['gib']:.1f} GiB"
    if peak_tflops:
        with torch.no_grad(), FlopCounterMode(display=False) as counter:
            trainer.model.eval()(batch.images[:1])
        # A backward pass takes twice the operations of a forward pass.
        tflops = 3 * counter.get_total_flops() * batch.total / costs["ms"] / 1e9
        text += f", {tflops:.3g} TFLOP/s ({tflops / peak_tflops:.0%} of peak)"
    return text, None, costs


def main() -> None:
    signal.alarm(3600)  # ends this process if something hangs
    rows = sys.stdout
    with contextlib.redirect_stdout(io.StringIO()):
        for name in sys.argv[3:]:
            for row in globals()[name]():
                print(json.dumps(row), file=rows, flush=True)
                torch.cuda.empty_cache()


if __name__ == "__main__":
    main()
