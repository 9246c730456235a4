"""What happens on a GPU, tested without one: on a fake GPU, and with replaced properties."""

import json
import re
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from unittest.mock import Mock

import pytest
import torch
import torch.distributed as dist
from conftest import ROOT
from fake_gpu import FakeGpu, transfers
from halves import TinyNetwork
from torch import Tensor, nn

CPU, GPU = torch.device("cpu"), torch.device("cuda", 0)
P100, V100, T4, A100 = (6, 1), (7, 0), (7, 5), (8, 0)


@pytest.fixture
def gpu(monkeypatch):
    if torch.__version__ < torch.torch_version.TorchVersion("2.14"):
        pytest.skip("FakeTensorMode of PyTorch 2.6 wants a driver; checked with 2.14")
    return FakeGpu(monkeypatch)


@pytest.fixture
def refused(wrn):
    """Expects a `UserError` whose message matches."""
    return lambda match: pytest.raises(wrn.command_line.UserError, match=match)


def wrn_trainer(wrn, *flags):
    """Return the trainer and the batches of WRN-10-1 on the digits: two steps, one smaller."""
    words = "--dataset digits --depth 10 --width 1 --batch-size 1024 --epochs 2 --milestones 1"
    config = wrn.flags.with_recipe(wrn.flags.parse([*words.split(), *flags]))
    data = wrn.data.load_dataset("digits", Path(), 8, 1)
    return wrn.main.make_trainer(config, data, GPU, initialize=False)


class Squares(torch.utils.data.Dataset):
    """Decoded images."""

    def __len__(self):
        return 13

    def __getitem__(self, index):
        return torch.full((3, 46, 46), index, dtype=torch.uint8), index % 3


def imagenet_trainer(imagenet, *flags):
    """Return the trainer and the batches of ResNet-18: two steps, one smaller."""
    words = "-a resnet18 --image-size 40 -b 8 -j 0 --epochs 9 --data ."
    config = imagenet.flags.with_recipe(imagenet.flags.parse_training([*words.split(), *flags]))
    crop = imagenet.augmentation.RandomCrop(40, 13, seed=1)
    sets = imagenet.data.ImageSets(["a", "b", "c"], Squares(), Squares(), crop, "")
    compute = imagenet.weights.choose_compute(40, GPU, config.dtype)
    batches = imagenet.train.make_training_batches(config, sets, compute)
    trainer = imagenet.train.make_trainer(config, sets, batches.steps, compute, initialize=False)
    return trainer, batches


def test_a_cifar_step_stays_on_the_gpu(wrn, gpu):
    with gpu:
        trainer, batches = wrn_trainer(wrn, *"--dtype bfloat16 --cutmix 1".split())
        first, step = gpu.trace_epoch(trainer, batches, wrn.logs.Progress("", 2))
    # The order, the corners of the crops and the flips are drawn on the CPU, once an epoch.
    assert [call.name for call in transfers(first)] == 3 * ["_to_copy"]
    assert all(call.devices == {"cuda"} and not call.waits for call in step)
    names = [call.name for call in step]
    assert names.count("convolution") == 18 and names.count("_fused_sgd_") == 1


def test_an_imagenet_step_copies_only_its_batch(imagenet, gpu):
    flags = "--dtype float16 --ema 0.9 --grad-accumulation 2".split()
    with gpu:
        trainer, batches = imagenet_trainer(imagenet, *flags)
        _, step = gpu.trace_epoch(trainer, batches, imagenet.logs.Progress("", 2))
    assert [call.name for call in transfers(step)] == 2 * ["_to_copy"]  # images and labels
    assert not any(call.waits for call in step)
    names = [call.name for call in step]
    norms = sum(isinstance(each, nn.BatchNorm2d) for each in trainer.model.modules())
    assert names.count("cudnn_batch_norm") == 2 * norms
    for name in ("_fused_sgd_", "_foreach_lerp_", "_amp_foreach_non_finite_check_and_unscale_"):
        assert names.count(name) == 1


@pytest.mark.parametrize("half", ["wrn", "imagenet"])
def test_a_test_waits_only_at_its_end(request, half, monkeypatch, gpu):
    folder, taken = request.getfixturevalue(half), []
    monkeypatch.setattr(folder.evaluation.Sums, "totals", lambda self: {})
    monkeypatch.setattr(folder.evaluation.Scores, "from_sums", lambda *_: None)
    with gpu:
        if half == "wrn":
            trainer, _ = wrn_trainer(folder)
            data = folder.data.load_dataset("digits", Path(), 8, 1)
            tests = folder.data.Batches(data.test, data, 180, GPU)
        else:
            trainer, _ = imagenet_trainer(folder)
            tests = folder.batches.TestBatches(Squares(), 8, 0, trainer.compute)
        arguments = {"test": trainer.model}, tests, trainer.compute, trainer.criterion
        folder.evaluation.evaluate(*arguments, lambda: taken.append(gpu.take()), confusion=True)
    _, calls = taken
    assert len(transfers(calls)) == (0 if half == "wrn" else 2)  # images and labels
    assert not any(call.waits for call in calls)


READS = {
    "item": lambda logits: logits.sum().item(),
    "if": lambda logits: bool(logits.sum() > 0),
    "nonzero": lambda logits: logits.nonzero(),
    "mask": lambda logits: logits[logits > 0],
    "bincount": lambda logits: logits.argmax(-1).bincount(minlength=10),
    "a tensor on the CPU": lambda logits: logits * torch.ones(10),
}
COPIES = {
    "to the CPU": lambda logits: logits.cpu(),
    "a new tensor": lambda logits: torch.tensor([1.0], device=logits.device),
    "an index on the CPU": lambda logits: logits[torch.zeros(2, dtype=torch.int64)],
    "a scalar on the CPU": lambda logits: logits * torch.tensor(2.0),
    "assignment to a mask": lambda logits: logits.index_put_((logits > 0,), logits[0, :1]),
}


@pytest.mark.parametrize("name", [*READS, *COPIES])
def test_the_fake_gpu_notices(name, gpu):
    with gpu:
        logits = torch.randn(4, 10, device=GPU)
        assert transfers(gpu.take()) == []
        if name in READS:
            with pytest.raises(RuntimeError, match="aten|at least two devices"):
                READS[name](logits)
        else:
            COPIES[name](logits)
            assert len(transfers(gpu.take())) == 1


def test_an_export_is_on_the_cpu(wrn, gpu, monkeypatch):
    saved = []
    monkeypatch.setattr(wrn.checkpoint, "save", lambda path, content: saved.append(content))
    with gpu:
        state = nn.Linear(2, 3, device=GPU).state_dict()
        wrn.checkpoint.save_weights(Path("missing.pt"), state, {})
    assert {value.device for value in state.values()} == {GPU}
    assert [value.device for value in saved[0].values()] == 2 * [CPU]


@pytest.mark.parametrize("processes", [1, 2])
def test_sync_bn_replaces_batch_norm(wrn, gpu, monkeypatch, processes):
    monkeypatch.setattr(wrn.engine, "world_size", lambda: processes)
    kind = nn.SyncBatchNorm if processes > 1 else nn.BatchNorm2d
    with gpu:
        trainer, _ = wrn_trainer(wrn, "--sync-bn")
        network = trainer.model
        names = list(wrn_trainer(wrn)[0].model.state_dict())
    assert {type(each) for each in network.modules() if hasattr(each, "running_mean")} == {kind}
    assert list(network.state_dict()) == names


@pytest.fixture
def compute(wrn, monkeypatch):
    """Returns how to compute in a dtype on a GPU."""

    def make(dtype, capability, otherwise=True):
        monkeypatch.setattr(torch.version, "cuda", "13.0")
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
        return wrn.distributed.make_compute(GPU, dtype, channels_last_on_cpu=otherwise)

    return make


@pytest.mark.parametrize(
    ("dtype", "without", "capable"),
    [("float32", V100, A100), ("bfloat16", T4, A100), ("float16", P100, V100)],
)
def test_channels_last_needs_tensor_cores(compute, dtype, without, capable):
    assert compute(dtype, without).memory_format == torch.contiguous_format
    for capability in (capable, (12, 0)):
        assert compute(dtype, capability, False).memory_format == torch.channels_last


def test_the_first_line_names_the_gpu(wrn, compute, monkeypatch):
    about = SimpleNamespace(name="NVIDIA A100", total_memory=80 * 2**30)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: about)
    monkeypatch.delenv("NVIDIA_TF32_OVERRIDE", raising=False)
    driver = SimpleNamespace(is_file=lambda: True, read_text=lambda: "580.65\n")
    monkeypatch.setattr(wrn.distributed, "Path", lambda path: driver)
    start = "cuda:0 (NVIDIA A100, 80 GiB, driver 580.65, CUDA 13.0), "
    assert str(compute("float32", V100)) == f"{start}float32, torch {torch.__version__}"
    assert str(compute("bfloat16", A100)) == f"{start}bfloat16, torch {torch.__version__}"
    tf32 = f"{start}float32 (convolutions in TF32; NVIDIA_TF32_OVERRIDE=0 turns it off), "
    assert str(compute("float32", A100)).startswith(tf32)
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)
    assert "TF32" not in str(compute("float32", A100))


def test_a_gpu_that_torch_cannot_use_is_refused(wrn, refused, monkeypatch):
    """CUDA is broken in these tests; here there seems to be a GPU."""
    assert wrn.distributed.select_device("auto") == CPU
    found = lambda path: SimpleNamespace(exists=lambda: path == "/dev/nvidia0")  # noqa: E731
    monkeypatch.setattr(wrn.distributed, "Path", found)
    with refused(r"can't be used \(.*(GPU|CUDA).*\).*use --device cpu$"):
        wrn.distributed.select_device("auto")
    assert wrn.distributed.select_device("cpu") == CPU


def test_a_gpu_must_run_a_kernel(wrn, refused, monkeypatch):
    class Allocated:
        def __add__(self, other):
            raise RuntimeError("CUDA error: no kernel image\nis available for execution")

    monkeypatch.setattr(torch.cuda, "set_device", lambda device: None)
    monkeypatch.setattr(torch, "ones", lambda *_, device: Allocated())
    with refused(r"\(CUDA error: no kernel image is available for execution\); PyTorch finds"):
        wrn.distributed.select_device("cuda")


@pytest.mark.parametrize("name", ["meta", "xla", "mps", "mps:0", ""])
def test_other_devices_are_refused(wrn, refused, name):
    with refused(f"^--device {name}: expected cpu, cuda or cuda:N$"):
        wrn.distributed.select_device(name)


NCCL = """NCCL error in: /pytorch/torch/csrc/distributed/c10d/NCCLUtils.cpp:77, unhandled system \
error (run with NCCL_DEBUG=INFO for details), NCCL version 2.27.5
ncclSystemError: System call (e.g. socket, malloc) or external library call failed or device error.
Last error:
Error while creating shared memory segment /dev/shm/nccl-x (size 9637888), out of memory"""


def test_errors_of_memory_and_of_nccl_differ(wrn, capsys):
    for error, expected in (
        (torch.OutOfMemoryError("CUDA: tried"), r"not enough memory \(CUDA: tried\); .* -b"),
        (RuntimeError("CUDA error: out of memory"), r"not enough memory \(CUDA error.* -b"),
        (dist.DistBackendError(NCCL), "Error while creating .* NCCL_DEBUG=INFO.* --shm-size"),
    ):
        assert wrn.command_line.exit_status(Mock(side_effect=error)) == 2
        assert re.fullmatch(f"error: {expected}\n", capsys.readouterr().err)


def test_sync_bn_is_not_compiled(wrn, refused):
    with refused("--sync-bn with --compile"):
        wrn.flags.with_recipe(wrn.flags.parse(["--sync-bn", "--compile"]))


@pytest.mark.parametrize(("device", "expected"), [(GPU, ("nccl", GPU)), (CPU, ("gloo", None))])
def test_nccl_is_given_the_device(wrn, refused, monkeypatch, device, expected):
    def init_process_group(backend, device_id, **others):
        assert (backend, device_id) == expected
        raise ValueError("started")

    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setattr(wrn.distributed, "select_device", lambda name: device)
    monkeypatch.setattr(dist, "rendezvous", lambda url: iter([(None, 1, 2)]))
    monkeypatch.setattr(wrn.distributed, "fresh_store", lambda store, rank, world_size: store)
    monkeypatch.setattr(dist, "init_process_group", init_process_group)
    with refused("started"), wrn.distributed.process_group("auto"):
        pass


@pytest.mark.parametrize("total", range(2, 10))
def test_all_processes_have_the_same_number_of_micro_batches(wrn, monkeypatch, total):
    """Otherwise SyncBatchNorm would wait for some that never come."""
    monkeypatch.setattr(wrn.engine, "world_size", lambda: 2)
    config = wrn.flags.with_recipe(wrn.flags.parse(["--grad-accumulation", "4"]))
    schedule, criterion = wrn.schedule.Schedule(config, 1), wrn.synergy.SynergyLoss()
    compute, counts = wrn.distributed.Compute(CPU), []
    for images in (total - total // 2, total // 2):
        network, sizes = TinyNetwork("", num_classes=3), []
        network.register_forward_pre_hook(lambda _, args, sizes=sizes: sizes.append(len(args[0])))
        trainer = wrn.engine.Trainer(network, criterion, schedule, config, compute)
        monkeypatch.setattr(trainer._parallel, "no_sync", nullcontext, raising=False)
        batch = torch.randn(images, 3, 40, 40), torch.arange(images) % 3
        trainer.train_step(wrn.evaluation.Batch(*batch, total))
        assert sum(sizes) == images and min(sizes) > 0
        counts.append(len(sizes))
    assert counts == 2 * [min(4, total // 2)]


def test_images_and_labels_are_pinned(imagenet):
    samples = [(torch.zeros(3, 4, 4, dtype=torch.uint8), label) for label in range(2)]
    for device in (CPU, GPU):
        loader = imagenet.batches.make_loader(samples, 0, device)
        assert loader.pin_memory == (device == GPU)
        assert [type(each) for each in loader.collate_fn(samples)] == 2 * [Tensor]


def test_the_gpu_check_runs_on_a_cpu(python, tmp_path):
    words = "--only environment agreement synchronization infinity memory --json".split()
    script, found = ROOT / "benchmarks" / "gpu.py", tmp_path / "gpu.json"
    done = python.run(script, *words, found, path=[script.parent], variables={"CC": "missing"})
    rows, (notice, _, header, _, *lines) = json.loads(found.read_text()), done.stdout.splitlines()
    assert "nothing about GPUs" in notice and header == "| check | result | limit | pass |"
    assert [line.count("|") for line in lines] == len(rows) * [5]
    machine, others = [row["passed"] for row in rows[:4]], [row["passed"] for row in rows[4:]]
    assert machine[3] is False and "error: failed: C compiler" in done.stderr
    assert False not in others and others.count(True) == 10 and done.returncode == 1, done.stdout
