"""Training steps use one device only and do not synchronize with it.

PyTorch's meta device stands in for a GPU: it raises an error if an operation has a CPU tensor too,
or if a value is read, which on a GPU would synchronize.
"""

from contextlib import nullcontext

import pytest
import torch
from training import TinyNetwork

META = torch.device("meta")
READ_ERROR = "meta tensor|Tensor.item"  # raised when a value is read


@pytest.fixture(autouse=True)
def no_autocast(monkeypatch):
    """Replace autocast, which the meta device does not support; the dtype is float32 here."""
    monkeypatch.setattr(torch, "autocast", lambda *args, **options: nullcontext())


def test_meta_device_detects_mixed_devices_and_reads():
    with pytest.raises(RuntimeError):
        torch.zeros(3) + torch.zeros(3, device=META)
    for read in (float, int, bool, torch.Tensor.cpu, torch.Tensor.tolist):
        with pytest.raises(RuntimeError, match=READ_ERROR):
            read(torch.zeros((), device=META))


@pytest.fixture
def trainer(cifar_benchmark):
    parts = cifar_benchmark.cifar_parts
    return parts.new_trainer(10, 1, 100, "float32", META)


def test_cifar_epoch_synchronizes_only_at_its_end(cifar_benchmark, trainer, monkeypatch):
    """An epoch of 49 steps: the loss is read in the 50th, too. Only the first two are computed."""
    data = cifar_benchmark.cifar_parts.random_images(98)
    batches = cifar_benchmark.cifar_parts.augmented(data, 2, META)
    steps, train_step = [], trainer.train_step

    def count(batch):
        steps.append(steps[-1] if len(steps) > 1 else train_step(batch))
        return steps[-1]

    monkeypatch.setattr(trainer, "train_step", count)
    with pytest.raises(RuntimeError, match=READ_ERROR):
        trainer.train_epoch(
            batches, 0, cifar_benchmark.progress.Progress("", len(batches), 0), seed=1
        )
    assert len(steps) == len(batches) == 49


class SumsRead(Exception):
    """The sums of an epoch were read."""


def raise_sums_read(self, all_processes=True):
    raise SumsRead


def test_cifar_evaluation_synchronizes_only_at_its_end(cifar_benchmark, trainer, monkeypatch):
    monkeypatch.setattr(cifar_benchmark.metrics.MetricSums, "totals", raise_sums_read)
    data = cifar_benchmark.cifar_parts.random_images(9)
    with pytest.raises(SumsRead):
        trainer.evaluate(cifar_benchmark.loader.Batches(data.test, data.info, 4, META))


def test_imagenet_evaluation_synchronizes_only_at_its_end(imagenet, monkeypatch):
    monkeypatch.setattr(imagenet.metrics.MetricSums, "totals", raise_sums_read)
    with META:
        network = TinyNetwork("", num_classes=5)
    batch = torch.zeros(4, 3, 64, 64), torch.zeros(4).long()
    with pytest.raises(SumsRead):
        imagenet.evaluate.evaluate(network, [batch, batch], META)


def test_imagenet_benchmark_compares_networks_on_their_device(imagenet_benchmark):
    with META:
        ours, plain = TinyNetwork("", num_classes=5), torch.nn.Conv2d(3, 5, 64)
    plain = torch.nn.Sequential(plain, torch.nn.Flatten())
    images = torch.zeros(2, 3, 64, 64)
    with pytest.raises(RuntimeError, match=READ_ERROR):
        imagenet_benchmark.imagenet_parts.largest_difference(ours, plain, images, torch.float32)


def test_imagenet_step_does_not_synchronize(imagenet):
    """With micro-batches, a weight average, and metric sums loaded to the CPU from a checkpoint."""
    with META:
        network = TinyNetwork("", num_classes=5)
    trainer = imagenet.engine.Trainer(
        network,
        imagenet.synergy.SynergyLoss(),
        imagenet.sgd.make_sgd(network, 0.1, 0.9, 1e-4),
        imagenet.engine.ModelEma(network, 0.9),
        micro_batches=2,
    )
    sums = {"top1": torch.zeros(3), "losses": torch.zeros(len(imagenet.synergy.Losses._fields))}
    trainer.sums.add(**sums)
    images, labels = torch.zeros(4, 3, 64, 64, device=META), torch.zeros(4, device=META).long()
    for _ in range(2):
        loss = trainer.train_step(imagenet.loader.Batch(images, labels, 1.0), 0.1)
    assert loss.device == META and trainer.step == 2
    with pytest.raises(RuntimeError, match=READ_ERROR):
        trainer.first_nonfinite_step()
