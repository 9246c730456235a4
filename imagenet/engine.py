"""What training changes, and the step that changes it."""

from collections.abc import Callable
from contextlib import nullcontext

import torch
from torch import Tensor, nn

from distributed import data_parallel, world_size
from ema import Average
from metrics import Sums, topk_correct
from synergy import Losses
from train_data import Batch


class Trainer:
    """A network and everything that training changes with it.

    Args:
        model: maps images (B, 3, S, S) to a tuple of logits (B, K), the backbone's first.
        criterion: from logits and labels to `Losses`.
        optimizer: of the model's parameters.
        ema: the average of the model's weights, if there is one.
        dtype: of convolutions and matrix products; the loss is in float32 at least.
        micro_batches: parts of a batch whose gradients are summed one after the other.

    Attributes:
        device: the model's.
        step: finished steps of the whole run.
        epoch: finished epochs, evaluation included.
        sums: over the images of the epoch in progress, on this process.
    """

    def __init__(
        self,
        model: nn.Module,
        criterion: Callable[[tuple[Tensor, ...], Tensor], Losses],
        optimizer: torch.optim.Optimizer,
        ema: Average | None = None,
        dtype: torch.dtype = torch.float32,
        micro_batches: int = 1,
    ):
        self.model = model
        self.device = next(model.parameters()).device
        self.optimizer = optimizer
        self.ema = ema
        # With enabled=False every call of it is a plain one.
        self.scaler = torch.amp.GradScaler(self.device.type, enabled=dtype == torch.float16)
        self.parallel = data_parallel(model, self.device)
        self.step = self.epoch = 0
        self.sums = Sums(self.device)
        self._criterion = criterion
        self._dtype = dtype
        self._micro_batches = micro_batches
        self._bad_step = torch.zeros((), dtype=torch.int64, device=self.device)

    def train_step(self, batch: Batch, lr: float) -> Tensor:
        """Update the weights once, waiting for nothing that the device computes.

        (In float16 without a fused optimizer, the gradient scaler waits for the gradients.)

        Returns:
            The loss of this process's images, a scalar on the device.
        """
        for group in self.optimizer.param_groups:
            group["lr"] = lr
        self.optimizer.zero_grad(set_to_none=True)
        loss = self.add_gradients(batch)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        if self.ema:
            self.ema.update()
        self.step += 1
        self._bad_step.masked_fill_((self._bad_step == 0) & ~loss.isfinite(), self.step)
        return loss

    def add_gradients(self, batch: Batch) -> Tensor:
        """Forward and backward; the gradients are those of the mean over the whole batch.

        DistributedDataParallel takes the mean over processes. So each one's loss is weighted by
        its share of the images, times the number of processes.

        Returns:
            The mean loss over this process's images, detached.
        """
        parts = min(self._micro_batches, len(batch.labels))
        images, labels = batch.images.tensor_split(parts), batch.labels.tensor_split(parts)
        means = []
        for part in range(parts):
            weight = len(labels[part]) / len(batch.labels)  # in this process's images
            with self._without_sum() if part < parts - 1 else nullcontext():
                logits, losses = self._losses(images[part], labels[part])
                total = losses.total * (weight * batch.share * world_size())
                self.scaler.scale(total).backward()
            means.append(losses.total.detach() * weight)
            # Without a share they count for nothing, but every process has the same sums.
            self._count(logits, labels[part], losses, float(batch.share > 0))
        return torch.stack(means).sum()

    def _without_sum(self):
        """Keeps gradients on this process, to be summed with the next ones'."""
        return self.parallel.no_sync() if world_size() > 1 else nullcontext()

    def _losses(self, images: Tensor, labels: Tensor) -> tuple[tuple[Tensor, ...], Losses]:
        layout = fastest_layout(images.shape[-1], self.device)
        images = images.contiguous(memory_format=layout)
        with torch.autocast(self.device.type, self._dtype, enabled=self._dtype != torch.float32):
            logits = self.parallel(images)
        return logits, self._criterion(logits, labels)

    def _count(
        self, logits: tuple[Tensor, ...], labels: Tensor, losses: Losses, weight: float
    ) -> None:
        self.sums.add(
            top1=torch.stack([topk_correct(each, labels) for each in logits]) * weight,
            losses=torch.stack(losses) * (len(labels) * weight),
        )

    def finish_epoch(self) -> None:
        """Count the epoch as finished, and begin the sums of the next."""
        self.epoch += 1
        self.sums = Sums(self.device)

    def first_bad_step(self) -> int:
        """The first step whose loss was not finite on this process, or 0; waits for the device."""
        return int(self._bad_step)


def fastest_layout(image_size: int, device: torch.device) -> torch.memory_format:
    """Channels last, in which convolutions need no reordering, but for small images on a CPU.

    Their last maps have 2x2 pixels or fewer, for which oneDNN's channels-last kernels take twice
    as long as those for NCHW (seen with torch 2.15 and 1,024 channels).
    """
    small = device.type == "cpu" and image_size <= 64
    return torch.contiguous_format if small else torch.channels_last
