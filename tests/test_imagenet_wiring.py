"""Each flag of imagenet/train.py and imagenet/main.py reaches the object that it is about."""

import time
from contextlib import nullcontext
from dataclasses import fields
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from evaluation import NETWORK, write_checkpoint, write_validation_set
from PIL import Image
from synthetic import write_image
from training import TinyNetwork, command_line, run_train, write_data

# Flags whose effect other tests see in the files and the output of whole runs.
TRAINING_OBSERVED_IN_RUNS = {
    "data", "epochs", "resume", "save", "export", "init", "skip_unreadable", "sync_bn",
    "cache",
}  # fmt: skip
EVALUATION_OBSERVED_IN_RUNS = {
    "data", "val_labels", "model_path", "pretrained", "torchvision_weights", "download_only",
    "json", "predict", "export",
}  # fmt: skip


class Started(Exception):
    """Ends a run at its first step."""


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return write_data(tmp_path_factory.mktemp("images"))


@pytest.fixture
def start(imagenet, data, monkeypatch, tmp_path):
    """Start a run with these flags; return what `observe` returns where training would begin."""

    def start(flags, observe, data=data):
        seen = SimpleNamespace(imagenet=imagenet, folder=tmp_path / "run")

        def build(arch, *arguments, **options):
            seen.arch = arch
            return TinyNetwork(arch, *arguments, **options)

        def train_epoch(config, trainer, loaders, schedule, hook):
            seen.trainer, seen.schedule, seen.hook = trainer, schedule, hook
            seen.loader, seen.validation_loader = loaders
            original(config, trainer, loaders, schedule, hook)

        def train_steps(trainer, loader, schedule, hook, progress, log_interval):
            seen.log_interval = log_interval
            raise Started(observe(seen))

        def mixing(self, mixup, cutmix, num_classes, seed):
            seen.mixing = mixup, cutmix
            original_mixing(self, mixup, cutmix, num_classes, seed)

        original_mixing = imagenet.mixing.Mixing.__init__
        monkeypatch.setattr(imagenet.mixing.Mixing, "__init__", mixing)
        original = imagenet.train.train_epoch
        monkeypatch.setattr(imagenet.train, "train_epoch", train_epoch)
        monkeypatch.setattr(imagenet.engine.Trainer, "train_epoch", train_steps)
        argv = command_line(data, seen.folder, *flags.split())
        with pytest.raises(Started) as started, monkeypatch.context() as patch:
            patch.setattr("training.TinyNetwork", build)
            run_train(imagenet, argv)
        return started.value.args[0]

    return start


def group(seen):
    return seen.trainer.optimizer.param_groups[0]


def rates(seen):
    """The rates of the first steps of five epochs, of four steps each."""
    return pytest.approx([seen.schedule.rate(4 * epoch) for epoch in range(5)])


def sizes(seen):
    batch, (images, _) = next(seen.loader.epoch(0)), next(iter(seen.validation_loader))
    return len(batch.labels), len(images)


def shapes(seen):
    batch, (images, _) = next(seen.loader.epoch(0)), next(iter(seen.validation_loader))
    return batch.images.shape[-1], images.shape[-1]


def augmentation(seen):
    return type(seen.loader.files.transform).__name__


def torch_loaders(seen):
    return seen.loader._loader, seen.validation_loader


def mixing(seen):
    """Return the parameters of the mixing, once the batches are seen to be mixed."""
    assert next(seen.loader.epoch(0)).labels.shape == (4, 3)
    return seen.mixing


def seeds(seen):
    """Whether network, order, augmentation and mixing have the seed 5."""
    torch.manual_seed(5)
    network, loader = TinyNetwork("", num_classes=3), seen.imagenet.loader
    sampler = loader.ResumableBatchSampler(13, 4, 5, with_previous=True)
    mixed = seen.imagenet.mixing.make_mixing(1, 0, 3, 5)
    dataset = seen.imagenet.data.AugmentedDataset(seen.loader.files, 5)
    expected = loader.TrainingLoader(dataset, sampler, 0, 2, torch.device("cpu"), None, mixed)
    other, batch = next(expected.epoch(1)), next(seen.loader.epoch(1))
    same = torch.equal(network.fc.weight, seen.trainer.model.fc.weight)
    return same, torch.equal(other.labels, batch.labels), torch.equal(other.images, batch.images)


def parts(seen):
    """The numbers of images that the network sees in one step of seven images."""
    counts = []
    seen.trainer.model.register_forward_pre_hook(lambda m, given: counts.append(len(given[0])))
    seen.trainer.train_step(random_batch(seen), 0.1)
    return counts


def random_batch(seen):
    return seen.imagenet.loader.Batch(torch.randn(7, 3, 40, 40), torch.arange(7) % 3, 1.0)


def logits_dtype(seen):
    seen.dtypes = []
    seen.trainer.model.register_forward_hook(lambda m, _, out: seen.dtypes.append(out[0].dtype))
    seen.trainer.train_step(random_batch(seen), 0.0)
    return seen.dtypes[0]


def change_of_average(seen):
    """Return what a change of a weight by 1 does to its average."""
    with torch.no_grad():
        seen.trainer.model.fc.weight.add_(1.0)
    before = seen.trainer.ema.model.fc.weight.clone()
    seen.trainer.ema.update()
    return pytest.approx((seen.trainer.ema.model.fc.weight - before).mean().item(), rel=1e-4)


def minutes_to_a_checkpoint(seen):
    """Return the first of some minutes after which a step saves a checkpoint."""
    now, preemption = time.monotonic(), seen.imagenet.preemption
    with pytest.MonkeyPatch.context() as patch:
        for minutes in (0.5, 2, 2.5, 3.5, 14, 15.5):
            clock = SimpleNamespace(monotonic=lambda late=60 * minutes: now + late)
            patch.setattr(preemption, "time", clock)
            seen.hook()
            if (seen.folder / "checkpoint.pt").exists():
                return minutes


def criterion(name):
    return lambda seen: getattr(seen.trainer._criterion, name)


@pytest.mark.parametrize(
    ("field", "flags", "observe", "expected"),
    [
        ("image_size", "--image-size 48", shapes, (48, 48)),
        ("augmentation", "", augmentation, "SquareCrop"),
        ("augmentation", "--augmentation resized-crop", augmentation, "ResizedCrop"),
        ("augmentation", "-a resnet152", augmentation, "ResizedCrop"),
        ("workers", "-j 2", lambda s: [x.num_workers for x in torch_loaders(s)], [2, 2]),
        ("prefetch", "-j 2 --prefetch 3", lambda s: torch_loaders(s)[0].prefetch_factor, 3),
        ("arch", "-a resnet50", lambda s: s.arch, "resnet50"),
        ("method", "--method ds", criterion("method"), "ds"),
        ("method", "--method ds", lambda s: len(s.trainer.model.branches), 2),
        ("method", "--method baseline", lambda s: len(s.trainer.model.branches), 0),
        ("direction", "--direction top-down", criterion("direction"), "top-down"),
        ("aux_weight", "--aux-weight 0.3", criterion("aux_weight"), 0.3),
        ("synergy_weight", "--synergy-weight 3", criterion("synergy_weight"), 3),
        ("label_smoothing", "--label-smoothing 0.3", criterion("label_smoothing"), 0.3),
        ("mixup", "--mixup 0.3", mixing, (0.3, 0)),
        ("cutmix", "--cutmix 2", mixing, (0, 2)),
        ("cutmix", "--cutmix 2 --mixup 3", mixing, (3, 2)),
        ("batch_size", "-b 3", sizes, (3, 3)),
        ("grad_accumulation", "--grad-accumulation 3", parts, [3, 2, 2]),
        ("grad_accumulation", "", parts, [7]),
        ("lr", "--lr 0.4", rates, [0.4] * 5),
        ("lr", "--lr 0.4", lambda s: group(s)["lr"], 0.4),
        ("lr_schedule", "--lr-schedule cosine --epochs 4 --lr 0.4", rates,
         [0.4, 0.2 + 0.2 * 0.5**0.5, 0.2, 0.2 - 0.2 * 0.5**0.5, 0]),
        ("milestones", "--lr-milestones 1,3 --lr 0.4", rates, [0.4, 0.04, 0.04, 0.004, 0.004]),
        ("lr_factor", "--lr-milestones 1 --lr-factor 0.5 --lr 0.4", rates, [0.4, *[0.2] * 4]),
        ("warmup_epochs", "--warmup-epochs 2 --lr 0.4", rates, [0.05, 0.25, 0.4, 0.4, 0.4]),
        ("momentum", "--momentum 0.7", lambda s: group(s)["momentum"], 0.7),
        ("weight_decay", "--weight-decay 0.3", lambda s: group(s)["weight_decay"], 0.3),
        ("ema", "--ema 0.75", change_of_average, 0.25),
        ("ema", "", lambda s: s.trainer.ema, None),
        ("seed", "--seed 5 --mixup 1", seeds, (True, True, True)),
        ("device", "--device meta", lambda s: s.trainer.device.type, "meta"),
        ("dtype", "--dtype bfloat16", logits_dtype, torch.bfloat16),
        ("dtype", "", logits_dtype, torch.float32),
        ("dtype", "--dtype half", lambda s: s.trainer.scaler.is_enabled(), True),
        ("compile", "--compile", lambda s: type(s.trainer.parallel).__name__, "OptimizedModule"),
        ("compile", "", lambda s: type(s.trainer.parallel).__name__, "TinyNetwork"),
        ("checkpoint_minutes", "--checkpoint-minutes 3", minutes_to_a_checkpoint, 3.5),
        ("checkpoint_minutes", "", minutes_to_a_checkpoint, 15.5),
        ("log_interval", "--log-interval 7", lambda s: s.log_interval, 7),
    ],
)  # fmt: skip
def test_a_flag_of_training_reaches_its_object(start, field, flags, observe, expected):
    assert start(flags, observe) == expected


def test_the_label_file_reaches_the_validation_images(start, data, tmp_path):
    """It labels images that are in no class folders."""
    names = ("n00000001", "n00000002")
    for index, name in enumerate(names):
        write_image(tmp_path / "data" / "train" / name / "a.png")
        write_image(tmp_path / "data" / "val" / f"{index}.png")
    (tmp_path / "labels").write_text(f"0.png {names[1]}\n1.png {names[0]}\n")
    flags = f"--val-labels {tmp_path / 'labels'}"
    labels = start(flags, lambda s: s.validation_loader.dataset.dataset.labels, tmp_path / "data")
    assert labels == [1, 0]


def observed(test):
    return {case[0] for case in test.pytestmark[0].args[1]}


def test_every_flag_of_training_is_observed(imagenet):
    names = {field.name for field in fields(imagenet.train_options.Config)}
    seen = observed(test_a_flag_of_training_reaches_its_object) | {"val_labels"}
    assert seen | TRAINING_OBSERVED_IN_RUNS == names and not seen & TRAINING_OBSERVED_IN_RUNS


@pytest.fixture(scope="module")
def validation(imagenet, tmp_path_factory):
    return write_validation_set(imagenet, tmp_path_factory.mktemp("validation"))


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    return write_checkpoint(tmp_path_factory.mktemp("weights") / "a.pth")


@pytest.fixture
def evaluate(imagenet, validation, weights, monkeypatch):
    """Evaluate with these flags; return what `observe` returns of the evaluation."""

    def evaluate(flags, observe, predict=()):
        seen = SimpleNamespace(imagenet=imagenet, interval=None)

        def progress(batches, interval, shown):
            seen.interval = interval
            return nullcontext()

        def score(model, loader, device, dtype, progress=None):
            seen.model, seen.loader, seen.device, seen.dtype = model, loader, device, dtype
            raise Started(observe(seen))

        monkeypatch.setattr(imagenet.main, "EvaluationProgress", progress)
        monkeypatch.setattr(imagenet.main, "evaluate", score)
        monkeypatch.setattr(imagenet.main, "predict", score)
        source = ["--predict", *predict] if predict else [validation]
        argv = [*NETWORK, weights, "--device", "cpu", "--image-size", "32", "-j", "0", *source]
        with pytest.raises(Started) as started:
            imagenet.main.main([*map(str, argv), *flags.split()])
        return started.value.args[0]

    return evaluate


def image_shape(seen):
    return tuple(seen.loader.dataset[0][0].shape)


def resized(seen):
    """Return how a wide image is resized: to a square, or so that its sides are cut off."""
    ramp = np.tile(np.arange(200, dtype=np.uint8), (100, 1))
    image = Image.fromarray(np.stack([ramp] * 3, -1))
    pixels = seen.loader.dataset.dataset.transform(image)[0]
    return "square" if pixels[0, 0] < 25 else "shorter-side"


EVALUATION_CASES = [
    ("resize", "", resized, "square"),
    ("resize", "--resize shorter-side", resized, "shorter-side"),
    ("image_size", "--image-size 48", image_shape, (3, 48, 48)),
    ("workers", "-j 2", lambda s: s.loader.num_workers, 2),
    ("arch", "", lambda s: type(s.model.network).__name__, "ShuffleNetV2"),
    ("device", "--device meta", lambda s: s.device.type, "meta"),
    ("device", "--device meta", lambda s: next(s.model.parameters()).device.type, "meta"),
    ("dtype", "", lambda s: s.dtype, torch.float32),
    ("dtype", "--dtype bfloat16", lambda s: s.dtype, torch.bfloat16),
    ("batch_size", "", lambda s: s.loader.batch_size, 256),
    ("batch_size", "-b 3", lambda s: s.loader.batch_size, 3),
]


@pytest.mark.parametrize(
    ("field", "flags", "observe", "expected"),
    [
        *EVALUATION_CASES,
        ("skip_unreadable", "", lambda s: s.loader.dataset.dataset.skip_unreadable, False),
        ("skip_unreadable", "--skip-unreadable",
         lambda s: s.loader.dataset.dataset.skip_unreadable, True),
        ("print_freq", "-p 7", lambda s: s.interval, 7),
    ],
)  # fmt: skip
def test_a_flag_of_evaluation_reaches_its_object(evaluate, field, flags, observe, expected):
    assert evaluate(flags, observe) == expected


@pytest.mark.parametrize(("field", "flags", "observe", "expected"), EVALUATION_CASES)
def test_a_flag_of_prediction_reaches_its_object(
    evaluate, tmp_path, field, flags, observe, expected
):
    image = write_image(tmp_path / "a.png")
    assert evaluate(flags, observe, predict=[image]) == expected


def test_every_flag_of_evaluation_is_observed(imagenet):
    names = {field.name for field in fields(imagenet.options.Config)}
    seen = observed(test_a_flag_of_evaluation_reaches_its_object) | {"branches"}
    assert seen | EVALUATION_OBSERVED_IN_RUNS == names and not seen & EVALUATION_OBSERVED_IN_RUNS
