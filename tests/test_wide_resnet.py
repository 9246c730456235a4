"""The wide residual network: sizes, shapes, branches, initial values."""

import pytest
import torch


def test_cost_of_the_papers_network(wrn):
    """Parameters and multiply-adds of WRN-28-10 for 100 classes, with and without branches."""
    for branches, parameters, multiply_adds in (
        (False, 36_536_884, 5_243_386_368),
        (True, 164_146_364, 14_733_191_168),
    ):
        cost = wrn.metrics.cost(
            lambda with_them=branches: wrn.wide_resnet.WideResNet(28, 10, 100, branches=with_them),
            32,
        )
        assert cost == (parameters, multiply_adds)


@pytest.mark.parametrize("size", [8, 32, 37])
def test_forward_is_a_tuple_the_backbone_first(wrn, size):
    images = torch.randn(2, 3, size, size)
    model = wrn.wide_resnet.WideResNet(10, 1, 7).eval()
    plain = wrn.wide_resnet.WideResNet(10, 1, 7, branches=False).eval()
    plain.load_state_dict(model.backbone_state())
    with torch.no_grad():
        logits = model(images)
        assert [tuple(each.shape) for each in logits] == [(2, 7)] * 3
        (alone,) = plain(images)
    assert torch.equal(alone, logits[0])


def test_branch_stages(wrn):
    """WRN-28-2: blocks and channels of each branch as released; at depth 10, one block, ours."""
    table = wrn.wide_resnet.branch_table
    assert table(28, 2) == ((0, ((64, 4), (128, 2))), (1, ((256, 4),)))
    assert table(10, 1) == ((0, ((32, 1), (64, 1))), (1, ((128, 1),)))
    model = wrn.wide_resnet.WideResNet(28, 2, 5)
    for row, branch in zip(table(28, 2), model.branches, strict=True):
        built = [(stage[-1].conv1.out_channels, len(stage)) for stage in branch.stages]
        assert tuple(built) == row.stages


def test_fractional_width_rounds_down(wrn):
    assert wrn.wide_resnet.group_channels(0.55) == (8, 17, 35)
    assert wrn.wide_resnet.branch_table(10, 0.55)[1].stages == ((70, 1),)
    assert len(wrn.wide_resnet.WideResNet(10, 0.55, 3)(torch.randn(2, 3, 8, 8))) == 3


@pytest.mark.parametrize(("depth", "width"), [(9, 1), (4, 1), (27, 1), (16, 0.05), (16, 0)])
def test_impossible_sizes(wrn, depth, width):
    with pytest.raises(ValueError, match="expected"):
        wrn.wide_resnet.WideResNet(depth, width, 10)


def test_same_seed_same_backbone_with_and_without_branches(wrn):
    torch.manual_seed(3)
    model = wrn.wide_resnet.WideResNet(10, 1, 10)
    torch.manual_seed(3)
    plain = wrn.wide_resnet.WideResNet(10, 1, 10, branches=False)
    ours, theirs = model.backbone_state(), plain.state_dict()
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)


@torch.no_grad()
def test_initial_values(wrn):
    """Kaiming normal, gain sqrt(2), fan-in; BN uniform in [0, 1); biases 0."""
    torch.manual_seed(0)
    model = wrn.wide_resnet.WideResNet(16, 4, 100)
    conv = model.branches[1].stages[0][0].conv1.weight
    fan_in = conv[0].numel()
    assert float(conv.std()) == pytest.approx((2 / fan_in) ** 0.5, rel=0.02)
    assert float(model.classifier.fc.weight.std()) == pytest.approx((2 / 256) ** 0.5, rel=0.02)
    bn = model.branches[1].stages[0][1].bn0.weight
    assert 0 <= float(bn.min()) < 0.05 and 0.95 < float(bn.max()) < 1
    assert float(bn.mean()) == pytest.approx(0.5, abs=0.05)
    for name, parameter in model.named_parameters():
        if name.endswith("bias"):
            assert parameter.abs().max() == 0
    assert all(m.bias is None for m in model.modules() if isinstance(m, torch.nn.Conv2d))


def test_shortcut_takes_the_first_activation(wrn):
    """Where channels change, a negative input beyond the BN-ReLU reaches nothing."""
    block = wrn.wide_resnet.Block(2, 4, 2, 0.0).eval()
    torch.nn.init.ones_(block.bn0.weight)
    images = -torch.rand(1, 2, 4, 4) - 0.1
    assert block(images).abs().max() == 0
    same = wrn.wide_resnet.Block(2, 2, 1, 0.0).eval()
    torch.nn.init.ones_(same.bn0.weight)
    assert torch.equal(same(images), images)


def test_dropout_sits_in_every_block(wrn):
    model = wrn.wide_resnet.WideResNet(10, 1, 10, dropout=0.3)
    dropouts = [m for m in model.modules() if isinstance(m, torch.nn.Dropout)]
    blocks = [m for m in model.modules() if isinstance(m, wrn.wide_resnet.Block)]
    assert len(dropouts) == len(blocks) == 6
    assert {m.p for m in dropouts} == {0.3}
    assert not any(
        isinstance(m, torch.nn.Dropout) for m in wrn.wide_resnet.WideResNet(10, 1, 10).modules()
    )
