"""MixUp, CutMix and label smoothing: the mixed batches, the loss, and resumed runs."""

import pytest
import torch
from cifar_runs import assert_same_run, records
from torch.nn import functional as F
from training import assert_same_run as assert_same_imagenet_run
from training import command_line, load_checkpoint, log_records, run_train, write_data

CPU = torch.device("cpu")


@pytest.fixture
def batches(wrn):
    """Return a factory of training batches of ten images with 10, 11, 12, … at every pixel."""

    def make(seed=1, batch_size=4, **alphas):
        images = torch.arange(10, 20, dtype=torch.uint8).view(10, 1, 1, 1).expand(10, 3, 8, 8)
        split = wrn.data.Split(images.contiguous(), torch.arange(10))
        info = wrn.data.DatasetInfo([], [0.0] * 3, [1.0] * 3)
        mixing = wrn.mixing.make_mixing(alphas.get("mixup", 0), alphas.get("cutmix", 0), 10, seed)
        return wrn.loader.AugmentedBatches(
            split, info, batch_size, CPU, seed=seed, flip=True, mixing=mixing
        )

    return make


def epoch(batches, number=0):
    return list(batches.epoch(number))


def pairs(plain, mixed):
    """Yield each image's own label, that of the image before it, its pixels and its label."""
    for before, after in zip(plain, mixed, strict=True):
        own, previous = before.labels, before.labels.roll(1)
        assert after.labels.shape == (len(own), 10) and after.batch_fraction == 1
        yield from zip(own.tolist(), previous.tolist(), after.images, after.labels, strict=True)


def test_mixup_adds_each_image_and_the_one_before_it(batches):
    weights = []
    for own, previous, image, label in pairs(epoch(batches()), epoch(batches(mixup=1.0))):
        weight = float(label[own])
        expected = weight * F.one_hot(torch.tensor(own), 10)
        expected = expected + (1 - weight) * F.one_hot(torch.tensor(previous), 10)
        torch.testing.assert_close(label, expected)
        value = weight * (10 + own) + (1 - weight) * (10 + previous)
        torch.testing.assert_close(image * 255, torch.full((3, 8, 8), value))
        weights.append(weight)
    assert weights[0] == weights[3] != weights[4]  # one weight for each batch
    assert all(0 < weight < 1 for weight in weights)


def test_cutmix_pastes_a_rectangle_of_the_image_before(batches):
    shares = set()
    for number in range(8):
        plain, mixed = epoch(batches(), number), epoch(batches(cutmix=1.0), number)
        for own, previous, image, label in pairs(plain, mixed):
            values = (image * 255).round()
            pasted = (values == 10 + previous)[0]
            assert torch.equal(values == 10 + own, ~pasted.expand(3, 8, 8))
            rows, columns = pasted.any(1).sum(), pasted.any(0).sum()
            assert pasted.sum() == rows * columns  # a rectangle
            share = float(pasted.float().mean())
            assert float(label[previous]) == pytest.approx(share)
            assert float(label[own]) == pytest.approx(1 - share)
            shares.add(share)
    assert len(shares) > 8


def test_one_of_both_is_chosen_for_each_batch(batches):
    plain, cut = epoch(batches(batch_size=1)), []
    for number in range(8):
        plain = epoch(batches(batch_size=2), number)
        mixed = epoch(batches(batch_size=2, mixup=1.0, cutmix=1.0), number)
        for before, after in zip(plain, mixed, strict=True):
            values = (after.images * 255).round(decimals=3)
            known = [values == 10 + label for label in before.labels.tolist()]
            cut.append(bool(torch.stack(known).any(0).all()))
    assert 10 < sum(cut) < 30  # of 40 batches


def test_mixed_batches_depend_only_on_seed_epoch_and_step(batches):
    first, state = epoch(batches(cutmix=1.0), 3), torch.get_rng_state()
    torch.rand(5)
    second = epoch(batches(cutmix=1.0), 3)
    assert all(torch.equal(a.labels, b.labels) for a, b in zip(first, second, strict=True))
    torch.set_rng_state(state)
    epoch(batches(cutmix=1.0), 3)
    assert torch.equal(torch.get_rng_state(), state)
    for other in (epoch(batches(cutmix=1.0), 4), epoch(batches(seed=2, cutmix=1.0), 3)):
        shares = [batch.labels.max(1).values for batch in other]
        assert not torch.equal(shares[0], first[0].labels.max(1).values)


@pytest.mark.parametrize("count", [2, 3, 4])
def test_processes_mix_the_batch_of_one_process(wrn, batches, monkeypatch, count):
    whole = epoch(batches(batch_size=7, mixup=1.0, cutmix=1.0), 2)
    parts = []
    monkeypatch.setattr(wrn.distributed, "world_size", lambda: count)
    for rank in range(count):
        monkeypatch.setattr(wrn.distributed, "rank", lambda rank=rank: rank)
        parts.append(epoch(batches(batch_size=7, mixup=1.0, cutmix=1.0), 2))
    for step, expected in enumerate(whole):
        used = [part[step] for part in parts if part[step].batch_fraction]
        assert torch.equal(torch.cat([b.labels for b in used]), expected.labels)
        assert torch.equal(torch.cat([b.images for b in used]), expected.images)


@pytest.mark.parametrize("count", [2, 3, 5])
def test_sampler_puts_the_previous_image_in_front(imagenet, monkeypatch, count):
    """Batches of 5, 5 and 3 images: with 5 processes, two have none of the last batch."""

    def positions(with_previous):
        sampler = imagenet.loader.ResumableBatchSampler(13, 5, 1, with_previous)
        sampler.start_at(2, 0)
        return [[index for _, index in batch] for batch in sampler]

    whole = positions(False)
    assert positions(True) == [[batch[-1], *batch] for batch in whole]
    monkeypatch.setattr(imagenet.distributed, "world_size", lambda: count)
    parts = []
    for rank in range(count):
        monkeypatch.setattr(imagenet.distributed, "rank", lambda rank=rank: rank)
        parts.append(positions(True))
    for step, batch in enumerate(whole):
        for index, part in enumerate(parts):
            previous, *own = part[step]
            assert previous == batch[batch.index(own[0]) - 1]
            if index < len(batch):
                assert own == batch[batch.index(own[0]) :][: len(own)]


def test_every_classifier_learns_from_soft_targets(wrn):
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(3, 6, 5, generator=generator, dtype=torch.float64)
    hard = torch.randint(5, (6,), generator=generator)
    soft = torch.rand(6, 5, generator=generator, dtype=torch.float64)
    soft /= soft.sum(1, keepdim=True)
    smooth = 0.9 * soft + 0.1 / 5
    expected = -(smooth * logits.log_softmax(-1)).sum(-1).mean(-1)
    losses = wrn.synergy.SynergyLoss("dks", label_smoothing=0.1)(logits, soft)
    plain = wrn.synergy.SynergyLoss("dks")(logits, hard)
    torch.testing.assert_close(losses.backbone, expected[0])
    torch.testing.assert_close(losses.branches, expected[1] + expected[2])
    torch.testing.assert_close(losses.synergy, plain.synergy)


def test_the_dominant_label_counts(wrn):
    logits = torch.tensor([[3.0, 2.0, 1.0], [3.0, 2.0, 1.0], [1.0, 2.0, 3.0]])
    labels = torch.tensor([[0.6, 0.4, 0.0], [0.3, 0.0, 0.7], [0.1, 0.0, 0.9]])
    assert wrn.metrics.topk_correct(logits, labels) == 2
    assert wrn.metrics.topk_correct(logits, labels, 2) == 2


@pytest.mark.parametrize("flag", ["--label-smoothing=0.2", "--mixup=1", "--cutmix=1"])
def test_options_reach_training_of_wrn_and_are_logged(cifar_main, tmp_path, flag, capsys):
    for save, *more in ((tmp_path / "plain",), (tmp_path / "other", flag)):
        assert cifar_main("--epochs", 1, "--method", "ds", "--save", save, *more) == 0
    (plain,), (other,) = records(tmp_path / "plain"), records(tmp_path / "other")
    assert other["train_loss"] > plain["train_loss"] + 0.02
    name, value = flag.removeprefix("--").replace("-", "_").split("=")
    assert (plain[name], other[name]) == (0.0, float(value))
    words = ("--epochs", 2, "--method", "ds", "--save", tmp_path / "other", "--resume", "auto")
    assert cifar_main(*words) == 2
    assert f"--{name} 0.0 (was {float(value)})" in capsys.readouterr().err


class Killed(Exception):
    """Simulates the death of the process: the code under test does not catch it."""


def kill_at_step(patch, owner, number):
    """Raise `Killed` instead of taking a step of a trainer."""
    step, calls = owner.train_step, iter(range(1, number + 1))

    def train_step(*args):
        if next(calls) == number:
            raise Killed
        return step(*args)

    patch.setattr(owner, "train_step", train_step)


def test_a_killed_cutmix_run_of_wrn_resumes_to_the_same_bits(
    wrn, cifar_main, tmp_path, monkeypatch
):
    words = ["--epochs", 3, "--epoch_step", "[3]", "--cutmix", 1, "--mixup", 0.5, "--save"]
    assert cifar_main(*words, tmp_path / "whole") == 0
    with monkeypatch.context() as patch, pytest.raises(Killed):
        kill_at_step(patch, wrn.engine.Trainer, 9)  # the third of epoch 2
        cifar_main(*words, tmp_path / "killed")
    assert cifar_main(*words, tmp_path / "killed", "--resume", "auto") == 0
    assert_same_run(tmp_path / "killed", tmp_path / "whole")


def test_a_killed_cutmix_run_of_imagenet_resumes_within_an_epoch(imagenet, tmp_path, monkeypatch):
    data = write_data(tmp_path)
    flags = ("--cutmix", "1", "--mixup", "0.5", "--label-smoothing", "0.1")
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    plain = tmp_path / "plain"
    assert run_train(imagenet, command_line(data, whole, *flags)) == 0
    assert run_train(imagenet, command_line(data, plain)) == 0
    losses = [log_records(save)[0]["train"]["losses"]["backbone"] for save in (whole, plain)]
    assert losses[0] != pytest.approx(losses[1], rel=1e-3)
    assert load_checkpoint(whole)["options"]["cutmix"] == 1

    argv = command_line(data, killed, *flags, "--checkpoint-minutes", "0", "--resume", "auto")
    with monkeypatch.context() as patch, pytest.raises(Killed):
        kill_at_step(patch, imagenet.engine.Trainer, 3)
        run_train(imagenet, argv)
    assert run_train(imagenet, argv) == 0
    assert_same_imagenet_run(killed, whole)


def test_checkpoints_from_before_these_options_resume(cifar_main, imagenet, tmp_path):
    assert cifar_main("--epochs", 1, "--save", tmp_path / "wrn") == 0
    data = write_data(tmp_path)
    argv = command_line(data, tmp_path / "imagenet", "--epochs", "1")
    assert run_train(imagenet, argv) == 0
    for folder in ("wrn", "imagenet"):
        path = tmp_path / folder / "checkpoint.pt"
        content = torch.load(path, weights_only=True)
        for name in ("label_smoothing", "mixup", "cutmix"):
            content["options"].pop(name)
        torch.save(content, path)
    words = ("--epoch_step", "[]", "--save", tmp_path / "wrn", "--resume", "auto")
    assert cifar_main("--epochs", 2, *words) == 0
    assert run_train(imagenet, [*argv, "--epochs", "2", "--resume", "auto"]) == 0


@pytest.mark.parametrize("flag", ["--mixup", "--cutmix"])
@pytest.mark.parametrize("value", ["-1", "nan", "x"])
def test_refused_alphas(cifar_main, imagenet, capsys, flag, value):
    for main in (cifar_main, lambda *words: imagenet.train.main([*words, "data"])):
        assert main(flag, value) == 2
        assert f"{flag}: expected a number from 0" in capsys.readouterr().err


@pytest.mark.parametrize("alpha", [1e-30, 1e-3, 1000])
def test_extreme_alphas_give_finite_batches(batches, alpha):
    for batch in epoch(batches(mixup=alpha, cutmix=alpha)):
        assert batch.images.isfinite().all()
        torch.testing.assert_close(batch.labels.sum(1), torch.ones(len(batch.labels)))
