"""torchvision's ResNets with the auxiliary branches of Deeply-supervised Knowledge Synergy.

The ImageNet training code of DKS (CVPR 2019) was never released. The branches follow the release
of its direct successor, DHM (CVPR 2020, d-li14/DHM). DHM's branches for wide residual networks
match the released DKS branches in position, depth and width.
"""

from typing import NamedTuple

from torch import Tensor, nn
from torchvision.models.resnet import BasicBlock, Bottleneck, ResNet, conv1x1


class Stage(NamedTuple):
    """Residual blocks at one resolution. The first block halves the input's resolution."""

    blocks: int
    planes: int  # output channels of a BasicBlock, a quarter of a Bottleneck's


class BranchSpec(NamedTuple):
    """Where a branch is attached, and its stages."""

    layer: int  # of the backbone: 2 attaches it to the output of layer2 (conv3_x)
    stages: tuple[Stage, ...]


class NetworkConfig(NamedTuple):
    """Blocks of a backbone, and its branches from shallow to deep, of the same kind of block."""

    block: type[BasicBlock] | type[Bottleneck]
    blocks: tuple[int, int, int, int]  # in layer1 to layer4, as in torchvision
    branches: tuple[BranchSpec, ...]


def two_branches(shallow: int, deep: int) -> tuple[BranchSpec, BranchSpec]:
    """Return DHM's branches: after layer2, `shallow` blocks and two more; after layer3, `deep`."""
    return (
        BranchSpec(2, (Stage(shallow, 256), Stage(2, 512))),
        BranchSpec(3, (Stage(deep, 1024),)),
    )


NETWORKS = {
    "resnet18": NetworkConfig(BasicBlock, (2, 2, 2, 2), two_branches(1, 2)),
    "resnet34": NetworkConfig(BasicBlock, (3, 4, 6, 3), two_branches(3, 3)),
    "resnet50": NetworkConfig(Bottleneck, (3, 4, 6, 3), two_branches(3, 3)),
    "resnet101": NetworkConfig(Bottleneck, (3, 4, 23, 3), two_branches(12, 3)),
    "resnet152": NetworkConfig(Bottleneck, (3, 8, 36, 3), two_branches(18, 3)),
}


class DKSResNet(ResNet):
    """A ResNet with torchvision's parameter names, plus `branches.0`, `branches.1`, and so on.

    For a given seed, the backbone's initial weights equal torchvision's, with or without branches.

    Args:
        config: blocks of the network; a value of `NETWORKS`.
        branches: add the auxiliary branches.
        num_classes: number of classes K.
    """

    def __init__(self, config: NetworkConfig, branches: bool = True, num_classes: int = 1000):
        super().__init__(config.block, list(config.blocks), num_classes)
        self._specs = config.branches if branches else ()
        # Built after the backbone, whose random initialization must not depend on them.
        self.branches = nn.ModuleList(Branch(config, spec, num_classes) for spec in self._specs)

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        """Classify images (B, 3, H, W).

        Returns:
            Logits (B, K) of the backbone, then of the branches from shallow to deep. Without
            branches, a 1-tuple with the backbone's logits.
        """
        x = self.maxpool(self.relu(self.bn1(self.conv1(images))))
        features = []  # of layer1 to layer4
        for layer in (self.layer1, self.layer2, self.layer3, self.layer4):
            x = layer(x)
            features.append(x)
        logits = [self.fc(self.avgpool(x).flatten(1))]
        for spec, branch in zip(self._specs, self.branches, strict=True):
            logits.append(branch(features[spec.layer - 1]))
        return tuple(logits)


class Branch(nn.Module):
    """An auxiliary classifier: stages of residual blocks, average pooling, a linear layer.

    Args:
        config: of the network, for the kind of block.
        spec: where the branch is attached, and its stages.
        num_classes: number of classes K.
    """

    def __init__(self, config: NetworkConfig, spec: BranchSpec, num_classes: int):
        super().__init__()
        planes = [64 * 2 ** (spec.layer - 1), *(stage.planes for stage in spec.stages)]
        channels = [config.block.expansion * each for each in planes]
        self.stages = nn.Sequential(
            *(make_stage(config, n, stage) for n, stage in zip(channels, spec.stages, strict=False))
        )
        self.classifier = nn.Linear(channels[-1], num_classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):  # as torchvision does in the backbone
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, features: Tensor) -> Tensor:
        """Compute logits (B, K) from the backbone's features (B, C, H, W)."""
        return self.classifier(self.stages(features).mean((2, 3)))


def make_stage(config: NetworkConfig, in_channels: int, stage: Stage) -> nn.Sequential:
    """Build a stage that starts with a block of stride 2 and a projection shortcut."""
    out_channels = stage.planes * config.block.expansion
    shortcut = nn.Sequential(conv1x1(in_channels, out_channels, 2), nn.BatchNorm2d(out_channels))
    first = config.block(in_channels, stage.planes, stride=2, downsample=shortcut)
    others = (config.block(out_channels, stage.planes) for _ in range(stage.blocks - 1))
    return nn.Sequential(first, *others)


def build(arch: str, branches: bool = True, num_classes: int = 1000) -> DKSResNet:
    """Build a network of `NETWORKS` with random weights."""
    return DKSResNet(NETWORKS[arch], branches, num_classes)
