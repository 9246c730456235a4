"""ResNets with branches: sizes, weights and logits."""

import functools
from functools import partial

import pytest
import torch
import torchvision
from conftest import ROOT


def conv(in_channels: int, out_channels: int, kernel: int) -> int:
    return in_channels * out_channels * kernel**2 + 2 * out_channels  # with batch normalization


def basic_block(in_channels: int, planes: int) -> int:
    shortcut = conv(in_channels, planes, 1) if in_channels != planes else 0
    return conv(in_channels, planes, 3) + conv(planes, planes, 3) + shortcut


def bottleneck(in_channels: int, planes: int, width: int = 1, groups: int = 1) -> int:
    """The inner convolutions have `width` times as many channels as `planes`."""
    inner, outer = width * planes, 4 * planes
    shortcut = conv(in_channels, outer, 1) if in_channels != outer else 0
    middle = inner * inner // groups * 9 + 2 * inner
    return conv(in_channels, inner, 1) + middle + conv(inner, outer, 1) + shortcut


def resnext_bottleneck(in_channels: int, planes: int) -> int:
    return bottleneck(in_channels, planes, width=2, groups=32)


def wide_bottleneck(in_channels: int, planes: int) -> int:
    return bottleneck(in_channels, planes, width=2)


def stage(block, expansion: int, in_channels: int, planes: int, count: int) -> int:
    width = expansion * planes
    return block(in_channels, planes) + (count - 1) * block(width, planes)


@pytest.mark.parametrize(
    ("arch", "block", "expansion", "shallow", "deep"),
    [
        ("resnet18", basic_block, 1, ((256, 1), (512, 2)), (1024, 2)),
        ("resnet34", basic_block, 1, ((256, 3), (512, 2)), (1024, 3)),
        ("resnet50", bottleneck, 4, ((256, 3), (512, 2)), (1024, 3)),
        ("resnet101", bottleneck, 4, ((256, 12), (512, 2)), (1024, 3)),
        ("resnext50_32x4d", resnext_bottleneck, 4, ((256, 3), (512, 2)), (1024, 3)),
        ("wide_resnet50_2", wide_bottleneck, 4, ((256, 3), (512, 2)), (1024, 3)),
        ("resnet152", bottleneck, 4, ((256, 18), (512, 2)), (1024, 3)),
    ],
)
def test_branches_have_the_configured_size(imagenet, arch, block, expansion, shallow, deep):
    (first, n1), (second, n2) = shallow
    e = expansion
    expected = (
        stage(block, e, 128 * e, first, n1) + stage(block, e, first * e, second, n2),
        stage(block, e, 256 * e, *deep),
    )
    with torch.device("meta"):
        model = imagenet.resnet.build(arch, num_classes=10)
    for branch, blocks, planes in zip(model.branches, expected, (second, deep[0]), strict=True):
        classifier = (planes * e + 1) * 10
        assert sum(p.numel() for p in branch.parameters()) == blocks + classifier


@functools.cache
def cost(imagenet, arch, branches):
    return imagenet.metrics.cost(partial(imagenet.resnet.build, arch, branches), 224)


def test_documented_sizes(imagenet):
    """The columns are "11.69 M, 1.81 G": parameters and multiply-adds."""
    page = (ROOT / "docs" / "imagenet.md").read_text()
    for arch in imagenet.resnet.NETWORKS:
        cells = page.split(f"| `{arch}` |")[1].split("\n")[0].split("|")
        for branches, cell in ((False, cells[2]), (True, cells[3])):
            size = cost(imagenet, arch, branches)
            expected = f"{size.parameters / 1e6:.2f} M, {size.multiply_adds / 1e9:.2f} G"
            assert cell.strip() == expected


def test_without_branches_they_equal_torchvisions_networks(imagenet):
    for arch in imagenet.resnet.NETWORKS:

        def plain(arch=arch):
            return getattr(torchvision.models, arch)()

        def ours(arch=arch):
            return imagenet.resnet.build(arch, branches=False)

        assert cost(imagenet, arch, False) == imagenet.metrics.cost(plain, 224), arch
        with torch.device("meta"):
            expected, state_dict = plain().state_dict(), ours().state_dict()
        shapes = {k: v.shape for k, v in state_dict.items()}
        assert shapes == {k: v.shape for k, v in expected.items()}


def test_backbone_weights_and_logits_equal_torchvisions(imagenet):
    models = []
    for build in (
        lambda: torchvision.models.resnet18(num_classes=7),
        lambda: imagenet.resnet.build("resnet18", branches=False, num_classes=7),
        lambda: imagenet.resnet.build("resnet18", num_classes=7),
    ):
        torch.manual_seed(3)
        models.append(build().eval())
    plain, bare, full = models
    for name, value in plain.state_dict().items():
        assert torch.equal(value, bare.state_dict()[name])
        assert torch.equal(value, full.state_dict()[name])
    plain.load_state_dict(imagenet.resnet.backbone_state_dict(full.state_dict()), strict=True)
    images = torch.randn(2, 3, 65, 48)
    with torch.no_grad():
        expected, one, three = plain(images), bare(images), full(images)
    assert len(one) == 1 and len(three) == 3
    assert torch.equal(one[0], expected) and torch.equal(three[0], expected)
    assert all(logits.shape == (2, 7) for logits in three)


def test_each_branch_is_attached_to_its_layer(imagenet):
    """A branch's gradients reach the layers up to the one it is attached to, and no others."""
    model = imagenet.resnet.build("resnet18", num_classes=5)
    logits = model(torch.randn(2, 3, 64, 64))
    for index, last in ((1, "layer2"), (2, "layer3"), (0, "layer4")):
        model.zero_grad()
        logits[index].sum().backward(retain_graph=True)
        layers = [f"layer{i}" for i in range(1, 5)]
        reached = [n for n in layers if getattr(model, n)[0].conv1.weight.grad is not None]
        assert reached[-1] == last
        assert all(p.grad is not None for p in model.branches[index - 1].parameters()) or not index


def test_branches_are_initialized_as_in_torchvision(imagenet):
    torch.manual_seed(0)
    deep = imagenet.resnet.build("resnet18").branches[1]
    weight = deep.stages[0][0].conv1.weight  # fan-out: 1024 * 9, fan-in: 256 * 9
    assert weight.std().item() == pytest.approx((2 / (1024 * 9)) ** 0.5, rel=0.01)
    assert (deep.stages[0][0].bn2.weight == 1).all()


@pytest.mark.parametrize("arch", ["resnet18", "resnet50"])
def test_folding_batch_norms_keeps_the_logits(imagenet, arch):
    """With weights and statistics that differ from the initial ones; one block per layer."""
    torch.manual_seed(0)
    config = imagenet.resnet.NETWORKS[arch]._replace(blocks=(1, 1, 1, 1))
    model = imagenet.resnet.DKSResNet(config, num_classes=10).eval()
    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            for tensor in (module.weight, module.bias, module.running_mean):
                torch.nn.init.normal_(tensor, 0.5, 0.2)
            torch.nn.init.uniform_(module.running_var, 0.5, 2)
    model.double()
    images = torch.randn(2, 3, 40, 40, dtype=torch.float64)
    with torch.no_grad():
        before = model(images)
        imagenet.resnet.fold_batch_norms(model)
        assert not any(isinstance(m, torch.nn.BatchNorm2d) for m in model.modules())
        for expected, logits in zip(before, model(images), strict=True):
            torch.testing.assert_close(logits, expected, rtol=1e-9, atol=1e-12)


def test_a_branch_is_moved_by_the_table_alone(imagenet):
    resnet = imagenet.resnet
    row = resnet.NETWORKS["resnet18"]
    moved = row._replace(branches=(resnet.BranchSpec(1, (resnet.Stage(1, 8),)), *row.branches))
    images = torch.zeros(2, 3, 64, 64)
    logits = resnet.DKSResNet(moved, num_classes=5).eval()(images)
    assert [each.shape for each in logits] == [(2, 5)] * 4
