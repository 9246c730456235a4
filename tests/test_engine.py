"""The schedule and the seeds; steps of the trainer; mixing; the test, against NumPy."""

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from halves import TinyNetwork
from torch import nn


def make_schedule(wrn, **changes):
    factor = changes.pop("first_epoch_factor", 1.0)
    options = {"lr": 0.1, "epochs": 100, "lr_factor": 0.2, "milestones": (30, 60)} | changes
    config = wrn.options.TrainingConfig(**options)
    return wrn.schedule.Schedule(config, 10, first_epoch_factor=factor)


def test_step_schedule_decays_after_each_milestone(wrn):
    """To the product of floats, so that old logs and new ones have the same rates."""
    schedule, once, twice = make_schedule(wrn), 0.1 * 0.2, 0.1 * 0.2 * 0.2
    rates = [schedule.rate(step) for step in (0, 299, 300, 599, 600, 999)]
    assert rates == [0.1, 0.1, once, once, twice, twice]
    schedule = make_schedule(wrn, first_epoch_factor=0.1)
    assert [schedule.rate(step) for step in (0, 9, 10, 300)] == [0.1 * 0.1, 0.1 * 0.1, 0.1, once]


def test_cosine_schedule_follows_a_linear_warmup(wrn):
    schedule = make_schedule(wrn, lr_schedule="cosine", warmup_epochs=2.0, epochs=12, lr=0.4)
    assert [schedule.rate(step) for step in (0, 9, 19)] == pytest.approx([0.02, 0.2, 0.4])
    half_cosine = [0.2 * (1 + math.cos(math.pi * i / 100)) for i in range(100)]
    assert [schedule.rate(20 + i) for i in range(100)] == pytest.approx(half_cosine)
    schedule = make_schedule(wrn, warmup_epochs=0.25)  # of two steps
    assert [schedule.rate(step) for step in range(3)] == pytest.approx([0.05, 0.1, 0.1])


def test_momentum_is_cleared_at_milestones_of_wrn_only(half, tmp_path):
    """As by the released code, which makes a new optimizer there; not by He et al."""
    start = half.start_of(tmp_path, "--epochs", 4, "--milestones", "1,3", "--lr", 0)
    trainer, batch, cleared = start.trainer, next(start.train.epoch(0)), []
    for trainer.step in range(16):
        next(iter(trainer.optimizer.state.values()))["momentum_buffer"].fill_(1e9)
        trainer.train_step(batch)
        buffer = next(iter(trainer.optimizer.state.values()))["momentum_buffer"]
        cleared += [trainer.step - 1] * bool(buffer.abs().max() < 1e6)
    assert cleared == ([4, 12] if half.is_wrn else [])


def test_each_step_has_the_rate_of_its_schedule(half, tmp_path):
    start = half.start_of(tmp_path, "--epochs", 4, "--milestones", "1,3")
    trainer, batch, rates = start.trainer, next(start.train.epoch(0)), []
    for trainer.step in range(16):
        trainer.train_step(batch)
        rates += [trainer.optimizer.param_groups[0]["lr"]]
    assert rates == [trainer.schedule.rate(step) for step in range(16)] and len(set(rates)) == 3


def test_each_process_and_epoch_has_its_own_dropout(half, tmp_path, monkeypatch):
    start, seeds = half.start_of(tmp_path), set()
    for start.trainer.epoch, process in ((0, 0), (0, 1), (1, 0)):
        monkeypatch.setattr(half.scripts.engine, "rank", lambda process=process: process)
        start.trainer.step = start.trainer.epoch * start.train.steps
        start.trainer.train_epoch(start.train, half.scripts.logs.Progress("", 1), lambda: None)
        seeds.add(torch.initial_seed())
    assert len(seeds) == 3


def test_milestones_are_those_of_the_paper_or_in_proportion(wrn, imagenet):
    """In finished epochs; the paper counts epochs of CIFAR from 1."""
    for percents, offset, expected in (
        (wrn.flags.DECAY_PERCENT["wrn"], 1, {200: (59, 119, 159), 10: (2, 5, 7), 2: (1,), 1: ()}),
        (wrn.flags.DECAY_PERCENT["resnet"], 1, {164: (81, 122), 3: (1,)}),
        (imagenet.flags.DECAY_PERCENT, 0, {100: (30, 60, 90), 5: (2, 3), 2: (1,), 1: ()}),
    ):
        for epochs, milestones in expected.items():
            assert wrn.schedule.scaled_milestones(percents, epochs, offset) == milestones


def test_seeds_differ_in_every_part_of_their_key(wrn):
    keys = [(s, *key) for s in range(3) for key in ((), (0,), (1,), (0, 0), (0, 1), (1, 0))]
    assert len({wrn.schedule.derived_seed(*key) for key in keys}) == len(keys)


@pytest.fixture
def trainer(wrn):
    """Returns a trainer of `TinyNetwork` with these options."""

    def make(dtype=torch.float32, **options):
        config = wrn.options.TrainingConfig(milestones=(), momentum=0.9, **options)
        torch.manual_seed(0)
        compute = wrn.distributed.Compute(torch.device("cpu"), dtype)
        schedule = wrn.schedule.Schedule(config, 10)
        parts = TinyNetwork("", num_classes=3), wrn.synergy.SynergyLoss(), schedule
        return wrn.engine.Trainer(*parts, config, compute)

    return make


@pytest.fixture
def batch(wrn):
    images = torch.randn(7, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    return wrn.evaluation.Batch(images, torch.arange(7) % 3, 7)


def values(trainer):
    """Return copies of the weights and of the momentum."""
    momentum = [state["momentum_buffer"] for state in trainer.optimizer.state.values()]
    return [each.detach().clone() for each in (*trainer.model.parameters(), *momentum)]


@pytest.mark.parametrize("parts", [2, 3, 9])
def test_accumulated_gradients_are_those_of_the_whole_batch(trainer, batch, parts):
    """Without statistics of a batch. Parts of uneven sizes, and more parts than images."""
    results = []
    for each in (trainer(), trainer(grad_accumulation=parts)):
        each._parallel.eval()
        sizes = []
        each.model.register_forward_pre_hook(lambda model, args, s=sizes: s.append(len(args[0])))
        loss = each.train_step(batch)
        gradients = [parameter.grad for parameter in each.model.parameters()]
        results.append((loss, gradients, each.sums.totals()))
    assert len(sizes) == min(parts, 7) and sum(sizes) == 7
    torch.testing.assert_close(*results, rtol=1e-5, atol=1e-6)


def test_a_step_is_that_of_sgd_and_the_average_follows_its_weights(trainer, batch):
    """Momentum starts at zero; weight decay is of every parameter, as in the released code."""
    trainer = trainer(lr=0.3, weight_decay=0.01, ema=0.75)
    velocity = [torch.zeros_like(p) for p in trainer.model.parameters()]
    average = {k: v.clone() for k, v in trainer.model.state_dict().items()}
    for _ in range(3):
        before = values(trainer)
        trainer.train_step(batch)
        for p, old, v in zip(trainer.model.parameters(), before, velocity, strict=False):
            v.mul_(0.9).add_(p.grad + 0.01 * old)
            torch.testing.assert_close(p, old - 0.3 * v)
        for name, value in trainer.model.state_dict().items():  # running statistics too
            if value.is_floating_point():
                average[name] = 0.75 * average[name] + 0.25 * value
                torch.testing.assert_close(trainer.ema.module.state_dict()[name], average[name])


def test_float16_skips_a_step_whose_gradients_overflow(trainer, batch):
    """Weights and momentum stay, the scale is halved; the loss itself is finite."""
    trainer = trainer(torch.float16)
    trainer.train_step(batch)
    trainer.scaler.update(2.0**40)
    before = values(trainer)
    trainer.train_step(batch)
    trainer.check_losses()
    assert all(map(torch.equal, values(trainer), before))
    assert trainer.scaler.get_scale() == 2.0**39
    trainer.scaler.update(2.0**10)
    trainer.train_step(batch)
    assert not any(map(torch.equal, values(trainer), before))


@pytest.mark.parametrize("alphas", [(1.0, 0), (0, 1.0), (1.0, 1.0)], ids=["mixup", "cutmix", "one"])
def test_mixing_adds_to_each_image_the_one_before_it(wrn, alphas):
    """With one weight for a batch; with CutMix as a rectangle, whose area is the weight."""
    mixing, cut, first = wrn.schedule.Mixing(*alphas, 10, seed=1), [], torch.get_rng_state()
    pixels, labels = torch.tensor([40.0, 10.0, 20.0, 30.0]), torch.tensor([4, 1, 2, 3])
    images, hot = pixels.view(4, 1, 1, 1).expand(4, 3, 8, 8), F.one_hot(labels, 10).float()
    results = [[mixing(images.clone(), labels.clone(), 0, i) for i in range(40)] for _ in range(2)]
    assert torch.equal(torch.get_rng_state(), first)  # that of dropout
    for (mixed, targets), (again, _) in zip(*results, strict=True):
        assert torch.equal(mixed, again)
        share = float(targets[0, 4])  # of the image before
        torch.testing.assert_close(targets, (1 - share) * hot[1:] + share * hot[:-1])
        torch.testing.assert_close(  # the mean color follows from the share in both
            mixed.mean((1, 2, 3)), (1 - share) * pixels[1:] + share * pixels[:-1], rtol=1e-4, atol=0
        )
        pasted = mixed == images[:-1]
        cut.append(bool((pasted | (mixed == images[1:])).all()))
        rectangle = pasted.any(2).sum(-1) * pasted.any(3).sum(-1)
        assert torch.equal(pasted.sum((2, 3)), rectangle) or not cut[-1]
    assert sum(cut) in {(1.0, 0): [0], (0, 1.0): [40]}.get(alphas, range(10, 31))
    assert not wrn.schedule.Mixing(0, 0, 10, seed=1)


class Fixed(nn.Module):
    """Returns given logits (N, B, K) of images that are their indices."""

    def __init__(self, logits):
        super().__init__()
        self.logits = logits

    def forward(self, images):
        return tuple(each[images[:, 0, 0, 0].long()] for each in self.logits)


@pytest.fixture
def scores_of(wrn):
    """Tests logits of images of these labels, in batches of 4."""

    def scores_of(logits, labels, loss=None):
        images = torch.arange(float(len(labels))).view(-1, 1, 1, 1)
        pairs = zip(images.split(4), labels.split(4), strict=True)
        batches = [wrn.evaluation.Batch(*pair, 0) for pair in pairs]
        compute = wrn.distributed.Compute(torch.device("cpu"))
        models = {"x": Fixed(logits)}
        return wrn.evaluation.evaluate(models, batches, compute, loss, confusion=True)["x"]

    return scores_of


@pytest.mark.parametrize("count", [1, 3])
def test_scores_are_those_of_their_definitions(wrn, scores_of, count):
    """Top-1 and top-5 errors, the ensemble, losses, divergences and confusion, with NumPy."""
    logits = torch.randn(count, 23, 7, generator=torch.Generator().manual_seed(0)) * 3
    labels, rows = torch.arange(23) * 5 % 7, np.arange(23)
    loss = wrn.synergy.SynergyLoss("dks" if count > 1 else "baseline", aux_weight=0.5)
    scores, z, y = scores_of(logits, labels, loss), logits.double().numpy(), labels.numpy()
    p = np.exp(z) / np.exp(z).sum(-1, keepdims=True)
    ranks = [(each > each[rows, y][:, None]).sum(1) for each in (*z, p.mean(0))]
    found = [*scores.top1_errors, scores.ensemble_top1_error]
    assert found == pytest.approx([100 * (rank >= 1).mean() for rank in ranks])
    found = [*scores.top5_errors, scores.ensemble_top5_error]
    assert found == pytest.approx([100 * (rank >= 5).mean() for rank in ranks])
    kl = [[(a * np.log(a / b)).sum(1).mean() for b in p] for a in p]
    np.testing.assert_allclose(scores.divergences, kl, rtol=1e-4, atol=1e-6)
    backbone, *branches = [-np.log(each[rows, y]).mean() for each in p]
    expected = {"total": backbone + 0.5 * sum(branches) + np.sum(kl), "backbone": backbone}
    expected |= {"branches": sum(branches), "synergy": np.sum(kl)}
    assert scores.losses == pytest.approx(expected, rel=1e-4, abs=1e-6) and scores.images == 23
    matrix, names = np.zeros((7, 7)), [f"class {index}" for index in range(7)]
    np.add.at(matrix, (y, z[0].argmax(1)), 1)
    assert scores.confusion.tolist() == matrix.tolist()
    errors = 100 - 100 * matrix.diagonal() / matrix.sum(1)
    assert [*wrn.evaluation.class_errors(scores, names).values()] == pytest.approx(errors)
    worst = wrn.evaluation.confused_pairs(scores, names, 1)[0]
    np.fill_diagonal(matrix, 0)
    assert matrix[names.index(worst["class"]), names.index(worst["predicted"])] == matrix.max()


def test_of_equal_logits_the_first_class_counts(scores_of):
    """They are frequent in bfloat16; the errors and the confusion must say the same."""
    logits = torch.randint(3, (1, 500, 100), generator=torch.Generator().manual_seed(0))
    labels = torch.arange(500) % 100
    first = logits[0].numpy().argmax(1)  # NumPy's definition
    for dtype in (torch.bfloat16, torch.float32):
        scores = scores_of(logits.to(dtype), labels)
        assert scores.top1_errors == pytest.approx([100 * (first != labels.numpy()).mean()])
        assert scores.confusion.diagonal().sum() == (first == labels.numpy()).sum()
        assert scores.top5_errors <= scores.top1_errors


def test_logits_that_are_not_finite_are_an_error(wrn, scores_of):
    logits = torch.zeros(2, 6, 3)
    logits[1, 2, 0] = float("nan")
    with pytest.raises(wrn.command_line.UserError, match="not finite for 1 image;"):
        scores_of(logits, torch.zeros(6, dtype=torch.int64))


def test_a_run_is_saved_once_in_each_interval(wrn, monkeypatch):
    now, saves = [0.0], []
    monkeypatch.setattr(wrn.run.time, "monotonic", lambda: now[0])
    preemption = wrn.run.Preemption(lambda: saves.append(now[0]), 1, torch.device("cpu"), "")
    for now[0] in (30.0, 61.0, 62.0, 100.0, 130.0):
        preemption.save_if_due()
    assert saves == [61.0, 130.0]


def test_a_loss_that_was_not_finite_is_not_saved(half, tmp_path):
    """Also if it was not looked at yet: on a GPU it is every 50 steps."""
    trainer = half.start_of(tmp_path).trainer
    trainer._nonfinite_step.fill_(3)
    with pytest.raises(half.scripts.command_line.UserError, match="not finite at step 3"):
        half.scripts.run_folder.save(None, trainer, {}, {})


def test_after_a_save_the_processes_agree_at_the_next_step(wrn, monkeypatch):
    """Their next interval is measured anew: the save did not come after a whole one."""
    now, agreed = [0.0], []
    monkeypatch.setattr(wrn.run.time, "monotonic", lambda: now[0])
    monkeypatch.setattr(wrn.run, "world_size", lambda: 2)
    monkeypatch.setattr(wrn.run.dist, "all_reduce", lambda *_: agreed.append(now[0]))
    preemption = wrn.run.Preemption(lambda: None, 60, torch.device("cpu"), "")
    for step in range(1, 101):
        now[0] += 0.3
        preemption.save_if_due()
        if step % 20 == 0:
            preemption.save()
    gaps = [later - earlier for earlier, later in zip(agreed, agreed[1:], strict=False)]
    assert max(gaps) < 4
