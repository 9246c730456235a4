"""Each flag of wrn_DKS/main.py reaches the object that it is about."""

from dataclasses import fields
from types import SimpleNamespace

import pytest
import torch
from cifar_runs import SMALL_CIFAR_RUN
from synthetic import write_folders
from torch import nn

# Flags whose effect other tests see in the files and the output of whole runs.
OBSERVED_IN_RUNS = {
    "epochs", "test_every", "save", "resume", "evaluate", "export", "predict", "json", "dataset",
    "dataroot", "given", "sync_bn", "random_scheme",
}  # fmt: skip


class Started(Exception):
    """Ends a run at its first step."""


@pytest.fixture
def start(wrn, monkeypatch, tmp_path):
    """Start a run with these flags; return what `observe` returns where training would begin."""

    def start(flags, observe):
        seen = SimpleNamespace(wrn=wrn, workers=[])

        def train_epoch(trainer, batches, epoch, progress, seed):
            seen.trainer, seen.batches, seen.seed = trainer, batches._batches, seed

        def evaluate(trainer, batches):
            seen.test_batches = batches._batches
            raise Started(observe(seen))

        def pool(workers):
            seen.workers.append(workers)
            return original_pool(workers)

        def mixing(self, mixup, cutmix, num_classes, seed):
            seen.mixing = mixup, cutmix
            original_mixing(self, mixup, cutmix, num_classes, seed)

        original_mixing = wrn.mixing.Mixing.__init__
        monkeypatch.setattr(wrn.mixing.Mixing, "__init__", mixing)
        original_pool = wrn.images.ThreadPoolExecutor
        monkeypatch.setattr(wrn.images, "ThreadPoolExecutor", pool)
        monkeypatch.setattr(wrn.engine.Trainer, "train_epoch", train_epoch)
        monkeypatch.setattr(wrn.engine.Trainer, "evaluate", evaluate)
        with pytest.raises(Started) as started:
            wrn.main.main([*SMALL_CIFAR_RUN, "--save", str(tmp_path / "run"), *flags.split()])
        return started.value.args[0]

    return start


def group(seen):
    return seen.trainer.optimizer.param_groups[0]


def rates(seen):
    return pytest.approx([seen.trainer.schedule.rate(epoch) for epoch in range(4)])


def dropout(seen):
    return {each.p for each in seen.trainer.model.modules() if isinstance(each, nn.Dropout)}


def images(seen):
    return next(seen.batches.epoch(0)).images


def sizes(seen):
    batch, test = next(seen.batches.epoch(0)), next(seen.test_batches.epoch())
    return len(batch.labels), len(test.labels)


def mixing(seen):
    """Return the parameters of the mixing, once the batches are seen to be mixed."""
    assert next(seen.batches.epoch(0)).labels.shape == (256, 10)
    return seen.mixing


def seeds(seen):
    """Whether network, order, mixing and dropout have the seed 5."""
    torch.manual_seed(5)
    network = seen.wrn.wide_resnet.WideResNet(10, 0.25, 10)
    split = seen.wrn.data.load_dataset("digits", None, 8, 1)
    arguments = (split.train, split.info, 256, torch.device("cpu"))
    mixed = seen.wrn.mixing.make_mixing(1, 0, 10, 5)
    batches = seen.wrn.loader.AugmentedBatches(*arguments, seed=5, flip=False, mixing=mixed)
    return (
        torch.equal(network.stem.weight, seen.trainer.model.stem.weight),
        torch.equal(next(batches.epoch(3)).labels, next(seen.batches.epoch(3)).labels),
        seen.seed == seen.wrn.seeds.derived_seed(5, 0, 0),
    )


def logits_dtype(seen):
    batch = next(seen.test_batches.epoch())._replace(batch_fraction=1.0)
    few = batch._replace(images=batch.images[:2], labels=batch.labels[:2])
    return seen.trainer._forward(seen.trainer.model, few)[0].dtype


@pytest.mark.parametrize(
    ("field", "flags", "observe", "expected"),
    [
        ("depth", "--depth 16", lambda s: len(s.trainer.model.groups[0]), 2),
        ("width", "--width 0.5", lambda s: s.trainer.model.classifier.fc.in_features, 32),
        ("dropout", "--dropout", dropout, {0.3}),
        ("dropout", "", dropout, set()),
        ("method", "--method ds", lambda s: s.trainer.criterion.method, "ds"),
        ("method", "--method ds", lambda s: len(s.trainer.model.branches), 2),
        ("method", "--method baseline", lambda s: len(s.trainer.model.branches), 0),
        ("direction", "--direction top-down", lambda s: s.trainer.criterion.direction, "top-down"),
        ("aux_weight", "--aux-weight 0.3", lambda s: s.trainer.criterion.aux_weight, 0.3),
        ("synergy_weight", "--synergy-weight 3", lambda s: s.trainer.criterion.synergy_weight, 3),
        ("label_smoothing", "--label-smoothing 0.3", lambda s: s.trainer.criterion.label_smoothing,
         0.3),
        ("mixup", "--mixup 0.3", mixing, (0.3, 0)),
        ("cutmix", "--cutmix 2", mixing, (0, 2)),
        ("cutmix", "--cutmix 2 --mixup 3", mixing, (3, 2)),
        ("batch_size", "--batch_size 99", sizes, (99, 99)),
        ("lr", "--lr 0.4 --epoch_step []", rates, [0.4] * 4),
        ("epoch_step", "--epoch_step [2,4]", rates, [0.1, 0.02, 0.02, 0.004]),
        ("lr_decay_ratio", "--lr_decay_ratio 0.5 --epoch_step [2]", rates, [0.1, *[0.05] * 3]),
        ("weight_decay", "--weight_decay 0.3", lambda s: group(s)["weight_decay"], 0.3),
        ("weight_decay", "", lambda s: group(s)["weight_decay"], 5e-4),
        ("seed", "--seed 5 --mixup 1", seeds, (True, True, True)),
        ("dtype", "--dtype bfloat16", logits_dtype, torch.bfloat16),
        ("dtype", "--dtype half", lambda s: s.trainer.scaler.is_enabled(), True),
        ("dtype", "--dtype bfloat16", lambda s: s.trainer.scaler.is_enabled(), False),
        ("compile", "--compile", lambda s: type(s.trainer._parallel).__name__, "OptimizedModule"),
        ("compile", "", lambda s: type(s.trainer._parallel).__name__, "WideResNet"),
        ("device", "--device meta", lambda s: s.trainer.model.stem.weight.device.type, "meta"),
        ("device", "--device meta", lambda s: images(s).device.type, "meta"),
    ],
)  # fmt: skip
def test_a_flag_reaches_its_object(start, field, flags, observe, expected):
    assert start(flags, observe) == expected


@pytest.mark.parametrize(
    ("field", "flag", "observe", "expected"),
    [
        ("image_size", "--image-size 12", lambda s: images(s).shape[-2:], (12, 12)),
        ("image_size", "", lambda s: images(s).shape[-2:], (32, 32)),
        ("nthread", "-j 3", lambda s: s.workers, [3, 3]),
        ("nthread", "", lambda s: s.workers, [4, 4]),
    ],
)
def test_a_flag_of_folders_reaches_the_images(start, tmp_path, field, flag, observe, expected):
    for part in ("train", "test"):
        write_folders(tmp_path, {"cat": 1, "dog": 1}, part)
    assert start(f"--dataset folder --dataroot {tmp_path} {flag}", observe) == expected


def test_every_flag_is_observed(wrn):
    marks = (test_a_flag_reaches_its_object, test_a_flag_of_folders_reaches_the_images)
    observed = {case[0] for test in marks for case in test.pytestmark[0].args[1]}
    names = {field.name for field in fields(wrn.options.Config)}
    assert observed | OBSERVED_IN_RUNS == names and not observed & OBSERVED_IN_RUNS


@pytest.mark.parametrize(
    ("flags", "observe", "expected"),
    [
        ("--batch_size 7", lambda s: len(next(s.test_batches.epoch()).labels), 7),
        ("--dtype bfloat16", logits_dtype, torch.bfloat16),
    ],
)
def test_a_flag_of_evaluation_reaches_its_object(
    wrn, cifar_run, monkeypatch, flags, observe, expected
):
    def evaluate(trainer, batches):
        seen = SimpleNamespace(trainer=trainer, test_batches=batches._batches)
        raise Started(observe(seen))

    monkeypatch.setattr(wrn.engine.Trainer, "evaluate", evaluate)
    with pytest.raises(Started) as started:
        wrn.main.main(["--evaluate", "--resume", str(cifar_run), *flags.split()])
    assert started.value.args[0] == expected
