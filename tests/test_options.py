"""Each option reaches the object that it is about; what a resumed run does with each."""

import shutil
from dataclasses import fields
from operator import attrgetter
from pathlib import Path

import pytest
import torch

# Options whose effect tests of whole runs see in their files and their output.
IN_RUNS = {
    "wrn_DKS": "dataset evaluate per_class predict json export",
    "imagenet": "cache val_labels data",
    "both": "test_every checkpoint_minutes init resume save sync_bn workers given device",
}
DIFFERS = object()  # from what is observed without the flag


def parameters(s):
    return sum(parameter.numel() for parameter in s.trainer.model.parameters())


def first_batches(s):
    """The shapes of the first batches of training and of the test."""
    return [tuple(next(iter(each)).images.shape[::3]) for each in (s.train.epoch(0), s.test)]


def mixed(s):
    """The parameters of the mixing, once the batches are seen to be mixed."""
    assert next(s.train.epoch(0)).labels.shape == (4, 3)
    return s.mixing[:2]


def parts(s):
    """The numbers of images that the network sees in a step."""
    seen = []
    s.trainer.model.register_forward_pre_hook(lambda model, args: seen.append(len(args[0])))
    s.trainer.train_step(next(s.train.epoch(0)))
    return seen


def share_of_average(s):
    """The share of the change of a weight by which its average changes."""
    weight, average = (next(each.parameters()) for each in (s.trainer.model, s.trainer.ema.module))
    before = average.clone()
    s.trainer.train_step(next(s.train.epoch(0)))
    share = ((average - before) / (weight.detach() - before)).nanmedian()
    return pytest.approx(float(share), rel=0.01)


def is_random(s):
    """Whether the logits of an image are, in training."""
    images, model = next(s.train.epoch(0)).images, s.trainer.model.train()
    return not torch.equal(model(images)[0], model(images)[0])


CASES = [  # half, option, flags, what is observed, expected
    ("both", "method", "--method ds", "trainer.criterion.method", "ds"),
    ("both", "method", "--method baseline", parameters, DIFFERS),
    ("both", "direction", "--direction top-down", "trainer.criterion.direction", "top-down"),
    ("both", "mixup", "--mixup 0.3", mixed, (0.3, 0)),
    ("both", "cutmix", "--cutmix 2", mixed, (0, 2)),
    ("both", "epochs", "--epochs 7", "trainer.schedule.config.epochs", 7),
    ("both", "batch_size", "-b 3 --image-size 40", first_batches, [(3, 40), (3, 40)]),
    ("both", "image_size", "--image-size 64", first_batches, [(4, 64), (4, 64)]),
    ("both", "grad_accumulation", "--grad-accumulation 3", parts, [2, 1, 1]),
    ("both", "lr", "--lr 0.4", "trainer.schedule.config.lr", 0.4),
    ("both", "lr_schedule", "--lr-schedule cosine", "trainer.schedule.config.lr_schedule",
     "cosine"),
    ("both", "milestones", "--milestones 3,1", "trainer.schedule.config.milestones", (3, 1)),
    ("both", "lr_factor", "--lr-factor 0.5", "trainer.schedule.config.lr_factor", 0.5),
    ("both", "warmup_epochs", "--warmup-epochs 1", "trainer.schedule.config.warmup_epochs", 1),
    ("both", "momentum", "--momentum 0.7", lambda s: s.trainer.optimizer.defaults["momentum"], 0.7),
    ("both", "weight_decay", "--weight-decay 0.3",
     lambda s: s.trainer.optimizer.defaults["weight_decay"], 0.3),
    ("both", "ema", "--ema 0.75", share_of_average, 0.25),
    ("both", "seed", "--seed 5", lambda s: (s.trainer._seed, s.mixing[3]), (5, 5)),
    ("both", "seed", "--seed 5", lambda s: next(s.train.epoch(0)).images.sum().item(), DIFFERS),
    ("both", "seed", "--seed 5", lambda s: next(s.trainer.model.parameters()).mean().item(),
     DIFFERS),
    ("both", "dtype", "--dtype bfloat16", "trainer.compute.dtype", torch.bfloat16),
    ("both", "dtype", "--dtype half", "trainer.scaler._enabled", True),
    ("both", "compile", "--compile", "trainer._parallel.__class__.__name__", "OptimizedModule"),
    ("wrn_DKS", "arch", "--arch resnet --depth 8 --width 1", "trainer.model.__class__.__name__",
     "ResNet"),
    ("wrn_DKS", "depth", "--depth 16", parameters, DIFFERS),
    ("wrn_DKS", "width", "--width 0.5", parameters, DIFFERS),
    ("wrn_DKS", "dropout", "--dropout", is_random, True),
    ("wrn_DKS", "dataroot", "--dataroot MOVED", lambda s: s.data["train_images"], 14),
    ("imagenet", "arch", "-a resnet50", lambda s: s.metadata["arch"], "resnet50"),
    ("imagenet", "augmentation", "--augmentation resized-crop",
     "train._loader.dataset._augmentation.__class__.__name__", "RandomArea"),
    ("imagenet", "arch", "-a resnet152",
     "train._loader.dataset._augmentation.__class__.__name__", "RandomArea"),
]  # fmt: skip


@pytest.fixture
def cases(half, tmp_path):
    """The cases of a half."""
    data = shutil.copytree(half.data, tmp_path / "moved")
    shutil.copy(data / "train/cat/cat_0.png", data / "train/cat/cat_9.png")
    own = [case[1:] for case in CASES if case[0] in ("both", half.scripts.path.name)]
    for name, default in half.parse(half.argv("x")).loss_options().items():
        if isinstance(default, float):  # an argument of the loss under the same name
            flag, value = f"--{name}", default + 0.25
            own.append((name, f"{flag} {value}", f"trainer.criterion.{name}", value))
    return [(name, flags.replace("MOVED", str(data)).split(), *more) for name, flags, *more in own]


def test_each_option_reaches_its_object(half, cases, tmp_path):
    plain, wrong = half.start_of(tmp_path / "plain"), []
    for number, (name, flags, observe, expected) in enumerate(cases):
        if isinstance(observe, str):
            observe = attrgetter(observe)
        found = observe(half.start_of(tmp_path / str(number), *flags))
        right = found != observe(plain) if expected is DIFFERS else found == expected
        wrong += [] if right else [(name, found)]
    assert not wrong
    declared = {*IN_RUNS["both"].split(), *IN_RUNS[half.scripts.path.name].split()}
    options = {each.name for each in fields(half.parse(half.argv("x")))}
    assert {name for name, *_ in cases} | declared == options


def test_a_resumed_run_takes_what_was_not_given_from_its_checkpoint(half, cases):
    """Unless the option is of this machine only. What decides the result can't be changed."""
    plain, empty = half.scripts.options.plain, half.parse(["--resume", "x"])
    roles = {each.name: each.metadata.get("role") for each in fields(empty)}
    saved = half.parse(half.argv("x")).to_dict()

    def resumed(config, **changes):
        return half.scripts.options.from_checkpoint(config, saved | changes, Path("x.pt"))

    for name, flags, *_ in [*cases, ("device", ["--device", "cuda:1"])]:
        config = half.parse(["--resume", "x", *flags])
        given = plain(getattr(config, name))
        if roles[name] == "fixed" and given != saved[name]:
            with pytest.raises(
                half.scripts.command_line.UserError, match=f"--{name.replace('_', '-')} "
            ):
                resumed(config)
        else:
            assert plain(getattr(resumed(config), name)) == given
        kept = empty if roles[name] == "local" else config
        assert getattr(resumed(empty, **{name: given}), name) == getattr(kept, name), name
    del saved["momentum"]  # an older checkpoint lacks it
    assert (resumed(empty).momentum, resumed(empty).lr) == (0.9, 0.02)


def test_a_cosine_fixes_the_number_of_epochs(half, tmp_path, capsys):
    assert half.train(tmp_path, "--lr-schedule", "cosine", "--epochs", 1) == 0
    assert "--epochs 2 (was 1)" in half.error(capsys, tmp_path, "--resume", "auto")
    assert half.train(None, argv=["--resume", str(tmp_path)]) == 0
