"""imagenet/resnet.py: torchvision's ResNets, with DHM's branches."""

import pytest
import torch
import torchvision
from small_imagenet import shrink, vary_norms
from torch import nn

# Blocks of the stages of DHM's branches: two of the one after layer2, one of that after layer3.
DHM = dict.fromkeys(("resnet34", "resnet50"), (3, 2, 3))
DHM |= {"resnet18": (1, 2, 2), "resnet101": (12, 2, 3), "resnet152": (18, 2, 3)}


@pytest.mark.parametrize("arch", DHM)
def test_every_network_is_torchvision_s_with_dhm_s_branches(imagenet, arch):
    """The branches are built here as DHM builds them, with functions of torchvision's network."""
    assert DHM.keys() == imagenet.resnet.NETWORKS.keys()
    with torch.device("meta"):
        plain = torchvision.models.get_model(arch, num_classes=10)
        bare, full = (imagenet.resnet.build(arch, branches, 10) for branches in (False, True))
        backbone = {k: v for k, v in full.state_dict().items() if not k.startswith("branches.")}
        for state in (bare.state_dict(), backbone):
            shapes = {name: value.shape for name, value in state.items()}
            assert shapes == {name: value.shape for name, value in plain.state_dict().items()}
        block, expected = type(plain.layer1[0]), []
        n, m, k = DHM[arch]
        for planes, stages in ((128, ((256, n), (512, m))), (256, ((1024, k),))):
            plain.inplanes = planes * block.expansion
            stages = [plain._make_layer(block, *each, stride=2) for each in stages]
            expected.append((nn.Sequential(*stages), nn.Linear(plain.inplanes, 10)))
        found = [(branch.stages, branch.classifier) for branch in full.branches]
        assert repr(found) == repr(expected)


def test_initial_weights_and_logits_of_the_backbone_are_torchvision_s(imagenet):
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
    images = torch.randn(2, 3, 65, 48)
    with torch.no_grad():
        expected, one, three = plain(images), bare(images), full(images)
    assert len(one) == 1 and [each.shape for each in three] == [(2, 7)] * 3
    assert torch.equal(one[0], expected) and torch.equal(three[0], expected)
    deep = full.branches[1].stages[0][0].conv1.weight  # as torchvision: by the fan-out, 1024 * 9
    assert deep.std().item() == pytest.approx((2 / (1024 * 9)) ** 0.5, rel=0.01)


@pytest.fixture
def short(imagenet, monkeypatch):
    """A small network of three classes, as after training."""
    shrink(imagenet, monkeypatch)
    return vary_norms(imagenet.resnet.build("resnet50", num_classes=3))


def test_each_branch_is_attached_to_its_layer(short):
    """Its gradient reaches the layers up to the one that it is attached to, and no others."""
    logits = short(torch.randn(1, 3, 40, 40))
    for index, last in ((1, "layer2"), (2, "layer3"), (0, "layer4")):
        short.zero_grad()
        logits[index].sum().backward(retain_graph=True)
        reached = {n.split(".")[0] for n, p in short.named_parameters() if p.grad is not None}
        assert max(name for name in reached if name.startswith("layer")) == last
        own = [p.grad is not None for p in short.branches[index - 1].parameters()]
        assert all(own) or index == 0
