"""torchvision's ResNets with the auxiliary branches of Deeply-supervised Knowledge Synergy.

Where the branches come from: the ImageNet training code of DKS (CVPR 2019) was never released.
These are the branches of its direct successor's release, DHM (CVPR 2020, d-li14/DHM), whose
branches for wide residual networks equal the released DKS ones in place, depth and width.
"""

from itertools import pairwise
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.utils import fuse_conv_bn_eval
from torchvision.models.resnet import BasicBlock, Bottleneck, ResNet, conv1x1


class Stage(NamedTuple):
    """Residual blocks at one resolution; the first halves it."""

    blocks: int
    planes: int  # output channels of a BasicBlock, a quarter of a Bottleneck's


class Network(NamedTuple):
    """A row of the table of networks."""

    block: type[BasicBlock] | type[Bottleneck]
    blocks: tuple[int, int, int, int]  # of layer1 to layer4, as in torchvision
    shallow: tuple[Stage, ...]  # the branch that grows from layer2 (conv3_x)
    deep: tuple[Stage, ...]  # the branch that grows from layer3 (conv4_x)


NETWORKS = {
    "resnet18": Network(
        BasicBlock, (2, 2, 2, 2), shallow=(Stage(1, 256), Stage(2, 512)), deep=(Stage(2, 1024),)
    ),
    "resnet50": Network(
        Bottleneck, (3, 4, 6, 3), shallow=(Stage(3, 256), Stage(2, 512)), deep=(Stage(3, 1024),)
    ),
    "resnet152": Network(
        Bottleneck, (3, 8, 36, 3), shallow=(Stage(18, 256), Stage(2, 512)), deep=(Stage(3, 1024),)
    ),
}


class DKSResNet(ResNet):
    """A ResNet whose parameters have torchvision's names, plus `branches.0` and `branches.1`.

    With the same seed the backbone's initial weights are the same with and without branches,
    and equal to torchvision's.
    """

    def __init__(self, network: Network, branches: bool = True, num_classes: int = 1000):
        super().__init__(network.block, list(network.blocks), num_classes)
        block = network.block
        sources = ((128, network.shallow), (256, network.deep)) if branches else ()
        # After the backbone has drawn its random numbers, so that it draws the same ones.
        self.branches = nn.ModuleList(
            Branch(block, planes * block.expansion, stages, num_classes)
            for planes, stages in sources
        )

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        """Classify images (N, 3, H, W).

        Returns:
            Logits (N, K): the backbone's, then the shallow and the deep branch's. Without
            branches, the backbone's alone, in a tuple too.
        """
        x = self.maxpool(self.relu(self.bn1(self.conv1(images))))
        shallow = self.layer2(self.layer1(x))
        deep = self.layer3(shallow)
        x = self.avgpool(self.layer4(deep)).flatten(1)
        # zip ends at once where there are no branches.
        sides = zip(self.branches, (shallow, deep), strict=False)
        return self.fc(x), *(branch(features) for branch, features in sides)


class Branch(nn.Module):
    """An auxiliary classifier: stages of residual blocks, average pooling, a linear layer."""

    def __init__(
        self,
        block: type[BasicBlock] | type[Bottleneck],
        in_channels: int,
        stages: tuple[Stage, ...],
        num_classes: int,
    ):
        super().__init__()
        inputs = [in_channels] + [stage.planes * block.expansion for stage in stages]
        self.stages = nn.Sequential(
            *(make_stage(block, n, stage) for n, stage in zip(inputs, stages, strict=False))
        )
        self.classifier = nn.Linear(inputs[-1], num_classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):  # as torchvision does in the backbone
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, features: Tensor) -> Tensor:
        """Logits (N, K) from the backbone's features (N, in_channels, H, W)."""
        return self.classifier(self.stages(features).mean((2, 3)))


def make_stage(
    block: type[BasicBlock] | type[Bottleneck], in_channels: int, stage: Stage
) -> nn.Sequential:
    out_channels = stage.planes * block.expansion
    shortcut = nn.Sequential(conv1x1(in_channels, out_channels, 2), nn.BatchNorm2d(out_channels))
    first = block(in_channels, stage.planes, stride=2, downsample=shortcut)
    return nn.Sequential(
        first, *(block(out_channels, stage.planes) for _ in range(stage.blocks - 1))
    )


def build(arch: str, branches: bool = True, num_classes: int = 1000) -> DKSResNet:
    """The network of that row of `NETWORKS`, freshly initialised."""
    return DKSResNet(NETWORKS[arch], branches, num_classes)


@torch.no_grad()
def fold_batch_norms(model: DKSResNet) -> None:
    """Multiply every batch normalisation into the convolution before it, for evaluation alone.

    In evaluation mode it is a fixed scale and shift of the convolution's outputs. In ResNets each
    is registered right after the convolution that it follows.
    """
    for module in list(model.modules()):
        for (conv_name, conv), (norm_name, norm) in pairwise(list(module.named_children())):
            if isinstance(norm, nn.BatchNorm2d):
                setattr(module, conv_name, fuse_conv_bn_eval(conv, norm))
                setattr(module, norm_name, nn.Identity())


def backbone_weights(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """The part of a state dict that torchvision's ResNet has."""
    return {name: value for name, value in state.items() if not name.startswith("branches.")}
