"""The loss of Deeply-supervised Knowledge Synergy (Sun et al., CVPR 2019, arXiv 1906.00675).

A network with auxiliary branches has N classifiers with probabilities p_i = softmax(logits_i).
Each learns from the labels y, and each ordered pair (j, i) in which j teaches i adds a term:

    L = sum_i CE(y, p_i)  +  sum_(j, i) KL(p_j || p_i)        (the paper's method section)

The second sum is the synergy loss. Its gradient reaches the student i only: the teacher's
probabilities p_j are detached.

To use it in another project, copy this file; it needs nothing but torch.

Departure from the released code: it adds 1e-8 to the probabilities to avoid log(0). In half
precision 1e-8 is 0, and the loss becomes NaN. Here log_softmax is used, in float32 at least.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

METHODS = ("baseline", "ds", "dks")
# j teaches i where this comparison of their depths, depth[j] ? depth[i], is true.
DIRECTIONS = {"bidirectional": torch.ne, "top-down": torch.gt, "bottom-up": torch.lt}


def pairwise_divergences(logits: Sequence[Tensor]) -> Tensor:
    """Return KL(p_j || p_i) at [j, i] for N logits (B, K): (N, N), means over B, p_j detached."""
    log_p = torch.stack([in_float32(each) for each in logits]).log_softmax(-1)  # (N, B, K)
    students, teachers = log_p.unsqueeze(0), log_p.detach().unsqueeze(1)
    pointwise = F.kl_div(students, teachers, reduction="none", log_target=True)  # (N, N, B, K)
    return pointwise.sum(-1).mean(-1)


def synergy_loss(divergences: Tensor, direction: str = "bidirectional") -> Tensor:
    """Return the sum of the divergences (N, N) of the pairs in which j teaches i, a scalar.

    `bidirectional`: every classifier teaches every other; `top-down`: the deeper teaches the
    shallower; `bottom-up`: the reverse. The backbone's comes first, as in `SynergyLoss`.
    """
    count = len(divergences)
    # The backbone's classifier comes first in the logits and is the deepest: N - 1, 0, 1, ...
    depth = (torch.arange(count, device=divergences.device) - 1) % count
    teaches = DIRECTIONS[direction](depth.unsqueeze(1), depth.unsqueeze(0))  # (N, N)
    return (divergences * teaches).sum()


class Losses(NamedTuple):
    """Scalars returned by `SynergyLoss`: means over the batch. The parts are not weighted."""

    total: Tensor  # backbone + aux_weight * branches + synergy_weight * synergy
    backbone: Tensor  # cross-entropy of the backbone's classifier
    branches: Tensor  # sum of the branches' cross-entropies
    synergy: Tensor  # the synergy loss


class SynergyLoss(nn.Module):
    """The sum of all cross-entropies and, for the method `dks`, the synergy loss.

    Args:
        method: `baseline` (the backbone's cross-entropy alone), `ds` (deep supervision: the
            branches learn from the labels only) or `dks`.
        direction: which classifiers teach which in `dks`; see `synergy_loss`.
        aux_weight: weight of the branches' cross-entropies; 1 in the paper and the release.
        synergy_weight: weight of the synergy loss; 1 in the paper and the release.
        label_smoothing: fraction of each target spread evenly over all classes; 0 in the paper.

    Raises:
        ValueError: there is no such method or direction.
    """

    def __init__(
        self,
        method: str = "dks",
        direction: str = "bidirectional",
        aux_weight: float = 1.0,
        synergy_weight: float = 1.0,
        label_smoothing: float = 0.0,
    ):
        super().__init__()
        if method not in METHODS:
            raise ValueError(f"method {method!r}: expected one of {', '.join(METHODS)}")
        if direction not in DIRECTIONS:
            raise ValueError(f"direction {direction!r}: expected one of {', '.join(DIRECTIONS)}")
        self.method, self.direction = method, direction
        self.aux_weight, self.synergy_weight = aux_weight, synergy_weight
        self.label_smoothing = label_smoothing

    loss_names = Losses._fields

    def extra_repr(self) -> str:
        options = {k: v for k, v in vars(self).items() if k[0] != "_" and k != "training"}
        return ", ".join(f"{name}={value!r}" for name, value in options.items())

    def divergences(self, logits: Sequence[Tensor]) -> Tensor:
        """Return the divergences of the synergy loss, as `pairwise_divergences` does."""
        return pairwise_divergences(logits)

    def forward(self, logits: Sequence[Tensor], labels: Tensor) -> Losses:
        """Compute the losses of one batch.

        Args:
            logits: N tensors (B, K): the backbone's, then the branches' from shallow to deep. The
                method `baseline` ignores the branches'.
            labels: class indices (B,), int64, or probabilities of the classes (B, K).

        Raises:
            TypeError: `logits` is no sequence of tensors, such as the tensor of one classifier.
            ValueError: they are not all of one shape (B, K).
        """
        check_logits(logits)
        classifiers = 1 if self.method == "baseline" else len(logits)
        logits = [in_float32(each) for each in logits[:classifiers]]
        cross_entropy = torch.stack(
            [F.cross_entropy(each, labels, label_smoothing=self.label_smoothing) for each in logits]
        )  # (N,)
        synergy = cross_entropy.new_zeros(())
        if self.method == "dks":
            synergy = synergy_loss(self.divergences(logits), self.direction)
        backbone, branches = cross_entropy[0], cross_entropy[1:].sum()
        total = backbone + self.aux_weight * branches + self.synergy_weight * synergy
        return Losses(total, backbone, branches, synergy)


def check_logits(logits: Sequence[Tensor]) -> None:
    """Raise what `SynergyLoss.forward` promises if the logits are not N tensors (B, K)."""
    expected = "a sequence of logits (B, K), one for each classifier, the backbone's first"
    if isinstance(logits, Tensor) and logits.dim() != 3:
        raise TypeError(f"expected {expected}; got one tensor of shape {tuple(logits.shape)}")
    if isinstance(logits, dict):
        raise TypeError(f"expected {expected}; got a dict with the keys {list(logits)}")
    shapes = [tuple(each.shape) for each in logits]
    if len(set(shapes)) != 1 or len(shapes[0]) != 2:
        raise ValueError(f"expected {expected}; got the shapes {shapes}")


def in_float32(logits: Tensor) -> Tensor:
    """Return half-precision logits in float32; float32 and float64 as they are."""
    return logits.to(torch.promote_types(logits.dtype, torch.float32))
