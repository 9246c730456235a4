"""Flags of imagenet/main.py and train.py: quick help, names shared with wrn_DKS, choices."""

import os
import resource
import subprocess
import sys

import pytest

DATA = ["IMAGENET"]


@pytest.mark.parametrize("script", ["main", "train"])
def test_help_neither_imports_torch_nor_takes_a_second(imagenet, script):
    """With limits of twice as long, for busy machines."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    command = [sys.executable, "-X", "importtime", imagenet.path / f"{script}.py", "--help"]
    done = subprocess.run(command, capture_output=True, text=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert done.returncode == 0 and done.stdout.startswith(f"usage: {script}.py")
    imported = {line.rpartition("|")[2].strip() for line in done.stderr.splitlines()}
    assert "options" in imported or "train_options" in imported
    assert not imported & {"torch", "torchvision", "numpy", "tqdm"}
    assert after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime < 1.5


@pytest.mark.parametrize(("given", "used"), [(None, "passive"), ("active", "active")])
@pytest.mark.parametrize("script", ["main", "train"])
def test_idle_threads_do_not_spin_unless_the_user_wants_it(imagenet, script, given, used):
    environment = {k: v for k, v in os.environ.items() if k != "OMP_WAIT_POLICY"}
    environment |= {"OMP_WAIT_POLICY": given} if given else {}
    code = f"""
import builtins, os, sys
original = builtins.__import__
def note(name, *arguments):
    if name == "torch":
        print(os.environ.get("OMP_WAIT_POLICY"), flush=True)
        os._exit(0)
    return original(name, *arguments)
builtins.__import__ = note
import {script}
"""
    done = subprocess.run(
        [sys.executable, "-c", code],
        env=environment | {"PYTHONPATH": str(imagenet.path)},
        capture_output=True,
        text=True,
    )
    assert done.stdout == f"{used}\n", done.stderr  # when torch is imported first


def test_choices_are_those_of_the_modules_behind_them(imagenet):
    choices = {
        action.dest: tuple(action.choices)
        for action in imagenet.train_flags.build_parser()._actions
        if action.choices
    }
    assert choices["arch"] == tuple(imagenet.resnet.NETWORKS) == imagenet.shared_flags.ARCHS
    assert choices["method"] == tuple(imagenet.synergy.METHODS)
    assert choices["direction"] == tuple(imagenet.synergy.DIRECTIONS)
    assert choices["lr_schedule"] == imagenet.schedule.LR_SCHEDULES
    for augmentation in choices["augmentation"]:
        assert f"`{augmentation}`" in imagenet.presets.training_transform.__doc__
    (resize,) = (a for a in imagenet.options.build_parser()._actions if a.dest == "resize")
    for name in resize.choices:
        assert f"`{name}`" in imagenet.presets.evaluation_transform.__doc__


def test_every_flag_has_help(imagenet):
    for module in (imagenet.options, imagenet.train_flags):
        assert all(action.help for action in module.build_parser()._actions)


@pytest.mark.parametrize(
    ("words", "same"),
    [
        ("--nthread 3", "-j 3"),
        ("--batch_size 8", "-b 8"),
        ("--gpu_id 1", "--device cuda:1"),
        ("--dtype half", "--dtype float16"),
        ("--ngpu 1", ""),
    ],
)
def test_names_of_both_folders_work_in_both_scripts(imagenet, words, same):
    for parse, source in (
        (imagenet.options.parse, ["--model_path", "a"]),
        (imagenet.train_options.parse, []),
    ):
        configs = [parse([*DATA, *source, *each.split()]) for each in (words, same)]
        assert configs[0] == configs[1]
        assert parse(["--dataroot", *DATA, *source]) == parse([*DATA, *source])


@pytest.mark.parametrize(
    ("words", "same"),
    [
        ("--epoch_step [31,61,91]", "--lr-milestones 30,60,90"),
        ("--epoch_step [31,31,61,91]", "--lr-milestones 30,60,60,90"),
        ("--epoch_step 1", "--milestones [0]"),
        ("--epoch_step []", "--milestones="),
        ("--lr_decay_ratio 0.2", "--lr-factor 0.2"),
        ("--weight_decay 0.001", "--weight-decay 0.001"),
    ],
)
def test_names_of_wrn_dks_work_in_training(imagenet, words, same):
    one, other = (imagenet.train_options.parse([*DATA, *each.split()]) for each in (words, same))
    assert one == other != imagenet.train_options.parse(DATA)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("", "no data"),
        ("IMAGENET --dataroot other", "give one of them"),
        ("IMAGENET --epoch_step 31 --lr-milestones 30", "not allowed with"),
        ("IMAGENET --epoch_step 0", "counted from 1"),
        ("IMAGENET --gpu_id 0 --device cpu", "not allowed with"),
        ("IMAGENET --ngpu 8", "torchrun --nproc_per_node 8 train.py"),
        ("IMAGENET --resume auto", "requires --save"),
        ("IMAGENET --export checkpoint.pt", "reserved for the checkpoint"),
    ],
)
def test_contradicting_flags_are_refused(imagenet, words, message):
    with pytest.raises(imagenet.command_line.UserError, match=message):
        imagenet.train_options.parse(words.split())


def test_defaults_of_training_are_the_recipe_of_the_paper(imagenet):
    config = imagenet.train_options.parse(DATA)
    assert (config.arch, config.method, config.direction) == ("resnet18", "dks", "bidirectional")
    assert (config.aux_weight, config.synergy_weight, config.label_smoothing) == (1, 1, 0)
    assert (config.epochs, config.batch_size, config.image_size) == (100, 256, 224)
    assert (config.lr, config.momentum, config.weight_decay) == (0.1, 0.9, 1e-4)
    assert (config.lr_schedule, config.lr_factor, config.warmup_epochs) == ("step", 0.1, 0)
    assert config.with_milestones(None).milestones == (30, 60, 90)
    assert (config.augmentation, config.ema, config.dtype) == ("crop", 0, "float32")
    assert (config.mixup, config.cutmix, config.grad_accumulation) == (0, 0, 1)
    config = imagenet.train_options.parse([*DATA, "-a", "resnet152"])
    assert config.augmentation == "resized-crop"


def test_defaults_of_evaluation_are_the_released_code_s(imagenet):
    config = imagenet.options.parse([*DATA, "--model_path", "a"])
    assert (config.resize, config.dtype, config.batch_size) == ("square", "float32", 256)
    assert not (config.branches or config.skip_unreadable or config.image_size)
