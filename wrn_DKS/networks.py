"""The networks by the value of --arch."""

from torch import Tensor, nn

import resnet
import wide_resnet
from options import Config


def build_network(config: Config, num_classes: int, branches: bool) -> nn.Module:
    """Build the network of these options, with random weights.

    Raises:
        ValueError: there is no network of this depth and width.
    """
    if config.arch == "resnet":
        return resnet.ResNet(config.depth, num_classes, branches)
    dropout = wide_resnet.DROPOUT if config.dropout else 0.0
    return wide_resnet.WideResNet(config.depth, config.width, num_classes, dropout, branches)


def network_size(state: dict[str, Tensor], arch: str) -> tuple[int, float]:
    """Return depth and width of the network with this state dict."""
    if arch == "resnet":
        return resnet.network_depth(state), 1.0
    return wide_resnet.network_size(state)
