"""CIFAR residual networks (He et al., 2016) with the auxiliary branches of DKS.

ResNet-d has a 3x3 stem, three groups of n = (d - 2) / 6 basic blocks with 16, 32 and 64 channels,
and a classifier. For training, two auxiliary branches are attached, one to each of the first two
groups. The authors' DKS code for these networks was not released: the branches are those of their
next release, DHM (Li and Chen, CVPR 2020; d-li14/DHM).
"""

from typing import NamedTuple

import torch.nn.functional as F
from torch import Tensor, nn

CHANNELS = (16, 32, 64)  # of the three groups


class Block(nn.Module):
    """conv3x3(stride)-BN-ReLU-conv3x3-BN, added to the shortcut, then ReLU.

    The shortcut has no parameters (option A): where the block has stride 2, it is a 2x2 average
    pooling, and the new channels are zero.
    """

    def __init__(self, in_channels: int, out_channels: int, stride: int):
        super().__init__()
        self.conv0 = nn.Conv2d(in_channels, out_channels, 3, stride, padding=1, bias=False)
        self.bn0 = nn.BatchNorm2d(out_channels)
        self.conv1 = nn.Conv2d(out_channels, out_channels, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(out_channels)
        self.stride = stride
        self.new_channels = out_channels - in_channels

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, in_channels, H, W) to (B, out_channels, H / stride, W / stride)."""
        residual = F.relu(self.bn0(self.conv0(x)), inplace=True)
        residual = self.bn1(self.conv1(residual))
        if self.stride > 1:
            x = F.avg_pool2d(x, self.stride, ceil_mode=True)  # as the convolution rounds
        if self.new_channels:
            x = F.pad(x, (0, 0, 0, 0, 0, self.new_channels))
        return F.relu(residual + x, inplace=True)


def make_stage(in_channels: int, out_channels: int, blocks: int, stride: int) -> nn.Sequential:
    """Build the blocks of one resolution; the first block changes channels and resolution."""
    return nn.Sequential(
        Block(in_channels, out_channels, stride),
        *(Block(out_channels, out_channels, 1) for _ in range(blocks - 1)),
    )


class Classifier(nn.Module):
    """Global average pooling-linear, from (B, C, H, W) to logits (B, K)."""

    def __init__(self, in_channels: int, num_classes: int):
        super().__init__()
        self.fc = nn.Linear(in_channels, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(x.mean((2, 3)))


class BranchSpec(NamedTuple):
    """Where a branch is attached to the backbone, and its stages."""

    group: int  # index of the group whose output is the branch's input
    stages: tuple[tuple[int, int], ...]  # (channels, blocks); each stage halves the resolution


def branch_specs(depth: int) -> tuple[BranchSpec, ...]:
    """Return the branches of DHM, from shallow to deep.

    DHM has ResNet-32 and ResNet-110. Other depths follow the rule of ResNet-32: n and n / 2
    blocks, rounded up, in the shallow branch and n blocks in the deep one.
    """
    n = blocks_per_group(depth)
    shallow = (9, 9) if depth == 110 else (n, (n + 1) // 2)
    return (
        BranchSpec(group=0, stages=((32, shallow[0]), (64, shallow[1]))),
        BranchSpec(group=1, stages=((128, n),)),
    )


class Branch(nn.Module):
    """An auxiliary branch: stages of residual blocks and a classifier."""

    def __init__(self, in_channels: int, spec: BranchSpec, num_classes: int):
        super().__init__()
        self.group, self.stages = spec.group, nn.Sequential()
        for out_channels, blocks in spec.stages:
            self.stages.append(make_stage(in_channels, out_channels, blocks, 2))
            in_channels = out_channels
        self.classifier = Classifier(in_channels, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        """Map the output of a group, (B, in_channels, H, W), to logits (B, K)."""
        return self.classifier(self.stages(x))


class ResNet(nn.Module):
    """ResNet-`depth` for small RGB images, with or without the auxiliary branches.

    Args:
        depth: 6n + 2, for n blocks per group.
        num_classes: number of classes K.
        branches: whether to build the auxiliary branches. The initial backbone is the same for
            the same random seed with and without branches.

    Raises:
        ValueError: the depth is not 6n + 2.
    """

    def __init__(self, depth: int, num_classes: int, branches: bool = True):
        super().__init__()
        blocks = blocks_per_group(depth)
        self.stem = nn.Conv2d(3, 16, 3, padding=1, bias=False)
        self.bn = nn.BatchNorm2d(16)
        self.groups = nn.ModuleList()
        for i, out_channels in enumerate(CHANNELS):
            in_channels = CHANNELS[i - 1] if i else 16
            self.groups.append(make_stage(in_channels, out_channels, blocks, 2 if i else 1))
        self.classifier = Classifier(CHANNELS[-1], num_classes)
        self.apply(initialize)
        specs = branch_specs(depth) if branches else ()
        self.branches = nn.ModuleList(Branch(CHANNELS[s.group], s, num_classes) for s in specs)
        self.branches.apply(initialize)

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        """Map images (B, 3, H, W) to the logits (B, K) of every classifier.

        The backbone's come first, then those of each branch from shallow to deep. Without
        branches, the tuple has length one.
        """
        x = F.relu(self.bn(self.stem(images)), inplace=True)
        outputs = []
        for group in self.groups:
            x = group(x)
            outputs.append(x)
        logits = [self.classifier(x)]
        logits += [branch(outputs[branch.group]) for branch in self.branches]
        return tuple(logits)


class PlainResNet(ResNet):
    """A ResNet that returns the backbone's logits (B, K) alone, for inference elsewhere."""

    def forward(self, images: Tensor) -> Tensor:
        return super().forward(images)[0]


def blocks_per_group(depth: int) -> int:
    """Return n for depth = 6n + 2."""
    if depth < 8 or (depth - 2) % 6:
        raise ValueError(f"depth {depth}: expected 6n + 2, such as 20, 32, 44, 56 or 110")
    return (depth - 2) // 6


def network_depth(state: dict[str, Tensor]) -> int:
    """Return the depth of the `ResNet` with this state dict."""
    return 6 * len({name.split(".")[2] for name in state if name.startswith("groups.0.")}) + 2


def initialize(module: nn.Module) -> None:
    """Initialize the parameters of a layer as in DHM.

    Convolutions: Kaiming normal (fan-out, gain sqrt(2)). Batch norm: weights 1, biases 0. Linear
    layers keep PyTorch's default.
    """
    if isinstance(module, nn.Conv2d):
        nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
