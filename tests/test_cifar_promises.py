"""What wrn_DKS/ promises of its numbers, against values computed here from the definitions.

A test of the program against itself, such as its log against --evaluate, misses an error that is
in both. Here the update, the metrics and the data are computed again without the program.
"""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from cifar_runs import SMALL_CIFAR_RUN, records
from sklearn.datasets import load_digits

CPU = torch.device("cpu")
STEPS = 3  # per epoch of 1,437 digits in batches of 512
RATES = (0.05, 0.025, 0.0125)  # of the epochs, halved at the start of the second and the third
AUX_WEIGHT, SYNERGY_WEIGHT, WEIGHT_DECAY = 0.5, 2.0, 0.01


def digits_network(wrn, state):
    """Return the network of `SMALL_CIFAR_RUN` with these weights."""
    network = wrn.wide_resnet.WideResNet(10, 0.25, 10)
    network.load_state_dict(state)
    return network


@pytest.fixture(scope="module")
def run(wrn, tmp_path_factory):
    """A run with options that differ from the defaults; its initial weights and its batches."""
    folder, batches, step = tmp_path_factory.mktemp("run"), [], wrn.engine.Trainer.train_step
    initial = {}

    def record(trainer, batch):
        if not batches:
            initial.update({k: v.clone() for k, v in trainer.model.state_dict().items()})
        batches.append((batch.images.clone(), batch.labels.clone()))
        return step(trainer, batch)

    flags = f"--batch_size 512 --epochs 3 --epoch_step [2,3] --lr {RATES[0]} --lr_decay_ratio 0.5"
    flags += f" --weight_decay {WEIGHT_DECAY} --aux-weight {AUX_WEIGHT} --direction top-down"
    flags += f" --synergy-weight {SYNERGY_WEIGHT} --save {folder}"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(wrn.engine.Trainer, "train_step", record)
        assert wrn.main.main([*SMALL_CIFAR_RUN, *flags.split()]) == 0
    assert len(batches) == 3 * STEPS
    return folder, initial, batches


def loss_terms(logits, labels):
    """Return the cross-entropy of the backbone, that of the branches, and the top-down synergy."""
    log_p = [each.log_softmax(1) for each in logits]
    backbone, *branches = (-each[torch.arange(len(labels)), labels].mean() for each in log_p)
    # The backbone teaches both branches, the deep branch teaches the shallow one.
    synergy = sum(divergence(log_p[j], log_p[i]) for j, i in ((0, 1), (0, 2), (2, 1)))
    return backbone, sum(branches), synergy


def divergence(teacher, student):
    """KL(teacher || student) from log-probabilities (B, K), the mean over the batch."""
    teacher = teacher.detach()
    return (teacher.exp() * (teacher - student)).sum(1).mean()


def test_a_run_is_sgd_with_momentum_cleared_at_milestones_on_the_weighted_loss(wrn, run):
    """The released code makes a new optimizer at each milestone, and so starts at rest.

    Computed in float64: in float32, rounding grows to more than the tolerance in nine steps.
    """
    folder, initial, batches = run
    network = digits_network(wrn, initial).double().train()
    for epoch, rate in enumerate(RATES):
        velocity = [torch.zeros_like(parameter) for parameter in network.parameters()]
        losses, correct = [], torch.zeros(3)
        for images, labels in batches[epoch * STEPS : (epoch + 1) * STEPS]:
            logits = network(images.double())
            backbone, branches, synergy = loss_terms(logits, labels)
            total = backbone + AUX_WEIGHT * branches + SYNERGY_WEIGHT * synergy
            losses.append([part.item() for part in (total, backbone, branches, synergy)])
            correct += torch.stack([(each.argmax(1) == labels).sum() for each in logits])
            gradients = torch.autograd.grad(total, list(network.parameters()))
            with torch.no_grad():
                for p, v, g in zip(network.parameters(), velocity, gradients, strict=True):
                    v.mul_(0.9).add_(g + WEIGHT_DECAY * p)
                    p.sub_(rate * v)
        record = records(folder)[epoch]
        assert record["learning_rate"] == pytest.approx(rate)
        names = ("train_loss", *(f"train_loss_{x}" for x in ("backbone", "branches", "synergy")))
        assert [record[name] for name in names] == pytest.approx(np.mean(losses, 0), rel=1e-3)
        accuracies = [record[f"train_acc{branch}"] for branch in ("", "_ep1", "_ep2")]
        assert accuracies == pytest.approx((100 * correct / 1437).tolist(), abs=0.2)
    saved = torch.load(folder / "checkpoint.pt", weights_only=True)["model"]
    for name, value in network.state_dict().items():
        torch.testing.assert_close(saved[name].double(), value.double(), rtol=1e-3, atol=1e-4)


def test_a_test_scores_the_last_images_normalized_by_the_training_images(wrn, run):
    """The digits of scikit-learn: 1,437 to train, of which the statistics are, and 360 to test."""
    folder, record = run[0], records(run[0])[-1]
    pixels = (load_digits().images * (255 / 16)).round() / 255
    mean, std = pixels[:1437].mean(), pixels[:1437].std()
    images = torch.from_numpy((pixels[1437:] - mean) / std).float()[:, None].repeat(1, 3, 1, 1)
    labels = torch.from_numpy(load_digits().target[1437:])
    state = torch.load(folder / "checkpoint.pt", weights_only=True)["model"]
    with torch.no_grad():
        logits = digits_network(wrn, state).eval()(images)
    accuracies = [100 * (each.argmax(1) == labels).double().mean().item() for each in logits]
    assert [record[f"test_acc{b}"] for b in ("", "_ep1", "_ep2")] == pytest.approx(accuracies)
    mean_p = torch.stack(logits).softmax(-1).mean(0)
    ensemble_error = 100 * (mean_p.argmax(1) != labels).double().mean().item()
    assert record["test_error_ensemble"] == pytest.approx(ensemble_error)
    log_p = [each.log_softmax(1) for each in logits]
    expected = [[divergence(teacher, student).item() for student in log_p] for teacher in log_p]
    np.testing.assert_allclose(record["test_divergences"], expected, rtol=1e-3, atol=1e-6)
    parts = [float(part) for part in loss_terms(logits, labels)]
    names = ("backbone", "branches", "synergy")
    assert [record[f"test_loss_{x}"] for x in names] == pytest.approx(parts, rel=1e-4)
    total = parts[0] + AUX_WEIGHT * parts[1] + SYNERGY_WEIGHT * parts[2]
    assert record["test_loss"] == pytest.approx(total, rel=1e-4)


def test_dropout_is_between_the_convolutions(wrn):
    """The second convolution sees some activations dropped, the others scaled by 1 / (1 - p)."""
    torch.manual_seed(0)
    block, images = wrn.wide_resnet.Block(8, 8, 1, 0.25).train(), torch.randn(4, 8, 6, 6)
    seen = {}
    block.conv0.register_forward_hook(lambda module, given, result: seen.update(a=result.clone()))
    block.conv1.register_forward_hook(
        lambda module, given, result: seen.update(b=given[0].clone(), c=result.clone())
    )
    result = block(images.clone())
    activation = F.relu(F.batch_norm(seen["a"], None, None, block.bn1.weight, training=True))
    dropped, active = seen["b"] == 0, activation > 0
    kept = (activation / 0.75).where(~dropped, torch.tensor(0.0))
    torch.testing.assert_close(seen["b"], kept)
    assert (dropped & active).sum().item() / active.sum().item() == pytest.approx(0.25, abs=0.08)
    torch.testing.assert_close(result, images + seen["c"])  # nothing else is random


def test_each_stage_of_a_branch_halves_the_resolution(wrn):
    network, sizes = wrn.wide_resnet.WideResNet(16, 0.5, 10), []
    for branch in network.branches:
        for stage in branch.stages:
            stage.register_forward_hook(lambda module, given, result: sizes.append(result.shape))
    network(torch.zeros(2, 3, 32, 32))
    assert [tuple(each) for each in sizes] == [(2, 16, 16, 16), (2, 32, 8, 8), (2, 64, 8, 8)]


def test_each_image_of_a_batch_has_its_own_crop_and_flip(wrn):
    """Every image is a ramp, whose crop and flip can be read from its corners."""
    size, count = 16, 64
    columns, rows = (torch.arange(size) * 8).expand(size, size), (torch.arange(size) * 8)[:, None]
    image = torch.stack([columns, rows.expand(size, size), 0 * columns])
    split = wrn.data.Split(image.repeat(count, 1, 1, 1).to(torch.uint8), torch.arange(count))
    info = wrn.data.DatasetInfo([], [0.0] * 3, [1.0] * 3)
    batches = wrn.loader.AugmentedBatches(split, info, count, CPU, seed=1, flip=True)
    (batch,) = batches.epoch(0)
    rows, columns = batch.images[:, 1, 8, 8], batch.images[:, 0, 8, 8]
    flips = batch.images[:, 0, 8, 4] > batch.images[:, 0, 8, 12]
    assert len(rows.unique()) == 5 and len(columns.unique()) > 5 and 16 < flips.sum() < 48
    pairs = set(zip(rows.tolist(), columns.where(~flips, -columns).tolist(), strict=True))
    assert len(pairs) > 25  # of 50: row, column and flip are independent


@pytest.fixture
def few_digits(wrn, monkeypatch):
    """Train on 32 digits and test on 32."""
    splits, classes = wrn.data.load_digits()
    few = {part: wrn.data.Split(*(each[:32] for each in split)) for part, split in splits.items()}
    monkeypatch.setattr(wrn.data, "load_digits", lambda: (few, classes))


def test_a_resumed_float16_run_keeps_its_gradient_scale(few_digits, cifar_main, tmp_path):
    words = ("--method", "baseline", "--batch_size", 8, "--save", tmp_path)
    assert cifar_main("--epochs", 1, "--dtype", "half", *words) == 0
    content = torch.load(tmp_path / "checkpoint.pt", weights_only=True)
    content["scaler"].update(scale=4.0, _growth_tracker=100)
    torch.save(content, tmp_path / "checkpoint.pt")
    words += ("--dtype", "float16", "--resume", "auto")
    assert cifar_main("--epochs", 2, *words) == 0
    scaler = torch.load(tmp_path / "checkpoint.pt", weights_only=True)["scaler"]
    assert (scaler["scale"], scaler["_growth_tracker"]) == (4.0, 100 + 4)  # four steps


def test_dropout_has_another_seed_in_each_epoch_process_and_run(
    wrn, few_digits, cifar_main, monkeypatch, tmp_path
):
    """The seed of torch's generator in the first step of an epoch."""
    seeds, train_step = [], wrn.engine.Trainer.train_step

    def record(trainer, batch):
        seeds.append(torch.initial_seed())
        return train_step(trainer, batch)

    monkeypatch.setattr(wrn.engine.Trainer, "train_step", record)
    for rank in (0, 1):
        for module in wrn.imported.values():
            for name, value in (("rank", rank), ("world_size", 2)):
                if hasattr(module, name):
                    monkeypatch.setattr(module, name, lambda value=value: value)
        for seed in (1, 2):
            words = ("--seed", seed, "--save", tmp_path / f"{rank}{seed}")
            assert cifar_main("--epochs", 2, *words) == 0
    assert len(seeds) == len(set(seeds)) == 8


def test_probabilities_of_half_precision_logits_are_averaged_in_float32(wrn, monkeypatch):
    torch.manual_seed(0)
    logits = torch.randn(3, 2000, 3).mul(0.05).bfloat16()
    labels = torch.randint(3, (2000,))
    trainer = wrn.engine.make_trainer(
        wrn.options.parse(SMALL_CIFAR_RUN), num_classes=3, device=CPU, branches=True
    )
    monkeypatch.setattr(trainer, "_forward", lambda model, batch: tuple(logits))
    split = wrn.data.Split(torch.zeros(2000, 3, 8, 8, dtype=torch.uint8), labels)
    info = wrn.data.DatasetInfo(["a", "b", "c"], [0.0] * 3, [1.0] * 3)
    result = trainer.evaluate(wrn.loader.Batches(split, info, 2000, CPU))
    best = logits.double().softmax(-1).mean(0).argmax(-1)
    error = 100 * (best != labels).double().mean().item()
    assert result.ensemble_error == pytest.approx(error, abs=0.051)  # one near tie


def test_a_constant_channel_stays_finite(wrn):
    images = torch.randint(256, (4, 3, 8, 8), dtype=torch.uint8)
    images[:, 1] = 77
    mean, std = wrn.data.channel_statistics(images)
    info = wrn.data.DatasetInfo(["a", "b"], mean, std)
    batches = wrn.loader.Batches(wrn.data.Split(images, torch.zeros(4).long()), info, 4, CPU)
    (batch,) = batches.epoch()
    assert batch.images.isfinite().all() and batch.images[:, 1].abs().max() < 1e-3


@pytest.mark.parametrize("name", ["CIFAR10", "CIFAR100"])
def test_both_cifars_are_normalized_as_in_the_released_code(wrn, monkeypatch, name):
    split = wrn.data.Split(torch.zeros(1, 3, 32, 32, dtype=torch.uint8), torch.tensor([0]))
    parts = {"train": split, "test": split}
    monkeypatch.setattr(wrn.data, "load_cifar", lambda *arguments: (parts, ["a"]))
    info = wrn.data.load_dataset(name, None, 32, 1).info
    assert [255 * value for value in info.mean] == pytest.approx([125.3, 123.0, 113.9])
    assert [255 * value for value in info.std] == pytest.approx([63.0, 62.1, 66.7])


def test_times_are_of_the_steps_and_throughput_is_images_by_time(
    wrn, few_digits, cifar_main, monkeypatch, tmp_path
):
    """Four training steps of 3 s each, and four batches of the test of 1 s."""
    clock, Trainer = SimpleNamespace(now=0.0), wrn.engine.Trainer
    train_step, forward = Trainer.train_step, Trainer._forward

    def timed_step(trainer, batch):
        clock.now += 2
        return train_step(trainer, batch)

    def timed_forward(trainer, model, batch):
        clock.now += 1
        return forward(trainer, model, batch)

    monkeypatch.setattr(wrn.engine, "time", SimpleNamespace(perf_counter=lambda: clock.now))
    monkeypatch.setattr(Trainer, "train_step", timed_step)
    monkeypatch.setattr(Trainer, "_forward", timed_forward)
    assert cifar_main("--epochs", 2, "--batch_size", 8, "--save", tmp_path) == 0
    for record in records(tmp_path):
        assert (record["train_time"], record["test_time"]) == (12, 4)
        assert record["train_images_per_s"] == 32 / 12
