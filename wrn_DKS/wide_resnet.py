"""Wide residual networks with the auxiliary branches of Deeply-supervised Knowledge Synergy.

WRN-d-k has a 3x3 stem, three groups of n = (d - 4) / 6 pre-activation blocks, and a classifier.
For training, two auxiliary branches are attached, one to each of the first two groups.
"""

import re
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

DROPOUT = 0.3  # probability used by the released code with --dropout


class Block(nn.Module):
    """BN-ReLU-conv3x3(stride)-BN-ReLU-[dropout]-conv3x3, added to the shortcut.

    If the number of channels changes, the shortcut is a 1x1 convolution of the first activation,
    as in the released code. Otherwise it is the identity.
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
        self.dropout = nn.Dropout(dropout) if dropout else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, in_channels, H, W) to (B, out_channels, H / stride, W / stride)."""
        activation = F.relu(self.bn0(x), inplace=True)
        residual = self.conv0(activation)
        residual = self.dropout(F.relu(self.bn1(residual), inplace=True))
        residual = self.conv1(residual)
        return residual + (x if self.shortcut is None else self.shortcut(activation))


def make_stage(
    in_channels: int, out_channels: int, blocks: int, stride: int, dropout: float
) -> nn.Sequential:
    """Build the blocks of one resolution; the first block changes channels and resolution."""
    return nn.Sequential(
        Block(in_channels, out_channels, stride, dropout),
        *(Block(out_channels, out_channels, 1, dropout) for _ in range(blocks - 1)),
    )


class Classifier(nn.Module):
    """BN-ReLU-global average pooling-linear, from (B, C, H, W) to logits (B, K)."""

    def __init__(self, in_channels: int, num_classes: int):
        super().__init__()
        self.bn = nn.BatchNorm2d(in_channels)
        self.fc = nn.Linear(in_channels, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(F.relu(self.bn(x), inplace=True).mean((2, 3)))


class BranchSpec(NamedTuple):
    """Where a branch is attached to the backbone, and its stages."""

    group: int  # index of the group whose output is the branch's input
    stages: tuple[tuple[int, int], ...]  # (channels, blocks); each stage halves the resolution


def branch_specs(depth: int, width: float) -> tuple[BranchSpec, ...]:
    """Return the branches of the released code, from shallow to deep.

    One difference: for depth 10 the released n // 2 is 0 and its forward pass fails; here at
    least one block is used.
    """
    n = blocks_per_group(depth)
    _, medium, wide = group_channels(width)
    return (
        BranchSpec(group=0, stages=((medium, n), (wide, max(1, n // 2)))),
        BranchSpec(group=1, stages=((2 * wide, n),)),
    )


class Branch(nn.Module):
    """An auxiliary branch: stages of residual blocks and a classifier."""

    def __init__(self, in_channels: int, spec: BranchSpec, num_classes: int, dropout: float):
        super().__init__()
        self.group, self.stages = spec.group, nn.Sequential()
        for out_channels, blocks in spec.stages:
            self.stages.append(make_stage(in_channels, out_channels, blocks, 2, dropout))
            in_channels = out_channels
        self.classifier = Classifier(in_channels, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        """Map the output of a group, (B, in_channels, H, W), to logits (B, K)."""
        return self.classifier(self.stages(x))


class WideResNet(nn.Module):
    """WRN-`depth`-`width` for RGB images, with or without the auxiliary branches.

    Args:
        depth: 6n + 4, for n blocks per group.
        width: multiplier of the groups' 16, 32 and 64 channels; may be fractional.
        num_classes: number of classes K.
        dropout: dropout probability between the convolutions of each block, branches included.
        branches: whether to build the auxiliary branches. The initial backbone is the same for
            the same random seed with and without branches.

    Raises:
        ValueError: the depth is not 6n + 4, or the width is too small.
    """

    def __init__(
        self, depth: int, width: float, num_classes: int, dropout: float = 0, branches: bool = True
    ):
        super().__init__()
        blocks, channels = blocks_per_group(depth), group_channels(width)
        self.stem = nn.Conv2d(3, 16, 3, padding=1, bias=False)
        self.groups = nn.ModuleList()
        for i, out_channels in enumerate(channels):
            in_channels = channels[i - 1] if i else 16
            stride = 2 if i else 1
            self.groups.append(make_stage(in_channels, out_channels, blocks, stride, dropout))
        self.classifier = Classifier(channels[-1], num_classes)
        self.apply(initialize)
        specs = branch_specs(depth, width) if branches else ()
        self.branches = nn.ModuleList(
            Branch(channels[spec.group], spec, num_classes, dropout) for spec in specs
        )
        self.branches.apply(initialize)

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        """Map images (B, 3, H, W) to the logits (B, K) of every classifier.

        The backbone's come first, then those of each branch from shallow to deep. Without
        branches, the tuple has length one.
        """
        x = self.stem(images)
        outputs = []
        for group in self.groups:
            x = group(x)
            outputs.append(x)
        logits = [self.classifier(x)]
        logits += [branch(outputs[branch.group]) for branch in self.branches]
        return tuple(logits)


class PlainWideResNet(WideResNet):
    """A WideResNet that returns the backbone's logits (B, K) alone, for inference elsewhere."""

    def forward(self, images: Tensor) -> Tensor:
        return super().forward(images)[0]


def blocks_per_group(depth: int) -> int:
    """Return n for depth = 6n + 4."""
    if depth < 10 or (depth - 4) % 6:
        raise ValueError(f"depth {depth}: expected 6n + 4, such as 10, 16, 22, 28 or 40")
    return (depth - 4) // 6


def group_channels(width: float) -> tuple[int, int, int]:
    """Return the channels of the three groups, rounded down as in the released code."""
    channels = (int(16 * width), int(32 * width), int(64 * width))
    if channels[0] < 1:
        raise ValueError(f"width {width}: expected at least {1 / 16}")
    return channels


def network_size(state: dict[str, Tensor]) -> tuple[int, float]:
    """Return the depth and the least width of the `WideResNet` with this state dict."""
    blocks = {name.split(".")[2] for name in state if name.startswith("groups.0.")}
    return 6 * len(blocks) + 4, state["groups.2.0.conv0.weight"].shape[0] / 64


def initialize(module: nn.Module) -> None:
    """Initialize the parameters of a layer as in the released code.

    Convolutional and linear layers: Kaiming normal (fan-in, gain sqrt(2)), biases 0. Batch norm:
    weights uniform in [0, 1), biases 0.
    """
    if isinstance(module, nn.Conv2d | nn.Linear):
        nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
    elif isinstance(module, nn.BatchNorm2d):
        nn.init.uniform_(module.weight)
    if isinstance(module, nn.Linear | nn.BatchNorm2d):
        nn.init.zeros_(module.bias)


# Patterns in the names of the released code, replaced in this order.
RELEASED_NAMES = {
    r"^conv0$": "stem.weight",
    r"^(ep\d_)?(bn|fc)\.": r"\1classifier.\2.",
    r"^(ep\d_)?group(\d)\.block(\d+)\.": r"\1groups.\2.\3.",
    r"convdim$": "shortcut",
    r"(conv\d|shortcut)$": r"\1.weight",
    r"^ep1_groups\.1": "branches.0.stages.0",
    r"^ep1_groups\.2": "branches.0.stages.1",
    r"^ep2_groups\.2": "branches.1.stages.0",
    r"^ep1_": "branches.0.",
    r"^ep2_": "branches.1.",
}


def released_state_dict(params: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return the state dict of `WideResNet` for the parameters in a `model.pt7` of the release.

    The released code has no `num_batches_tracked`; it is set to 0 and never used.
    """
    state = {released_name(name): tensor for name, tensor in params.items()}
    for name in [name for name in state if name.endswith("running_var")]:
        state[name.replace("running_var", "num_batches_tracked")] = torch.tensor(0)
    return state


def released_name(name: str) -> str:
    """Convert a name of the released code: group0.block1.conv0 to groups.0.1.conv0.weight, etc."""
    for pattern, replacement in RELEASED_NAMES.items():
        name = re.sub(pattern, replacement, name)
    return name
