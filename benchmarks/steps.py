"""Training steps: the released code's and ours, their time and their memory."""

import sys
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from statistics import median

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from common.distributed import Compute
from common.engine import Trainer, TrainingBatches
from common.evaluation import Batch
from common.logs import peak_memory_mib
from common.options import TrainingConfig
from common.schedule import make_schedule
from synergy import SynergyLoss
from timing import DTYPES, Row, Setup, Work, compare

MakeStep = Callable[[], tuple[nn.Module, Work]]  # returns a network and a step that trains it


def released_loss(logits: Sequence[Tensor], labels: Tensor) -> Tensor:
    """Sum the cross-entropy of each classifier and the divergence of each ordered pair."""
    total = sum(F.cross_entropy(each, labels) for each in logits)
    for i, student in enumerate(logits):
        for j, teacher in enumerate(logits):
            if i != j:
                p = F.softmax(teacher, dim=1).detach() + 1e-8
                q = F.softmax(student, dim=1) + 1e-8
                total = total + (p * (p.log() - q.log())).sum() / len(labels)
    return total


def released_step(
    model: nn.Module, weight_decay: float, device: torch.device
) -> Callable[[Tensor, Tensor], float]:
    """Return a function of images and labels that trains one step of the released code.

    It is eager, in float32 and NCHW, and reads the loss back at every step, for the progress bar.
    """
    model.to(device).train()
    optimizer = torch.optim.SGD(model.parameters(), 0.1, 0.9, weight_decay=weight_decay)

    def step(images: Tensor, labels: Tensor) -> float:
        loss = released_loss(model(images.to(device)), labels.to(device))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        return loss.item()

    return step


def make_trainer(model: nn.Module, compute: Compute, weight_decay: float) -> Trainer:
    """Return a trainer with the options of the released code."""
    config = TrainingConfig(milestones=(), weight_decay=weight_decay)
    return Trainer(model, SynergyLoss(), make_schedule(config, 1), config, compute)


def random_batch(shape: tuple[int, ...], device: torch.device) -> Batch:
    labels = torch.randint(100, shape[:1], device=device)
    return Batch(torch.randn(shape, device=device), labels, shape[0])


def make_run(words: str, device: torch.device, batches: float) -> tuple[Trainer, TrainingBatches]:
    """Return what `main.py` or `train.py`, whichever is on the path, trains with.

    Args:
        words: its options.
        device: for the network and the batches.
        batches: number of batches of random images.
    """
    argv = f"--epochs 99 --lr 0.01 {words}".split()
    if "wrn_DKS" in sys.path[1]:
        import main
        from data import CIFAR_MEAN, CIFAR_STD, Dataset, Split

        config = main.with_recipe(main.parse(argv))
        count, names = int(batches * config.batch_size), [str(label) for label in range(100)]
        split = Split(random_images(count, config.image_size), torch.arange(count) % 100)
        data = Dataset(split, split, names, CIFAR_MEAN, CIFAR_STD, True, "")
        return main.make_trainer(config, data, device, initialize=False)
    import train
    from augmentation import RandomCrop
    from data import ImageSets
    from weights import choose_compute

    config = train.with_recipe(train.parse_training(argv))
    count, names = int(batches * config.batch_size), [str(label) for label in range(1000)]
    crop = RandomCrop(config.image_size, count, config.seed)
    samples = [(image, i % 1000) for i, image in enumerate(random_images(count, crop.side))]
    sets = ImageSets(names, samples, samples, crop, "")
    compute = choose_compute(config.image_size, device, config.dtype)
    loaded = train.make_training_batches(config, sets, compute)
    return train.make_trainer(config, sets, loaded.steps, compute, initialize=False), loaded


def random_images(count: int, side: int) -> Tensor:
    """Return smooth images, (count, 3, side, side) uint8, the same ones in each call."""
    coarse = torch.rand(count, 3, 4, 4, generator=torch.Generator().manual_seed(1))
    return (F.interpolate(coarse, (side, side), mode="bicubic").clamp(0, 1) * 255).byte()


def step_rows(
    what: str, make_ours: Callable[[str], MakeStep], make_released: MakeStep, setup: Setup
) -> Iterator[Row]:
    """Compare training steps in each dtype, and their memory on a CPU.

    Args:
        what: for the table.
        make_ours: returns our side, of a dtype.
        make_released: the other side. Both can be pickled.
        setup: of the benchmark.
    """
    for dtype in DTYPES:
        sides = make_ours(dtype), make_released
        (_, ours), (_, released) = (make() for make in sides)
        times, remarks = compare(ours, released, setup), ""
        del ours, released
        if setup.device.type == "cpu":
            memory = [peak_memory(make) for make in sides]
            remarks = f"memory: {memory[0] / memory[1]:.2f} of the released's"
        yield Row(what, dtype, *times, remarks)


def peak_memory(make: MakeStep) -> float:
    """Return the peak memory in bytes of two steps, without weights, gradients and momentum.

    The median of three processes, because it varies by a tenth. Only on Linux.
    """
    found = []
    for _ in range(3):
        with ProcessPoolExecutor(1, get_context("spawn")) as pool:
            found.append(pool.submit(measure_memory, make, torch.get_num_threads()).result())
    return median(found)


def measure_memory(make: MakeStep, threads: int) -> int:
    """Measure in this process what `peak_memory` returns."""
    torch.set_num_threads(threads)
    before = peak_resident()  # ahead of all that a side allocates: ours makes its momentum at once
    model, step = make()
    for _ in range(2):
        step()
    weights = sum(p.numel() * p.element_size() for p in model.parameters())
    return peak_resident() - before - 3 * weights


def peak_resident() -> int:
    """Return the peak resident memory of this process in bytes."""
    status = Path("/proc/self/status").read_text()
    line = next(line for line in status.splitlines() if line.startswith("VmHWM"))
    return int(line.split()[1]) * 1024


def step_costs(step: Work, device: torch.device, seconds: float = 1.0) -> dict[str, float]:
    """Time steps after a warm-up: on a GPU for some seconds, on a CPU one.

    Returns:
        Milliseconds of a step (`ms`), those after which the host goes on (`host_ms`), and the peak
        memory (`gib`), on a CPU that of the process.
    """
    is_gpu = device.type == "cuda"
    wait = torch.cuda.synchronize if is_gpu else lambda: None
    for _ in range(5 if is_gpu else 1):
        step()
    wait()
    if is_gpu:
        torch.cuda.reset_peak_memory_stats()
    start, count = time.perf_counter(), 0
    while count < 1 or is_gpu and time.perf_counter() - start < seconds:
        step()
        count += 1
    wait()
    ms = host_ms = 1000 * (time.perf_counter() - start) / count
    for _ in range(3 if is_gpu else 0):  # one at a time: a full queue would make the host wait
        start = time.perf_counter()
        step()
        host_ms = min(host_ms, 1000 * (time.perf_counter() - start))
        wait()
    return {"ms": ms, "host_ms": host_ms, "gib": peak_memory_mib(device) / 1024}


def describe_costs(costs: dict, images: int, flops: float = 0, peak_tflops: float = 1) -> str:
    """Describe the costs of a step of some images and, if they are given, of operations."""
    text = f"{1000 * images / costs['ms']:,.0f} images/s, {costs['ms']:.1f} ms a step (host "
    text += f"{costs['host_ms']:.1f} ms), {costs['gib']:.1f} GiB"
    tflops = flops / costs["ms"] / 1e9
    return f"{text}, {tflops:.3g} TFLOP/s ({tflops / peak_tflops:.0%} of peak)" if flops else text


def training_flops(model: nn.Module, images: Tensor) -> int:
    """Return the floating-point operations of a training step: three times those of a forward."""
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        model.eval()(images[:1])
    return 3 * counter.get_total_flops() * len(images)


def matmul_tflops(dtype: torch.dtype, device: torch.device) -> float:
    """Return the TFLOP/s of large matrix products; those in float32 use TF32."""
    size, precision = 8192 if device.type == "cuda" else 256, torch.get_float32_matmul_precision()
    a, b = torch.randn(2, size, size, device=device, dtype=dtype).unbind()
    torch.set_float32_matmul_precision("high")
    ms = step_costs(lambda: a @ b, device, 0.1)["ms"]
    torch.set_float32_matmul_precision(precision)
    return 2 * size**3 / ms / 1e9
