"""Checkpoints of the released code (`model.pt7`) are evaluated, exported and resumed."""

import re

import numpy as np
import pytest
import reference
import torch
from cifar_runs import records
from synthetic import write_folders


@pytest.fixture(scope="module")
def legacy(tmp_path_factory):
    """Write a checkpoint in the form of the released script and of PyTorch before 1.5."""
    path = tmp_path_factory.mktemp("legacy") / "model.pt7"
    with np.load(reference.FILE) as file:
        params = reference.parameters(file)
    trainable = [name for name in params if "running" not in name]
    keys = [id(params[name]) for name in trainable]
    momentum = {
        key: {"momentum_buffer": numbered(params[name], i)}
        for i, (key, name) in enumerate(zip(keys, trainable, strict=True))
    }
    group = {"lr": 0.1, "momentum": 0.9, "dampening": 0, "weight_decay": 5e-4, "nesterov": False}
    optimizer = {"state": momentum, "param_groups": [{**group, "params": keys}]}
    content = {"params": params, "epoch": 3, "optimizer": optimizer}
    torch.save(content, path, _use_new_zipfile_serialization=False)
    return path


def numbered(tensor, number):
    """Return a tensor of that shape whose elements encode `number` and their position."""
    return torch.arange(float(tensor.numel())).view(tensor.shape) / 1e6 + number


def write_hundred_classes(root):
    counts = {f"c{i:02}": 1 for i in range(100)}
    write_folders(root, counts, "train")
    return write_folders(root, counts, "test")


def test_released_checkpoints_are_evaluated_exported_and_resumed(wrn, legacy, tmp_path, capsys):
    root = write_hundred_classes(tmp_path / "images")
    data = ["--dataset", "folder", "--dataroot", str(root)]
    words = [*data, "--depth", "16", "--width", "1"]
    exported, folder = tmp_path / "x.pt", tmp_path / "run"
    evaluate = [*data, "--evaluate", "--resume", str(legacy), "--export", str(exported)]
    assert wrn.main.main(evaluate) == 0
    assert "shallow branch" in capsys.readouterr().out
    assert wrn.main.main([*words, "--evaluate", "--resume", str(exported)]) == 0
    train = [*words, "--epochs", "4", "--epoch_step", "[4]", "--save", str(folder)]
    train += ["--resume", str(legacy)]
    assert wrn.main.main(train) == 0
    assert [record["epoch"] for record in records(folder)] == [4]
    wrong_depth = [*words, "--depth", "22", "--evaluate", "--resume", str(legacy)]
    assert wrn.main.main(wrong_depth) == 2
    assert "contradicts --depth 22 (it has 16)" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("saved", "flags", "message"),
    [
        ({}, "--epoch_step [4]", ""),
        ({}, "--epoch_step [3]", "with learning rate 0.1 and weight decay 0.0005; --lr, "
         "--lr_decay_ratio and --epoch_step give 0.02, --weight_decay is 0.0005"),
        ({"lr": 0.02}, "--epoch_step [3]", ""),
        ({"lr": 0.1 * 0.2 * 0.2}, "--epoch_step [2,3]", ""),
        ({"lr": 0.02}, "--epoch_step [4]", "saved after 3 epochs with learning rate 0.02"),
        ({"weight_decay": 0.0}, "--epoch_step [4]", "and weight decay 0; "),
        ({"weight_decay": 0.0}, "--epoch_step [4] --weight_decay 0", ""),
        ({"lr": None}, "--epoch_step [4]", "not the optimizer state of the released code"),
    ],
)  # fmt: skip
def test_the_recipe_of_a_released_checkpoint_is_compared(wrn, legacy, saved, flags, message):
    content = wrn.checkpoint.load(legacy)
    content["optimizer"]["param_groups"][0] |= saved
    words = ["--depth", "16", "--width", "1", *flags.split()]
    trainer = wrn.engine.make_trainer(wrn.options.parse(words), 100, torch.device("cpu"), True)
    weights = wrn.legacy.legacy_weights(content, legacy)
    if not message:
        return wrn.legacy.load_legacy_run(content, weights, legacy, trainer)
    with pytest.raises(wrn.command_line.UserError, match=re.escape(message)):
        wrn.legacy.load_legacy_run(content, weights, legacy, trainer)


def test_released_checkpoints_predict_with_the_names_of_a_dataset(wrn, legacy, tmp_path, capsys):
    root = write_hundred_classes(tmp_path / "images")
    image = root / "test" / "c00" / "c00_0.png"
    words = ["--predict", str(image), "--model_path", str(legacy)]
    assert wrn.main.main(words) == 2
    assert "no class names; give the --dataset" in capsys.readouterr().err
    assert wrn.main.main([*words, "--dataset", "folder", "--dataroot", str(root)]) == 0
    assert len(re.findall(r"\n +[\d.]+%  c\d\d", capsys.readouterr().out)) == 5


def test_momentum_is_assigned_to_the_right_parameters(wrn, legacy):
    """The released code orders the parameters differently; both forms of keys are supported."""
    content = wrn.checkpoint.load(legacy)
    assert_momentum_follows_parameters(wrn, content)
    optimizer = content["optimizer"]
    keys = optimizer["param_groups"][0]["params"]
    assert min(keys) > 84  # Python ids; now the indices of PyTorch 1.5 and later
    optimizer["state"] = {i: optimizer["state"][key] for i, key in enumerate(keys)}
    optimizer["param_groups"][0]["params"] = list(range(84))
    assert_momentum_follows_parameters(wrn, content)


def test_momentum_and_epoch_are_resumed(wrn, legacy):
    words = "--dataset CIFAR100 --depth 16 --width 1".split()
    trainer = wrn.engine.make_trainer(wrn.options.parse(words), 100, torch.device("cpu"), True)
    loaded = wrn.run_state.load_checkpoint(legacy)
    assert wrn.resuming.resume(loaded, trainer, None) == 3
    names = [name for name in loaded.weights if "running" not in name and "batches" not in name]
    for name, parameter in trainer.model.named_parameters():
        buffer = trainer.optimizer.state[parameter]["momentum_buffer"]
        assert torch.equal(buffer, numbered(parameter, names.index(name))), name
        assert torch.equal(parameter, loaded.weights[name]), name


def assert_momentum_follows_parameters(wrn, content):
    model = wrn.wide_resnet.WideResNet(16, 1, 100)
    state = wrn.legacy.legacy_state_dict(content["params"])
    model.load_state_dict(state)
    parameters = dict(model.named_parameters())
    names = list(parameters)
    momentum = wrn.legacy.legacy_momentum(content, names)
    released_order = [n for n in state if "running" not in n and "num_batches" not in n]
    assert len(momentum) == 84 and released_order != names
    for index, name in enumerate(names):
        expected = numbered(parameters[name], released_order.index(name))
        assert torch.equal(momentum[index]["momentum_buffer"], expected)
