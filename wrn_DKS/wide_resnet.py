"""Wide residual networks with the auxiliary branches of Deeply-supervised Knowledge Synergy.

WRN-d-k: a 3x3 stem, three groups of n = (d - 4) / 6 pre-activation blocks, a classifier. Two
branches leave it, one after each of the first two groups; they exist for training only.
"""

from typing import NamedTuple

import torch.nn.functional as F
from torch import Tensor, nn

DROPOUT = 0.3  # the released code's, where dropout is asked for


class Block(nn.Module):
    """BN-ReLU-conv3x3(stride)-BN-ReLU-[dropout]-conv3x3, added to the shortcut.

    Where the channels change, the shortcut is a 1x1 convolution of the first activation, as in
    the released code; elsewhere it is the block's input itself.
    """

    def __init__(self, in_channels: int, out_channels: int, stride: int, dropout: float):
        super().__init__()
        self.bn0 = nn.BatchNorm2d(in_channels)
        self.conv0 = nn.Conv2d(in_channels, out_channels, 3, stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(out_channels)
        self.conv1 = nn.Conv2d(out_channels, out_channels, 3, padding=1, bias=False)
        self.shortcut = None
        if in_channels != out_channels:
            self.shortcut = nn.Conv2d(in_channels, out_channels, 1, stride, bias=False)
        elif stride != 1:
            raise ValueError(f"a stride of {stride} needs the channels to change")
        self.dropout = nn.Dropout(dropout) if dropout else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        """(B, in_channels, H, W) to (B, out_channels, H / stride, W / stride)."""
        activation = F.relu(self.bn0(x), inplace=True)
        residual = self.conv0(activation)
        residual = self.dropout(F.relu(self.bn1(residual), inplace=True))
        residual = self.conv1(residual)
        return residual + (x if self.shortcut is None else self.shortcut(activation))


def stage(
    in_channels: int, out_channels: int, blocks: int, stride: int, dropout: float
) -> nn.Sequential:
    """Blocks at one resolution, the first of which changes channels and size."""
    return nn.Sequential(
        Block(in_channels, out_channels, stride, dropout),
        *(Block(out_channels, out_channels, 1, dropout) for _ in range(blocks - 1)),
    )


class Classifier(nn.Module):
    """BN-ReLU-global average pooling-linear: (B, C, H, W) to logits (B, K)."""

    def __init__(self, in_channels: int, num_classes: int):
        super().__init__()
        self.bn = nn.BatchNorm2d(in_channels)
        self.fc = nn.Linear(in_channels, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(F.relu(self.bn(x), inplace=True).mean((2, 3)))


class BranchRow(NamedTuple):
    """Where a branch leaves the backbone, and the (channels, blocks) of each of its stages."""

    group: int  # index of the group whose output it takes
    stages: tuple[tuple[int, int], ...]  # each stage halves the resolution


def branch_table(depth: int, width: float) -> tuple[BranchRow, ...]:
    """The branches of the released code, from shallow to deep.

    One departure: the released n // 2 is 0 at depth 10, where its forward fails; here it is 1.
    """
    n = blocks_per_group(depth)
    _, medium, wide = group_channels(width)
    return (
        BranchRow(group=0, stages=((medium, n), (wide, max(1, n // 2)))),
        BranchRow(group=1, stages=((2 * wide, n),)),
    )


class Branch(nn.Module):
    """An auxiliary branch: its stages and its classifier."""

    def __init__(
        self,
        in_channels: int,
        stages: tuple[tuple[int, int], ...],
        num_classes: int,
        dropout: float = 0.0,
    ):
        super().__init__()
        self.stages = nn.Sequential()
        for out_channels, blocks in stages:
            self.stages.append(stage(in_channels, out_channels, blocks, 2, dropout))
            in_channels = out_channels
        self.classifier = Classifier(in_channels, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        """The output of a group, (B, in_channels, H, W), to logits (B, K)."""
        return self.classifier(self.stages(x))


class WideResNet(nn.Module):
    """WRN-`depth`-`width` for RGB images, with or without the auxiliary branches.

    Args:
        depth: 6n + 4, n blocks a group.
        width: factor on the groups' 16, 32 and 64 channels; need not be whole.
        num_classes: K.
        dropout: probability of dropping an activation between the convolutions of each block,
            the branches' too.
        branches: whether to build the branches. The same random seed gives the same backbone
            either way.

    Raises:
        ValueError: the depth is not 6n + 4, or the width leaves no channel.
    """

    def __init__(
        self,
        depth: int,
        width: float,
        num_classes: int,
        dropout: float = 0.0,
        branches: bool = True,
    ):
        super().__init__()
        blocks, channels = blocks_per_group(depth), group_channels(width)
        self.stem = nn.Conv2d(3, 16, 3, padding=1, bias=False)
        self.groups = nn.ModuleList()
        for i, out_channels in enumerate(channels):
            in_channels = channels[i - 1] if i else 16
            stride = 2 if i else 1
            self.groups.append(stage(in_channels, out_channels, blocks, stride, dropout))
        self.classifier = Classifier(channels[-1], num_classes)
        self.apply(initialize)
        self._rows = branch_table(depth, width) if branches else ()
        self.branches = nn.ModuleList(
            Branch(channels[row.group], row.stages, num_classes, dropout) for row in self._rows
        )
        self.branches.apply(initialize)

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        """Images (B, 3, H, W) to logits (B, K): the backbone's, then each branch's.

        H and W are multiples of 4. The branches' logits go from shallow to deep; a network
        without branches returns a tuple of one.
        """
        x = self.stem(images)
        outputs = []
        for group in self.groups:
            x = group(x)
            outputs.append(x)
        logits = [self.classifier(x)]
        for row, branch in zip(self._rows, self.branches, strict=True):
            logits.append(branch(outputs[row.group]))
        return tuple(logits)

    def backbone_state(self) -> dict[str, Tensor]:
        """The state dict of the same network built without branches."""
        state = self.state_dict()
        return {name: state[name] for name in state if not name.startswith("branches.")}


def blocks_per_group(depth: int) -> int:
    """n of depth = 6n + 4."""
    if depth < 10 or (depth - 4) % 6:
        raise ValueError(f"depth {depth}: expected 6n + 4, such as 10, 16, 22, 28 or 40")
    return (depth - 4) // 6


def group_channels(width: float) -> tuple[int, int, int]:
    """The channels of the three groups, rounded down as in the released code."""
    channels = (int(16 * width), int(32 * width), int(64 * width))
    if channels[0] < 1:
        raise ValueError(f"width {width} leaves no channel: expected at least {1 / 16}")
    return channels


def initialize(module: nn.Module) -> None:
    """Draw a layer's parameters as the released code does.

    Convolutions and linear layers: Kaiming normal, fan-in, gain sqrt(2); biases 0. Batch
    normalisation: weight uniform in [0, 1), bias 0.
    """
    if isinstance(module, nn.Conv2d | nn.Linear):
        nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
    elif isinstance(module, nn.BatchNorm2d):
        nn.init.uniform_(module.weight)
    if isinstance(module, nn.Linear | nn.BatchNorm2d):
        nn.init.zeros_(module.bias)
