"""The trainer of imagenet/ and its parts: learning rate, weight average, training step."""

import math

import pytest
import torch
from training import TinyNetwork

CPU = torch.device("cpu")


def make_schedule(imagenet, **changes):
    values = {"kind": "step", "lr": 0.4, "steps_per_epoch": 10, "epochs": 100}
    values |= {"warmup_epochs": 0.0, "milestones": (30, 60, 90), "factor": 0.1}
    return imagenet.schedule.Schedule(**values | changes)


def test_step_schedule_decays_after_each_milestone(imagenet):
    schedule = make_schedule(imagenet)
    rates = [schedule.rate(step) for step in (0, 299, 300, 599, 600, 899, 900, 999)]
    assert rates == pytest.approx([0.4, 0.4, 0.04, 0.04, 0.004, 0.004, 0.0004, 0.0004])


def test_cosine_schedule_follows_a_linear_warmup(imagenet):
    schedule = make_schedule(imagenet, kind="cosine", warmup_epochs=2.0, epochs=12)
    assert [schedule.rate(step) for step in (0, 9, 19)] == pytest.approx([0.02, 0.2, 0.4])
    assert schedule.rate(20) == 0.4 and schedule.rate(70) == pytest.approx(0.2)
    half_cosine = [0.2 * (1 + math.cos(math.pi * i / 100)) for i in range(100)]
    assert [schedule.rate(20 + i) for i in range(100)] == pytest.approx(half_cosine)
    assert make_schedule(imagenet, warmup_epochs=40.0).rate(400) == pytest.approx(0.04)


def test_ema_averages_weights_and_running_statistics(imagenet):
    network = TinyNetwork("", num_classes=3)
    ema = imagenet.engine.ModelEma(network, decay=0.75)
    names = ("fc.weight", "features.1.running_mean")
    expected = {name: network.state_dict()[name].clone() for name in names}
    for count in range(1, 4):
        with torch.no_grad():
            network.fc.weight.add_(1.0)
            network(torch.randn(4, 3, 16, 16))  # changes the running statistics
        ema.update()
        for name in names:
            expected[name] = 0.75 * expected[name] + 0.25 * network.state_dict()[name]
            torch.testing.assert_close(ema.model.state_dict()[name], expected[name])
        assert ema.model.features[1].num_batches_tracked == count
    assert not any(p.requires_grad for p in ema.model.parameters())


def make_trainer(imagenet, micro_batches=1):
    torch.manual_seed(0)
    network = TinyNetwork("", num_classes=3)
    loss = imagenet.synergy.SynergyLoss()
    sgd = torch.optim.SGD(network.parameters(), lr=0.1)
    return imagenet.engine.Trainer(network, loss, sgd, micro_batches=micro_batches)


def make_batch(imagenet, count):
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(count, 3, 40, 40, generator=generator)
    return imagenet.loader.Batch(images, torch.arange(count) % 3, 1.0)


@pytest.mark.parametrize("micro_batches", [2, 3, 9])
def test_accumulated_gradients_equal_those_of_the_whole_batch(imagenet, micro_batches):
    whole, split = make_trainer(imagenet), make_trainer(imagenet, micro_batches)
    losses = []
    for trainer in (whole, split):
        trainer.parallel.eval()
        losses.append(trainer._accumulate_gradients(make_batch(imagenet, 7)))
    torch.testing.assert_close(*losses)
    for a, b in zip(whole.model.parameters(), split.model.parameters(), strict=True):
        torch.testing.assert_close(a.grad, b.grad, rtol=1e-5, atol=1e-6)
    for name, value in whole.sums.totals().items():
        torch.testing.assert_close(split.sums.totals()[name], value, rtol=1e-5, atol=1e-6)


def test_the_first_step_with_a_nonfinite_loss_is_reported(imagenet):
    trainer = make_trainer(imagenet)
    good = make_batch(imagenet, 4)
    bad = good._replace(images=good.images * float("inf"))
    for batch in (good, bad, good, bad):
        trainer.train_step(batch, 0.1)
    assert trainer.first_nonfinite_step() == 2


@pytest.mark.parametrize("fraction", [0.0, 0.25])
def test_a_placeholder_does_not_enter_running_statistics(imagenet, fraction):
    trainer = make_trainer(imagenet)
    before = [buffer.clone() for buffer in trainer.model.buffers()]
    trainer.train_step(make_batch(imagenet, 2)._replace(batch_fraction=fraction), 0.1)
    are_kept = map(torch.equal, trainer.model.buffers(), before)
    assert set(are_kept) == {fraction == 0}


@pytest.mark.parametrize(("size", "channels_last"), [(64, False), (96, True)])
def test_memory_format_depends_on_the_image_size_on_a_cpu(imagenet, size, channels_last):
    """Weights and activations have the same format, whatever the format of the images."""
    seen = []

    class Network(torch.nn.Sequential):
        def forward(self, images):
            features = self[0](images)
            seen.append(features.is_contiguous(memory_format=torch.channels_last))
            return (features.mean((2, 3)),)

    memory_format = imagenet.layout.memory_format(size, CPU, torch.float32)
    network = Network(torch.nn.Conv2d(3, 4, 3)).to(memory_format=memory_format)
    sgd = torch.optim.SGD(network.parameters(), lr=0.1)
    trainer = imagenet.engine.Trainer(network, imagenet.synergy.SynergyLoss(), sgd)
    images = torch.randn(2, 3, size, size)
    for given in (images, images.contiguous(memory_format=torch.channels_last)):
        trainer.train_step(imagenet.loader.Batch(given, torch.tensor([0, 3]), 1.0), 0.1)
    assert seen == [channels_last, channels_last]
