"""The loss of Deeply-supervised Knowledge Synergy (Sun et al., CVPR 2019, arXiv 1906.00675).

Every classifier of a network, the backbone's and the auxiliary branches', learns from the labels
by cross-entropy; and every ordered pair of them adds the *synergy loss* KL(p_teacher || p_student),
p = softmax(logits), through which only the student learns.

Departure from the released code: it adds 1e-8 to the probabilities and takes their logarithm,
which is NaN in half precision. Here the logarithm is log_softmax, in float32 at least.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

METHODS = ("baseline", "ds", "dks")
DIRECTIONS = ("bidirectional", "top-down", "bottom-up")


class Losses(NamedTuple):
    """What `SynergyLoss` returns: scalars, means over the batch, the parts without weights."""

    total: Tensor  # backbone + aux_weight * branches + synergy_weight * synergy
    backbone: Tensor  # cross-entropy of the backbone's classifier
    branches: Tensor  # sum of the branches' cross-entropies
    synergy: Tensor  # sum of the divergences between classifiers


class SynergyLoss(nn.Module):
    """The sum of all cross-entropies and, for the method `dks`, of the synergy loss.

    Args:
        method: `baseline` (the backbone alone), `ds` (deep supervision: branches learn from the
            labels only) or `dks`.
        direction: which classifiers teach in `dks`. `bidirectional`: each teaches each other one;
            `top-down`: the deeper teaches the shallower; `bottom-up`: the reverse.
        aux_weight: weight of the branches' cross-entropies; the paper's and the release's is 1.
        synergy_weight: weight of the synergy loss; likewise 1.
        label_smoothing: share of each target spread evenly over all classes; 0 in the paper.
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
        if method not in METHODS or direction not in DIRECTIONS:
            raise ValueError(f"no method {method!r} or direction {direction!r}")
        self.method = method
        self.direction = direction
        self.aux_weight = aux_weight
        self.synergy_weight = synergy_weight
        self.label_smoothing = label_smoothing

    def forward(self, logits: Sequence[Tensor], labels: Tensor) -> Losses:
        """Compute the losses of one batch.

        Args:
            logits: N tensors (B, K), the backbone's first, then the branches' from shallow to
                deep. Half precision is raised to float32; float64 stays.
            labels: (B,) class indices, int64.
        """
        log_p = log_probabilities(logits)  # (N, B, K)
        cross_entropy = self._cross_entropy(log_p, labels)  # (N,)
        if self.method == "dks":
            synergy = synergy_loss(log_p, self.direction)
        else:
            synergy = log_p.new_zeros(())
        backbone, branches = cross_entropy[0], cross_entropy[1:].sum()
        total = backbone + self.aux_weight * branches + self.synergy_weight * synergy
        return Losses(total, backbone, branches, synergy)

    def _cross_entropy(self, log_p: Tensor, labels: Tensor) -> Tensor:
        """Mean over the batch, (N,), from log-probabilities (N, B, K)."""
        index = labels.expand(len(log_p), -1).unsqueeze(-1)  # (N, B, 1)
        loss = -log_p.gather(-1, index).squeeze(-1).mean(-1)
        if self.label_smoothing:
            loss = torch.lerp(loss, -log_p.mean((-1, -2)), self.label_smoothing)
        return loss


def log_probabilities(logits: Sequence[Tensor]) -> Tensor:
    """Log-softmax of N logits (B, K) as one tensor (N, B, K), in float32 at least."""
    stacked = torch.stack(tuple(logits))
    if stacked.dtype in (torch.float16, torch.bfloat16):
        stacked = stacked.float()
    return stacked.log_softmax(-1)


def synergy_loss(log_p: Tensor, direction: str = "bidirectional") -> Tensor:
    """The sum over teacher-student pairs of KL(p_teacher || p_student), mean over the batch.

    Each divergence is the student's cross-entropy with the teacher's probabilities less the
    teacher's entropy. So the sum is that of n_j <p_j, log p_j> over the teachers, n_j students
    each, less that of <t_i, log p_i> over the students, t_i being the sum of their teachers'
    probabilities: the cost is N terms and not N². Where all teach all, the pairs i = j may stay
    in, since they add nothing to value or gradient, and <Σ t, log p_i> = <t, Σ log p_i>.

    Args:
        log_p: (N, B, K) log-probabilities, the backbone's first, branches from shallow to deep.
        direction: one of `DIRECTIONS`.

    Returns:
        A scalar of the dtype of `log_p`, to rounding of N² log K. Gradients reach students only:
        teachers are detached.
    """
    if direction != "bidirectional":
        # In depth order the backbone's classifier is the last, since it is the deepest.
        by_depth = log_p.roll(-1, 0)
        log_p = by_depth if direction == "bottom-up" else by_depth.flip(0)  # each teaches the next
    count, batch, _ = log_p.shape
    teachers = log_p.detach()
    p = teachers.exp()
    if direction == "bidirectional":
        entropies = count * inner(p, teachers)
        cross_entropies = inner(p.sum(0), log_p.sum(0))
    else:
        students = torch.arange(count - 1, -1, -1, device=p.device, dtype=p.dtype)
        entropies = inner(students.view(-1, 1, 1) * p, teachers)
        cross_entropies = inner(p[:-1].cumsum(0), log_p[1:])
    return (entropies - cross_entropies) / batch


def inner(a: Tensor, b: Tensor) -> Tensor:
    """<a, b> over all elements; nothing of their size is stored between."""
    return torch.dot(a.reshape(-1), b.reshape(-1))


@torch.no_grad()
def divergences(logits: Sequence[Tensor]) -> Tensor:
    """All pairwise divergences for the log, (N, N): KL(p_j || p_i) at [j, i], batch mean."""
    log_p = log_probabilities(logits)
    teachers, students = log_p.unsqueeze(1), log_p.unsqueeze(0)
    return (teachers.exp() * (teachers - students)).sum(-1).mean(-1)
