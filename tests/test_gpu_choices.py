"""What is chosen for a GPU, without one: memory format, TF32, SyncBatchNorm, NCCL's device."""

import pytest
import torch
from torch.distributed import HashStore
from training import TinyNetwork, command_line, error_of, run_train, write_data

CPU, GPU = torch.device("cpu"), torch.device("cuda", 1)
V100, A100 = (7, 0), (8, 0)
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


@pytest.fixture
def gpu(wrn, imagenet, monkeypatch):
    """Set the compute capability of all GPUs."""

    def set_capability(capability):
        monkeypatch.setattr(torch.version, "cuda", "13.0")
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)

    return set_capability


@pytest.mark.parametrize(
    ("dtype", "capability", "channels_last"),
    [
        ("float32", (6, 1), False),
        ("float32", V100, False),
        ("bfloat16", (7, 5), False),
        ("float16", (6, 1), False),
        ("float16", V100, True),
        ("float32", A100, True),
        ("bfloat16", A100, True),
        ("float32", (12, 0), True),
        ("float32", None, True),  # not an NVIDIA GPU
    ],
)
def test_channels_last_needs_tensor_cores_for_the_dtype(
    wrn, imagenet, gpu, monkeypatch, dtype, capability, channels_last
):
    gpu(capability)
    if capability is None:
        monkeypatch.setattr(torch.version, "cuda", None)
    expected = torch.channels_last if channels_last else torch.contiguous_format
    assert imagenet.layout.memory_format(64, GPU, DTYPES[dtype]) == expected
    network = wrn.wide_resnet.WideResNet(10, 1, 10)
    assert wrn.layout.memory_format(network, GPU, DTYPES[dtype]) == expected


def test_a_narrow_wide_resnet_is_never_in_channels_last(wrn):
    network = wrn.wide_resnet.WideResNet(10, 0.25, 10)
    assert wrn.layout.memory_format(network, CPU, torch.float32) == torch.contiguous_format


def test_tf32_is_named_where_it_is_used(wrn, gpu, monkeypatch):
    describe = wrn.gpu.describe_dtype
    note = "float32 (convolutions in TF32; NVIDIA_TF32_OVERRIDE=0 turns it off)"
    monkeypatch.delenv("NVIDIA_TF32_OVERRIDE", raising=False)
    gpu(V100)
    assert describe("float32", GPU) == "dtype float32"
    gpu(A100)
    assert describe("float32", GPU) == f"dtype {note}"
    assert describe("bfloat16", GPU) == "dtype bfloat16"
    assert describe("float32", CPU) == "dtype float32"
    monkeypatch.setenv("NVIDIA_TF32_OVERRIDE", "0")
    assert describe("float32", GPU) == "dtype float32"
    monkeypatch.delenv("NVIDIA_TF32_OVERRIDE")
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)
    assert describe("float32", GPU) == "dtype float32"


@pytest.mark.parametrize(("processes", "synchronized"), [(2, True), (1, False)])
def test_sync_bn_replaces_batch_norm_and_keeps_its_names(
    wrn, imagenet, monkeypatch, processes, synchronized
):
    monkeypatch.setattr(wrn.batch_norm, "world_size", lambda: processes)
    for network in (wrn.wide_resnet.WideResNet(10, 1, 10), TinyNetwork("", num_classes=3)):
        before = {name: value.clone() for name, value in network.state_dict().items()}
        parameters = [id(parameter) for parameter in network.parameters()]
        network = wrn.batch_norm.synchronize_batch_norms(network, GPU)
        kinds = {type(each) for each in network.modules() if hasattr(each, "running_mean")}
        assert kinds == {torch.nn.SyncBatchNorm if synchronized else torch.nn.BatchNorm2d}
        assert network.state_dict().keys() == before.keys()
        assert all(torch.equal(network.state_dict()[name], before[name]) for name in before)
        assert [id(parameter) for parameter in network.parameters()] == parameters


def test_sync_bn_reaches_the_network(wrn, imagenet, monkeypatch, tmp_path):
    """The device stays the CPU; only the check of it sees a GPU."""
    for folder in (wrn, imagenet):
        convert = folder.batch_norm.synchronize_batch_norms
        monkeypatch.setattr(folder.batch_norm, "world_size", lambda: 2)
        module = folder.engine if folder is wrn else folder.train
        monkeypatch.setattr(
            module, "synchronize_batch_norms", lambda model, device, f=convert: f(model, GPU)
        )
    monkeypatch.setattr(imagenet.train, "build", TinyNetwork)
    data = write_data(tmp_path)
    for flags, count in (([], 0), (["--sync-bn"], 1)):
        config = imagenet.train_options.parse(command_line(data, tmp_path / "run", *flags))
        config = config.with_milestones(None)
        trainer = imagenet.train.make_trainer(config, ["a", "b", "c"], CPU, False)
        found = [m for m in trainer.parallel.modules() if isinstance(m, torch.nn.SyncBatchNorm)]
        assert len(found) == count
        config = wrn.options.parse(["--depth", "10", "--width", "1", *flags])
        trainer = wrn.engine.make_trainer(config, 10, CPU, branches=True)
        found = [m for m in trainer.model.modules() if isinstance(m, torch.nn.SyncBatchNorm)]
        assert bool(found) == bool(count)


def test_sync_bn_is_refused_on_a_cpu(imagenet, cifar_main, tmp_path, capsys):
    argv = command_line(write_data(tmp_path / "data"), tmp_path / "run", "--sync-bn")
    assert "--sync-bn: SyncBatchNorm runs on GPUs only" in error_of(
        lambda argv: run_train(imagenet, argv), capsys, argv
    )
    assert cifar_main("--save", tmp_path / "run", "--sync-bn") == 2
    assert "--sync-bn: SyncBatchNorm runs on GPUs only" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("batch_size", "processes", "micro_batches", "synchronized", "images"),
    [
        (256, 32, 1, False, 8),
        (256, 17, 1, False, 15),
        (256, 16, 1, False, None),
        (256, 32, 1, True, None),
        (256, 1, 32, False, 8),
        (256, 32, 32, True, 8),
        (8, 1, 1, False, None),  # not split
    ],
)
def test_a_warning_of_few_images_for_batch_norm(
    wrn, monkeypatch, capsys, batch_size, processes, micro_batches, synchronized, images
):
    monkeypatch.setattr(wrn.batch_norm, "world_size", lambda: processes)
    wrn.batch_norm.warn_of_few_images(batch_size, micro_batches, synchronized)
    out = capsys.readouterr().out
    expected = "" if images is None else f"warning: batch norm sees {images} images at a time"
    assert out.startswith(expected) and bool(out) == bool(expected) and out.count("\n") <= 1


def test_both_scripts_warn_of_few_images(wrn, imagenet, cifar_main, monkeypatch, tmp_path, capsys):
    """With the options that decide it."""
    seen = []
    for module in (wrn.main, imagenet.epoch_log):
        monkeypatch.setattr(module, "warn_of_few_images", lambda *args: seen.append(args))
    assert cifar_main("--epochs", 1, "--save", tmp_path / "cifar") == 0
    argv = command_line(write_data(tmp_path / "data"), tmp_path / "run", "--epochs", "1")
    assert run_train(imagenet, [*argv, "--grad-accumulation", "2"]) == 0
    assert seen == [(256, 1, False), (4, 2, False)]


@pytest.mark.parametrize(("device", "expected"), [(GPU, GPU), (CPU, None)])
def test_nccl_is_given_the_device(wrn, monkeypatch, device, expected):
    distributed, given = wrn.distributed, {}
    monkeypatch.setattr(wrn.process_group.dist, "TCPStore", lambda host, port: HashStore())
    monkeypatch.setenv("MASTER_ADDR", "localhost")
    monkeypatch.setenv("MASTER_PORT", "1")
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", "1")
    monkeypatch.delenv("TORCHELASTIC_RUN_ID", raising=False)
    monkeypatch.setattr(distributed, "select_device", lambda name: device)
    monkeypatch.setattr(torch.cuda, "set_device", lambda device: None)

    class Started(Exception):
        pass

    def init_process_group(backend, **options):
        given.update(options, backend=backend)
        raise Started

    monkeypatch.setattr(
        distributed.dist, "rendezvous", lambda *_, **__: iter([(HashStore(), 1, 2)])
    )
    monkeypatch.setattr(distributed.dist, "init_process_group", init_process_group)
    with pytest.raises(Started), distributed.distributed_context("auto"):
        pass
    assert given["device_id"] == expected
    assert given["backend"] == ("gloo" if expected is None else "nccl")
