"""Helpers of the tests of imagenet/: small networks under the names of large ones, faults."""

import resource
from contextlib import contextmanager
from math import gcd

from torch import nn
from torchvision.models.resnet import BasicBlock


class SmallBlock(BasicBlock):
    """A BasicBlock of grouped convolutions, which have few weights."""

    def __init__(self, in_channels, planes, stride=1, downsample=None, *widths, **options):
        nn.Module.__init__(self)
        groups = gcd(in_channels, planes)
        self.conv1 = nn.Conv2d(in_channels, planes, 3, stride, 1, groups=groups, bias=False)
        self.bn1, self.relu = nn.BatchNorm2d(planes), nn.ReLU(inplace=True)
        self.conv2 = nn.Conv2d(planes, planes, 3, 1, 1, groups=groups, bias=False)
        self.bn2, self.downsample = nn.BatchNorm2d(planes), downsample


def shrink(imagenet, patch) -> None:
    """Make `resnet50` small, of one block per layer, and the branches of `resnet18`."""
    resnet = imagenet.resnet
    stage = resnet.Stage(1, 8)
    branches = (resnet.BranchSpec(2, (stage, stage)), resnet.BranchSpec(3, (stage,)))
    small = resnet.NetworkConfig(SmallBlock, (1, 1, 1, 1), branches)
    resnet18 = resnet.NETWORKS["resnet18"]._replace(branches=branches)
    for name, config in (("resnet50", small), ("resnet18", resnet18)):
        patch.setitem(resnet.NETWORKS, name, config)


def vary_norms(model: nn.Module) -> nn.Module:
    """Give batch normalization weights and statistics as after training."""
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            for tensor in (module.bias, module.running_mean):
                nn.init.normal_(tensor, std=0.1)
            for tensor in (module.weight, module.running_var):
                nn.init.uniform_(tensor, 0.5, 1.5)
    return model.eval()


def refusal(imagenet, function, *arguments, **options) -> str:
    """Call a function, which must raise `UserError`; return its message, which is one line."""
    try:
        function(*arguments, **options)
    except imagenet.command_line.UserError as error:
        assert "\n" not in str(error)
        return str(error)
    raise AssertionError("no UserError")


@contextmanager
def full_disk(free_bytes: int = 50_000):
    """Let this process write no more than so many bytes to a file, as on a full disk."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (free_bytes, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
