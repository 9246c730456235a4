"""The networks for small images: sizes, branches, initial values; their recipes."""

from functools import partial

import pytest
import torch


def build(wrn, name, branches=True, num_classes=10):
    """Build `wrn-16-1` or `resnet-20`."""
    arch, depth, *width = name.split("-")
    if arch == "resnet":
        return wrn.resnet.ResNet(int(depth), num_classes, branches)
    return wrn.wide_resnet.WideResNet(int(depth), float(width[0]), num_classes, 0.0, branches)


@pytest.mark.parametrize(
    ("name", "branches", "classes", "parameters", "multiply_adds"),
    [
        ("wrn-28-10", False, 100, 36_536_884, 5_243_386_368),
        ("wrn-28-10", True, 100, 164_146_364, 14_733_191_168),
        ("wrn-16-1", True, 100, 775_388, None),  # of the released code
        ("resnet-20", False, 10, 269_722, 40_551_040),
        ("resnet-32", False, 10, 464_154, 68_862_592),
        ("resnet-32", False, 100, 470_004, 68_868_352),
        ("resnet-32", True, 100, 2_147_644, None),
        ("resnet-44", False, 10, 658_586, None),
        ("resnet-56", False, 10, 853_018, None),
        ("resnet-110", False, 10, 1_727_962, None),
    ],
)
def test_cost(wrn, capsys, name, branches, classes, parameters, multiply_adds):
    wrn.engine.print_costs(name, partial(build, wrn, name, num_classes=classes), branches, 32)
    line = capsys.readouterr().out.splitlines()[-1]
    assert f": {parameters:,} parameters, " in line
    assert multiply_adds is None or f" {multiply_adds:,} multiply-adds" in line


@pytest.mark.parametrize(
    ("name", "specs"),
    [
        ("wrn-22-2", (((64, 3), (128, 1)), ((256, 3),))),
        ("wrn-10-1", (((32, 1), (64, 1)), ((128, 1),))),  # where the released code fails
        ("wrn-10-0.55", (((17, 1), (35, 1)), ((70, 1),))),
        ("resnet-20", (((32, 3), (64, 2)), ((128, 3),))),
        ("resnet-32", (((32, 5), (64, 3)), ((128, 5),))),
        ("resnet-110", (((32, 9), (64, 9)), ((128, 18),))),
    ],
)
def test_branches(wrn, name, specs):
    """The (channels, blocks) of the stages, each of which halves the resolution."""
    with torch.device("meta"):
        network, resolutions, built = build(wrn, name), [], []
        for branch in network.branches:
            built.append(tuple((s[-1].conv1.out_channels, len(s)) for s in branch.stages))
            for stage in branch.stages:
                stage.register_forward_hook(lambda *args: resolutions.append(args[2].shape[-1]))
        logits = network(torch.empty(2, 3, 32, 32))
    assert tuple(built) == specs and resolutions == [16, 8, 8]
    assert [tuple(each.shape) for each in logits] == [(2, 10)] * 3


@pytest.mark.parametrize("name", ["wrn-10-0.5", "resnet-8"])
def test_where_branches_are_attached(wrn, name):
    """The gradient of each classifier reaches its own part, and the groups below it."""
    network = build(wrn, name)
    logits = network(torch.randn(2, 3, 8, 8))
    parts = (*network.groups, network.classifier, *network.branches)
    for index, below in ((0, 3), (1, 1), (2, 2)):
        network.zero_grad()
        logits[index].sum().backward(retain_graph=True)
        reached = [next(part.parameters()).grad is not None for part in parts]
        assert reached == [i < below or i == 3 + index for i in range(6)]


@pytest.mark.parametrize("size", [8, 37])
@pytest.mark.parametrize("name", ["wrn-10-0.5", "resnet-8"])
def test_the_backbone_is_the_same_without_branches(wrn, name, size):
    """For a seed, the same initial weights; with its weights, the same logits."""
    torch.manual_seed(3)
    full = build(wrn, name).eval()
    torch.manual_seed(3)
    plain = build(wrn, name, branches=False).eval()
    state, expected = full.state_dict(), plain.state_dict()
    state = {name: state[name] for name in state if not name.startswith("branches.")}
    assert state.keys() == expected.keys()
    assert all(torch.equal(state[key], expected[key]) for key in expected)
    images = torch.randn(2, 3, size, size)
    with torch.no_grad():
        logits, (alone,) = full(images.clone()), plain(images)
    assert torch.equal(alone, logits[0]) and alone.shape == (2, 10)


def test_impossible_sizes_are_errors(wrn):
    for name in ("wrn-9-1", "wrn-4-1", "wrn-16-0.05", "wrn-16-0", "resnet-2", "resnet-16"):
        with pytest.raises(ValueError, match=r"^(depth|width) .*: expected"):
            build(wrn, name)


def test_option_a_shortcut(wrn):
    """Without the residual: 2x2 average pooling, and zeros in the new channels."""
    block = wrn.resnet.Block(2, 5, 2).eval()
    torch.nn.init.zeros_(block.bn1.weight)
    images = torch.rand(3, 2, 6, 4)
    expected = torch.zeros(3, 5, 3, 2)
    for row in range(3):
        for column in range(2):
            window = images[:, :, 2 * row : 2 * row + 2, 2 * column : 2 * column + 2]
            expected[:, :2, row, column] = window.sum((2, 3)) / 4
    torch.testing.assert_close(block(images), expected)


def test_dropout_is_between_the_convolutions(wrn):
    """The second convolution sees some activations dropped, the others scaled by 1 / (1 - p)."""
    torch.manual_seed(0)
    block, images, seen = wrn.wide_resnet.Block(8, 8, 1, 0.25), torch.rand(4, 8, 6, 6) + 1, []
    block.bn1.register_forward_hook(lambda _, given, out: seen.append(out.clone().relu()))
    block.conv1.register_forward_hook(lambda _, given, out: seen.extend((given[0].clone(), out)))
    result = block(images.clone())
    activation, given, residual = seen
    dropped = given == 0
    torch.testing.assert_close(given, torch.where(dropped, 0, activation / 0.75))
    assert dropped[activation > 0].double().mean() == pytest.approx(0.25, abs=0.08)
    torch.testing.assert_close(result, images + residual)  # nothing else is random


@torch.no_grad()
def test_initial_values(wrn):
    """Kaiming normal: of a WRN with fan-in, as released; of a ResNet with fan-out, as in DHM."""
    torch.manual_seed(0)
    wide, plain = wrn.wide_resnet.WideResNet(16, 4, 100), wrn.resnet.ResNet(20, 100)
    weights = {
        wide.branches[1].stages[0][0].conv1.weight: 512 * 9,
        wide.classifier.fc.weight: 256,
        plain.branches[1].stages[0][0].conv0.weight: 128 * 9,
    }
    for weight, fan in weights.items():
        assert float(weight.std()) == pytest.approx((2 / fan) ** 0.5, rel=0.02)
    assert plain.classifier.fc.weight.abs().max() == pytest.approx(1 / 64**0.5, rel=0.1)
    uniform = wide.branches[1].stages[0][1].bn0.weight
    assert 0 <= float(uniform.min()) < 0.05 and 0.95 < float(uniform.max()) < 1
    for network in (wide, plain):
        norms = [m for m in network.modules() if isinstance(m, torch.nn.BatchNorm2d)]
        assert all((norm.bias == 0).all() for norm in norms)
    assert all((norm.weight == 1).all() for norm in norms)


def config(wrn, words):
    return wrn.flags.with_recipe(wrn.flags.parse(words.split()))


@pytest.mark.parametrize(
    ("words", "epochs", "decay", "changes", "cleared"),
    [
        ("--width 0.1", 200, 5e-4, {1: 0.1, 60: 0.02, 120: 0.004, 160: 0.0008}, [59, 119, 159]),
        ("--width 0.1 --epochs 15", 15, 5e-4, {1: 0.1, 5: 0.02, 9: 0.004, 12: 8e-4}, [4, 8, 11]),
        ("--width 0.1 --epochs 2", 2, 5e-4, {1: 0.1, 2: 0.02}, [1]),
        ("--arch resnet", 164, 1e-4, {1: 0.1, 82: 0.01, 123: 0.001}, []),
        ("--arch resnet --depth 110", 164, 1e-4, {1: 0.01, 2: 0.1, 82: 0.01, 123: 0.001}, []),
    ],
)
def test_recipe(wrn, words, epochs, decay, changes, cleared):
    """The learning rate by epoch, counted from 1, at whose start it changes."""
    options = config(wrn, f"{words} --method baseline --dataset digits --batch-size 1437")
    data = wrn.data.load_dataset("digits", None, 8, 1)
    trainer, _ = wrn.main.make_trainer(options, data, torch.device("cpu"), initialize=True)
    made, weight_decay = trainer.schedule, trainer.optimizer.param_groups[0]["weight_decay"]
    assert (made.config.epochs, weight_decay) == (epochs, decay)
    rates = [made.rate(step) for step in range(epochs)]
    starts = [i for i in range(epochs) if not i or rates[i] != rates[i - 1]]
    assert {i + 1: rates[i] for i in starts} == pytest.approx(changes)
    assert [step for step in range(epochs) if made.clears_momentum_at(step)] == cleared


def test_milestones_in_both_spellings(wrn):
    for words in ("--epoch_step [60,120,160]", "--lr-milestones 59,119,159,59", ""):
        assert config(wrn, words).milestones == (59, 119, 159)
    for words in ("--milestones ,", "--epoch_step []", "--epochs 1"):
        assert config(wrn, words).milestones == ()


def test_help_shows_the_recipes(wrn, capsys):
    with pytest.raises(SystemExit):
        wrn.main.main(["--help"])
    text = " ".join(capsys.readouterr().out.split())
    for part in ("200; resnet: 164", "0.2; resnet: 0.1", "5e-4; resnet: 1e-4", "[60,120,160] of"):
        assert f"(default: {part}" in text
