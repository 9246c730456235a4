"""The benchmarks: fair turns, the same computation on both sides, tables, refusals."""

import json
import sys
from functools import partial
from types import SimpleNamespace

import pytest
import torch
from conftest import ROOT
from PIL import Image
from synthetic import write_folders

CPU = torch.device("cpu")


def test_sides_take_turns_after_a_warm_up(cifar_benchmark):
    calls = []
    ours_s, released_s = cifar_benchmark.timing.compare(
        lambda: calls.append("ours"), lambda: calls.append("released"), 3, CPU
    )
    assert calls == "ours released ours released released ours ours released".split()
    assert len(ours_s) == len(released_s) == 3


def test_table_and_json(cifar_benchmark, tmp_path, capsys):
    row = cifar_benchmark.timing.Row(
        "a step", "bfloat16", [1.0, 2.0, 1.0], [3.0, 4.0, 1.0], "a remark", {"peak": 0.5}
    )
    cifar_benchmark.timing.show([row], CPU, tmp_path / "x.json")
    printed = capsys.readouterr().out
    assert "| a step | bfloat16 | 2.00 (1.00–3.00) | 3 | a remark |" in printed
    assert "| a step | bfloat16 | 50.0 % |" in printed
    written = json.loads((tmp_path / "x.json").read_text())
    assert written["rows"][0]["released_s"] == [3.0, 4.0, 1.0]
    assert written["rows"][0]["ratio"] == 2.0


def test_released_loss_is_ours(cifar_benchmark):
    logits = [torch.randn(6, 9, dtype=torch.float64, requires_grad=True) for _ in range(3)]
    labels = torch.randint(9, (6,))
    ours = cifar_benchmark.synergy.SynergyLoss()(logits, labels).total
    released = cifar_benchmark.released.released_loss(logits, labels)
    torch.testing.assert_close(released, ours, atol=1e-5, rtol=0)
    for a, b in zip(*(torch.autograd.grad(each, logits) for each in (ours, released)), strict=True):
        torch.testing.assert_close(a, b, atol=1e-5, rtol=0)


def test_released_step_is_ours(cifar_benchmark):
    """Three steps from the same weights on the same images differ only in rounding."""
    parts = cifar_benchmark.cifar_parts
    torch.manual_seed(0)
    images, labels = torch.randn(4, 3, 32, 32), torch.randint(100, (4,))
    trainer = parts.new_trainer(10, 1, 100, "float32", CPU)
    torch.manual_seed(1)
    model = cifar_benchmark.wide_resnet.WideResNet(10, 1, 100)
    step = cifar_benchmark.released.released_step(model, parts.WEIGHT_DECAY, CPU)
    for _ in range(3):
        _, losses = trainer.train_step(cifar_benchmark.loader.Batch(images, labels, 1.0))
        assert step(images, labels) == pytest.approx(losses.total.item(), rel=1e-3)


def test_released_step_has_our_weight_decay(cifar_benchmark, monkeypatch):
    parts = cifar_benchmark.cifar_parts
    monkeypatch.setattr(parts, "WEIGHT_DECAY", 1.0)  # large enough to be seen in a step
    monkeypatch.setattr(parts, "random_batch", lambda size, device: batch)
    torch.manual_seed(0)
    batch = cifar_benchmark.loader.Batch(torch.randn(4, 3, 32, 32), torch.arange(4), 1.0)
    sides = (parts.our_step(10, 1, 4, "float32", CPU), parts.released_training_step(10, 1, 4, CPU))
    for _, step in sides:
        step()
    (ours, _), (released, _) = sides
    torch.testing.assert_close(ours.state_dict(), released.state_dict(), rtol=1e-3, atol=1e-4)


def test_released_augmentation_takes_all_crops(cifar_benchmark):
    """Of the digits padded by reflection; they are not flipped."""
    released = cifar_benchmark.released_data
    data = cifar_benchmark.data.load_dataset("digits", None, 8, 1)
    train = released.PilImages(data.train, released.transform(data, train=True))
    torch.manual_seed(0)
    seen = {tuple(train[0][0].flatten().tolist()) for _ in range(100)}
    pixels = data.train.images[:1].float() / 255
    padded = torch.nn.functional.pad(pixels, (1, 1, 1, 1), mode="reflect")
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in data.info[1:])
    crops = [padded[0, :, i : i + 8, j : j + 8] for i in range(3) for j in range(3)]
    expected = [((crop - mean) / std).flatten() for crop in crops]
    assert len(seen) == 9
    for crop in seen:
        assert any(torch.allclose(torch.tensor(crop), each, atol=1e-5) for each in expected)


def test_times_are_of_one_batch(cifar_benchmark, monkeypatch):
    parts, calls = cifar_benchmark.cifar_parts, []
    monkeypatch.setattr(parts, "timed", lambda work, device: calls.append(work()) or 40.0)
    assert parts.data_time(4, CPU) == 40 / parts.REPEATS
    assert len(calls[0]) == parts.REPEATS
    assert parts.loss_time(4, CPU) == 40 / parts.REPEATS


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_our_steps_compute_in_the_dtype_that_is_named(cifar_benchmark, imagenet_benchmark, dtype):
    seen = []
    sides = (
        cifar_benchmark.cifar_parts.our_step(10, 0.5, 2, dtype, CPU),
        imagenet_benchmark.imagenet_parts.our_step((2, 3, 64, 64), dtype, CPU),
    )
    for model, step in sides:
        model.register_forward_hook(lambda module, given, logits: seen.append(logits[0].dtype))
        step()
    assert seen == [getattr(torch, dtype)] * 2


def test_released_data_are_ours(cifar_benchmark):
    """The pixels are the same without augmentation; with it, shapes are the same."""
    released, batches = cifar_benchmark.released_data, cifar_benchmark.loader.Batches
    data = cifar_benchmark.data.load_dataset("digits", None, 8, 1)
    test = released.PilImages(data.test, released.transform(data, train=False))
    ours = next(batches(data.test, data.info, 5, CPU).epoch())
    pixels = torch.stack([test[i][0] for i in range(5)])
    torch.testing.assert_close(pixels, ours.images, atol=1e-5, rtol=1e-5)
    train = released.PilImages(data.train, released.transform(data, train=True))
    images, labels = next(iter(released.loader(train, 7, 0, True)))
    assert images.shape == (7, 3, 8, 8) and labels.shape == (7,)


def test_operations_of_a_step_are_counted(cifar_benchmark):
    """A step takes three times the forward pass, except for the first layer's input gradient."""

    def build():
        return cifar_benchmark.wide_resnet.WideResNet(10, 1, 100)

    forward = 2 * cifar_benchmark.metrics.cost(build, 32).multiply_adds
    counted = cifar_benchmark.profiling.step_operations(build, (4, 3, 32, 32))
    assert 2.9 * 4 * forward < counted < 3 * 4 * forward


def test_a_training_step(cifar_benchmark, monkeypatch):
    """Measure all but the memory, which needs processes, and the peak rate, which takes time."""
    monkeypatch.setattr(cifar_benchmark.profiling, "peak_memory", lambda make, device: 10)
    monkeypatch.setattr(cifar_benchmark.profiling, "peak_rate", lambda dtype, device: 1e15)
    setup = cifar_benchmark.runner.BenchmarkSetup(CPU, 1)
    rows = list(cifar_benchmark.cifar_parts.training_step(10, 1, 4, setup))
    assert [row.dtype for row in rows] == ["float32", "bfloat16"]
    for row in rows:
        kinds = [row.shares[name] for name in ("convolutions", "normalization", "optimizer")]
        assert min(kinds) > 0 and sum(kinds) + row.shares["other"] == pytest.approx(1)
        assert 0 < row.shares["peak"] < 1 and row.shares["loss"] > 0
        assert row.remarks == "peak 1,000,000 Gop/s; memory 1.00 of the released code's"


def test_memory_is_measured_in_a_process(cifar_benchmark, monkeypatch):
    """The activations of a batch of 128 on WRN-10-1 take about a hundred megabytes."""
    peak_memory = cifar_benchmark.profiling.peak_memory
    make = partial(cifar_benchmark.cifar_parts.our_step, 10, 1, 128, "float32", CPU)
    monkeypatch.setattr(sys, "path", [str(ROOT), str(cifar_benchmark.path), *sys.path])
    for name, module in cifar_benchmark.imported.items():  # functions are pickled by name
        monkeypatch.setitem(sys.modules, name, module)
    memory = peak_memory(make, CPU)
    assert memory is None or 50e6 < memory < 1e9


def test_memory_of_both_sides_is_measured_alike(cifar_benchmark, monkeypatch):
    """Ours allocates its momentum before the first step, the released side in it."""
    profiling, allocated = cifar_benchmark.profiling, [1000]
    monkeypatch.setattr(profiling, "peak_resident", lambda: sum(allocated))
    model = torch.nn.Linear(8, 1, bias=False)
    weights, activations = 32, 500

    def side(in_make, in_step):
        def make():
            allocated.append(in_make)
            steps = iter([in_step, 0])
            return model, lambda: allocated.append(next(steps))

        return profiling.measure_memory(make, CPU, 1)

    assert side(2 * weights, weights + activations) == activations
    assert side(weights, 2 * weights + activations) == activations


def test_released_loaders_pin_memory_if_there_is_a_gpu(cifar_benchmark, monkeypatch):
    for available in (False, True):
        monkeypatch.setattr(torch.cuda, "is_available", lambda value=available: value)
        loader = cifar_benchmark.released_data.loader([0], 1, 0, train=True)
        assert loader.pin_memory == available


def test_rows_without_training(cifar_benchmark, monkeypatch, capsys):
    parts = cifar_benchmark.cifar_parts
    loss_work, random_batch = parts.loss_work, parts.random_batch

    def small_loss(loss, classifiers, batch_size, num_classes, device):
        return loss_work(loss, classifiers, batch_size // 32, num_classes // 10, device)

    monkeypatch.setattr(parts, "REPEATS", 1)
    monkeypatch.setattr(parts, "loss_work", small_loss)
    monkeypatch.setattr(parts, "random_batch", lambda size, device: random_batch(2, device))
    assert cifar_benchmark.cifar.main(["--row", "loss", "--row", "inference", "--rounds", "1"]) == 0
    printed = capsys.readouterr().out
    assert "| loss of 3 classifiers" in printed and "time of 16 classifiers" in printed
    assert "| inference, exported WRN-16-2" in printed


def test_epochs(cifar_benchmark, tmp_path):
    for part in ("train", "test"):
        write_folders(tmp_path, {"cat": 2, "dog": 2}, part)
    setup = cifar_benchmark.runner.BenchmarkSetup(CPU, 1, tmp_path, workers=0)
    rows = list(cifar_benchmark.cifar_epochs.folder(setup))
    assert [row.dtype for row in rows] == ["float32", "bfloat16"]
    assert all(row.what.startswith("epoch of folder, 4 + 4 images") for row in rows)


def test_imagenet_evaluation(imagenet_benchmark, tmp_path):
    (tmp_path / "val" / "a").mkdir(parents=True)
    Image.effect_noise((50, 40), 90).convert("RGB").save(tmp_path / "val" / "a" / "1.jpg")
    setup = imagenet_benchmark.runner.BenchmarkSetup(CPU, 1, tmp_path, workers=0)
    exact, half = imagenet_benchmark.imagenet_parts.evaluation(setup, "resnet18")
    assert exact.what.startswith("evaluation, resnet18, 2 photographs")
    largest = [float(row.remarks.split()[3]) for row in (exact, half)]
    assert largest[0] < 1e-4 < largest[1] < 0.1


def test_released_evaluation_counts_the_top_1_and_the_top_5(imagenet_benchmark):
    """The label of image i has rank i."""

    class Ranked(torch.nn.Module):
        def forward(self, images):
            return torch.arange(10.0).flip(0).expand(len(images), 10)

    loader = torch.utils.data.DataLoader([(torch.zeros(3, 4, 4), i) for i in range(10)], 3)
    errors = imagenet_benchmark.imagenet_parts.released_evaluation(Ranked(), loader, CPU)
    assert errors == (90, 50)


def test_imagenet_training_step(imagenet_benchmark):
    shape = (2, 3, 64, 64)
    for make in ("our_step", "released_training_step"):
        words = [shape, "float32", CPU] if make == "our_step" else [shape, CPU]
        model, step = getattr(imagenet_benchmark.imagenet_parts, make)(*words)
        before = model.conv1.weight.clone()
        step()
        assert not torch.equal(model.conv1.weight, before)


@pytest.mark.parametrize(
    "words", [["--row", "folder"], ["--rounds", "0"], ["--json", "/nonexistent/x.json"]]
)
def test_refusals(cifar_benchmark, words, capsys):
    assert cifar_benchmark.cifar.main(words) == 2
    assert capsys.readouterr().err.count("\n") == 1


def test_imagenet_refusals(imagenet_benchmark, tmp_path, capsys):
    assert imagenet_benchmark.imagenet.main([]) == 2
    assert imagenet_benchmark.imagenet.main(["--row", "pipeline"]) == 2
    assert imagenet_benchmark.imagenet.main([str(tmp_path)]) == 2
    errors = capsys.readouterr().err
    assert errors.count("\n") == 3 and errors.count("IMAGENET") == 2


def test_shares_on_a_gpu_count_each_kernel_once(cifar_benchmark):
    """PyTorch's profiler lists operators, with the time of their kernels, and the kernels."""

    def event(key, device, own, total=None, annotation=False):
        return SimpleNamespace(
            key=key,
            device_type=device,
            is_user_annotation=annotation,
            self_device_time_total=own,
            device_time_total=total or own,
            self_cpu_time_total=1000.0,
        )

    cpu, cuda = torch.autograd.DeviceType.CPU, torch.autograd.DeviceType.CUDA
    events = [
        event("aten::cudnn_convolution", cpu, 50.0),
        event("aten::convolution_backward", cpu, 20.0),
        event("aten::cudnn_batch_norm", cpu, 10.0),
        event("Optimizer.step#SGD.step", cpu, 0.0, 15.0, annotation=True),
        event("aten::_fused_sgd_", cpu, 15.0),
        event("aten::add_", cpu, 5.0),
        event("sm80_xmma_fprop", cuda, 70.0),
        event("void batch_norm_kernel", cuda, 10.0),
        event("multi_tensor_apply_kernel", cuda, 15.0),
        event("Optimizer.step#SGD.step", cuda, 15.0, annotation=True),
        event("add", cuda, 5.0),
    ]
    shares = cifar_benchmark.profiling.shares_by_kind(events, on_gpu=True)
    expected = {"convolutions": 0.7, "normalization": 0.1, "optimizer": 0.15, "other": 0.05}
    assert shares == pytest.approx(expected)


def test_input_pipelines(imagenet_benchmark, tmp_path, monkeypatch):
    """Both sides give the same number of batches of the same shape, without and from a cache."""
    (tmp_path / "val" / "a").mkdir(parents=True)
    Image.effect_noise((50, 40), 90).convert("RGB").save(tmp_path / "val" / "a" / "1.jpg")
    benchmark, shapes = imagenet_benchmark.imagenet_pipeline, []

    def compare(ours, released, rounds, device, clock):
        for side in (ours, released):
            shapes.append([tuple(images.shape) for images, _ in side.args[0]()])
        return [2.0], [8.0]

    monkeypatch.setattr(benchmark, "IMAGES", 5)
    monkeypatch.setattr(benchmark, "BATCH_SIZE", 4)
    monkeypatch.setattr(benchmark, "CACHE_BYTES", 5 * 3 * 40 * 40 * 3)
    monkeypatch.setattr(benchmark, "COPIED_BYTES", 1000)
    monkeypatch.setattr(benchmark, "compare", compare)
    setup = imagenet_benchmark.runner.BenchmarkSetup(CPU, 1, tmp_path)
    rows = list(benchmark.rows_of_size(setup, 40, 0))
    assert [row.what for row in rows] == [
        "training, 40×40, one core",
        "training from the cache, 40×40, one core",
        "evaluation, 40×40, one core",
    ]
    assert shapes == [[(4, 3, 40, 40), (1, 3, 40, 40)]] * 6
    assert rows[0].remarks == "2 images/s, reference 1" and rows[0].ratios == [4.0]
    assert rows[1].ratios == [12.0] and "% of a memory copy's" in rows[1].remarks
