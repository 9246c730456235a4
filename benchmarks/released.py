"""The released code's training step, which both benchmark scripts compare with.

Float32, NCHW, eager. The synergy loss is two nested loops over softmax with 1e-8 added. The loss
is read back at every step, for the progress bar.
"""

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def released_loss(logits: Sequence[Tensor], labels: Tensor) -> Tensor:
    """Sum the cross-entropy of each classifier and the divergence of each ordered pair."""
    total = sum(F.cross_entropy(each, labels) for each in logits)
    for i, student in enumerate(logits):
        for j, teacher in enumerate(logits):
            if i != j:
                p = F.softmax(teacher, dim=1).detach() + 1e-8
                q = F.softmax(student, dim=1) + 1e-8
                total = total + (p * (p.log() - q.log())).sum() / len(labels)
    return total


def released_step(
    model: nn.Module, weight_decay: float, device: torch.device
) -> Callable[[Tensor, Tensor], float]:
    """Return a function of images and labels that trains one step and returns the loss."""
    optimizer = torch.optim.SGD(
        model.to(device).train().parameters(), 0.1, 0.9, weight_decay=weight_decay
    )

    def step(images: Tensor, labels: Tensor) -> float:
        loss = released_loss(model(images.to(device)), labels.to(device))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        return loss.item()

    return step
