"""Devices: nothing is mixed with the CPU's tensors, and no training step waits for its device.

PyTorch's meta device stands in for a GPU: it refuses to compute with a tensor of the CPU's, and to
give back a value, which would be to wait for it.
"""

from contextlib import nullcontext

import pytest
import torch
from training import TinyNetwork

META = torch.device("meta")
READS = "meta tensor|Tensor.item"  # what it says when a value is asked for


@pytest.fixture(autouse=True)
def no_autocast(monkeypatch):
    """Which the meta device doesn't have; the number type is float32 here."""
    monkeypatch.setattr(torch, "autocast", lambda *args, **options: nullcontext())


def test_the_stand_in_does_what_it_is_for():
    with pytest.raises(RuntimeError):
        torch.zeros(3) + torch.zeros(3, device=META)
    for read in (float, int, bool, torch.Tensor.cpu, torch.Tensor.tolist):
        with pytest.raises(RuntimeError, match=READS):
            read(torch.zeros((), device=META))


@pytest.fixture
def trainer(cifar_benchmark):
    parts = cifar_benchmark.cifar_parts
    return parts.new_trainer(10, 1, 100, "float32", META)


def test_an_epoch_of_small_images_waits_at_its_end_only(cifar_benchmark, trainer, monkeypatch):
    """49 steps: the 50th would be read too."""
    data = cifar_benchmark.cifar_parts.random_images(98)
    batches = cifar_benchmark.cifar_parts.augmented(data, 2, META)
    seen, step = [], trainer.train_step
    monkeypatch.setattr(trainer, "train_step", lambda batch: seen.append(1) or step(batch))
    with pytest.raises(RuntimeError, match=READS):
        trainer.train_epoch(
            batches, 0, cifar_benchmark.progress.Progress("", len(batches), 0), seed=1
        )
    assert len(seen) == len(batches) == 49


class Read(Exception):
    """The sums of an epoch were asked for."""


def read_sums(self, all_processes=True):
    raise Read


def test_evaluation_of_small_images_waits_at_its_end_only(cifar_benchmark, trainer, monkeypatch):
    monkeypatch.setattr(cifar_benchmark.metrics.MetricSums, "totals", read_sums)
    data = cifar_benchmark.cifar_parts.random_images(9)
    with pytest.raises(Read):
        trainer.evaluate(cifar_benchmark.loader.Batches(data.test, data.info, 4, META))


def test_imagenet_s_evaluation_waits_at_its_end_only(imagenet, monkeypatch):
    monkeypatch.setattr(imagenet.metrics.MetricSums, "totals", read_sums)
    with META:
        network = TinyNetwork("", num_classes=5)
    batch = torch.zeros(4, 3, 64, 64), torch.zeros(4).long()
    with pytest.raises(Read):
        imagenet.evaluate.evaluate(network, [batch, batch], META)


def test_the_benchmark_s_networks_compare_on_their_device(imagenet_benchmark):
    with META:
        ours, plain = TinyNetwork("", num_classes=5), torch.nn.Conv2d(3, 5, 64)
    plain = torch.nn.Sequential(plain, torch.nn.Flatten())
    images = torch.zeros(2, 3, 64, 64)
    with pytest.raises(RuntimeError, match=READS):
        imagenet_benchmark.imagenet_parts.largest_difference(ours, plain, images, torch.float32)


def test_imagenet_s_step_waits_for_nothing(imagenet):
    """With parts of a batch, an average of weights, and sums that a checkpoint left on the CPU."""
    with META:
        network = TinyNetwork("", num_classes=5)
    trainer = imagenet.engine.Trainer(
        network,
        imagenet.synergy.SynergyLoss(),
        imagenet.sgd.make_sgd(network, 0.1, 0.9, 1e-4),
        imagenet.ema.ModelEma(network, 0.9),
        micro_batches=2,
    )
    sums = {"top1": torch.zeros(3), "losses": torch.zeros(len(imagenet.synergy.Losses._fields))}
    trainer.sums.add(**sums)
    images, labels = torch.zeros(4, 3, 64, 64, device=META), torch.zeros(4, device=META).long()
    for _ in range(2):
        loss = trainer.train_step(imagenet.loader.Batch(images, labels, 1.0), 0.1)
    assert loss.device == META and trainer.step == 2
    with pytest.raises(RuntimeError, match=READS):
        trainer.first_bad_step()
