"""The wide residual network: cost, shapes, branches and initialization."""

import pytest
import torch


def test_cost_of_wrn_28_10(wrn):
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
def test_forward_returns_a_tuple_with_the_backbone_first(wrn, size):
    images = torch.randn(2, 3, size, size)
    model = wrn.wide_resnet.WideResNet(10, 1, 7).eval()
    plain = wrn.wide_resnet.WideResNet(10, 1, 7, branches=False).eval()
    plain.load_state_dict(model.backbone_state_dict())
    with torch.no_grad():
        logits = model(images)
        assert [tuple(each.shape) for each in logits] == [(2, 7)] * 3
        (backbone_logits,) = plain(images)
    assert torch.equal(backbone_logits, logits[0])


def test_branches_have_the_released_stages(wrn):
    """At depth 10, where the released code fails, each stage has one block."""
    specs = wrn.wide_resnet.branch_specs
    assert specs(28, 2) == ((0, ((64, 4), (128, 2))), (1, ((256, 4),)))
    assert specs(10, 1) == ((0, ((32, 1), (64, 1))), (1, ((128, 1),)))
    model = wrn.wide_resnet.WideResNet(28, 2, 5)
    for spec, branch in zip(specs(28, 2), model.branches, strict=True):
        built = [(stage[-1].conv1.out_channels, len(stage)) for stage in branch.stages]
        assert tuple(built) == spec.stages


def test_fractional_width_is_rounded_down(wrn):
    assert wrn.wide_resnet.group_channels(0.55) == (8, 17, 35)
    assert wrn.wide_resnet.branch_specs(10, 0.55)[1].stages == ((70, 1),)
    assert len(wrn.wide_resnet.WideResNet(10, 0.55, 3)(torch.randn(2, 3, 8, 8))) == 3


@pytest.mark.parametrize(("depth", "width"), [(9, 1), (4, 1), (27, 1), (16, 0.05), (16, 0)])
def test_invalid_depth_and_width_are_errors(wrn, depth, width):
    with pytest.raises(ValueError, match="expected"):
        wrn.wide_resnet.WideResNet(depth, width, 10)


def test_seed_gives_the_same_backbone_with_and_without_branches(wrn):
    torch.manual_seed(3)
    model = wrn.wide_resnet.WideResNet(10, 1, 10)
    torch.manual_seed(3)
    plain = wrn.wide_resnet.WideResNet(10, 1, 10, branches=False)
    backbone, expected = model.backbone_state_dict(), plain.state_dict()
    assert backbone.keys() == expected.keys()
    assert all(torch.equal(backbone[name], expected[name]) for name in expected)


@torch.no_grad()
def test_initialization(wrn):
    """Kaiming normal with fan-in and gain sqrt(2); batch norm uniform in [0, 1); biases 0."""
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


def test_shortcut_convolves_the_first_activation(wrn):
    """Negative inputs, which the first ReLU removes, must have no effect if channels change."""
    block = wrn.wide_resnet.Block(2, 4, 2, 0.0).eval()
    torch.nn.init.ones_(block.bn0.weight)
    images = -torch.rand(1, 2, 4, 4) - 0.1
    assert block(images).abs().max() == 0
    identity = wrn.wide_resnet.Block(2, 2, 1, 0.0).eval()
    torch.nn.init.ones_(identity.bn0.weight)
    assert torch.equal(identity(images), images)


def test_every_block_has_dropout(wrn):
    model = wrn.wide_resnet.WideResNet(10, 1, 10, dropout=0.3)
    dropouts = [m for m in model.modules() if isinstance(m, torch.nn.Dropout)]
    blocks = [m for m in model.modules() if isinstance(m, wrn.wide_resnet.Block)]
    assert len(dropouts) == len(blocks) == 6
    assert {m.p for m in dropouts} == {0.3}
    assert not any(
        isinstance(m, torch.nn.Dropout) for m in wrn.wide_resnet.WideResNet(10, 1, 10).modules()
    )
