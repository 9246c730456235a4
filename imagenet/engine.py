"""The trainer: one training step, one training epoch, one evaluation."""

from collections.abc import Callable
from contextlib import nullcontext

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

from common.distributed import broadcast_buffers, data_parallel, world_size
from common.metrics import MetricSums, topk_correct
from ema import ModelEma
from evaluate import Scores, evaluate
from loader import Batch, TrainingLoader
from preemption import CheckpointHook
from progress import EpochProgress
from schedule import Schedule
from synergy import Losses


class Trainer:
    """A model and everything that training changes along with it.

    Args:
        model: maps images (B, 3, S, S) to a tuple of logits (B, K), the backbone's first.
        criterion: maps logits and labels to `Losses`.
        optimizer: of the model's parameters.
        ema: moving average of the model's weights, if any.
        dtype: of convolutions and matrix products; the loss is computed in float32 at least.
        micro_batches: parts of a batch whose gradients are accumulated one after the other.

    Attributes:
        device: of the model.
        step: number of finished steps of the whole run.
        epoch: number of finished epochs, evaluation included.
        sums: over the images of the epoch in progress, on this process.
    """

    def __init__(
        self,
        model: nn.Module,
        criterion: Callable[[tuple[Tensor, ...], Tensor], Losses],
        optimizer: torch.optim.Optimizer,
        ema: ModelEma | None = None,
        dtype: torch.dtype = torch.float32,
        micro_batches: int = 1,
    ):
        self.model = model
        self.device = next(model.parameters()).device
        self.optimizer = optimizer
        self.ema = ema
        # With enabled=False its calls do nothing special.
        self.scaler = torch.amp.GradScaler(self.device.type, enabled=dtype == torch.float16)
        self.parallel = data_parallel(model, self.device)
        self.step = self.epoch = 0
        self.sums = MetricSums(self.device)
        self._criterion = criterion
        self._dtype = dtype
        self._micro_batches = micro_batches
        self._bad_step = torch.zeros((), dtype=torch.int64, device=self.device)

    def train_epoch(
        self,
        loader: TrainingLoader,
        schedule: Schedule,
        hook: CheckpointHook,
        progress: EpochProgress,
        log_interval: int,
    ) -> None:
        """Train on the rest of the epoch, from the current step on.

        Args:
            loader: of the training batches.
            schedule: of the learning rate.
            hook: called after each step.
            progress: shows the loss every `log_interval` steps, each of which waits for the
                device.

        Raises:
            UserError: a loss was not finite, or an image cannot be read.
            Interrupted: a signal arrived; the run is saved.
        """
        self.parallel.train()
        first_step = self.step - self.epoch * loader.sampler.steps
        with progress:
            for batch in progress.over(loader.epoch(self.epoch, first_step)):
                loss = self.train_step(batch, schedule.rate(self.step))
                at_interval = self.step % log_interval == 0
                if at_interval:
                    progress.show(float(loss))
                hook(read=at_interval)
            hook.refuse_bad_losses()

    def train_step(self, batch: Batch, lr: float) -> Tensor:
        """Update the weights once without waiting for the device.

        (In float16 without a fused optimizer, the gradient scaler waits for the gradients.)

        Returns:
            The mean loss of this process's images, a scalar on the device.
        """
        for group in self.optimizer.param_groups:
            group["lr"] = lr
        self.optimizer.zero_grad(set_to_none=True)
        loss = self._accumulate_gradients(batch)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        if self.ema:
            self.ema.update()
        self.step += 1
        self._bad_step.masked_fill_((self._bad_step == 0) & ~loss.isfinite(), self.step)
        return loss

    def _accumulate_gradients(self, batch: Batch) -> Tensor:
        """Run forward and backward; the gradients are those of the mean over the whole batch.

        DistributedDataParallel averages gradients over processes. Each process therefore scales
        its loss by its fraction of the batch times the number of processes.

        Returns:
            The mean loss over this process's images, detached.
        """
        parts = min(self._micro_batches, len(batch.labels))
        images, labels = batch.images.tensor_split(parts), batch.labels.tensor_split(parts)
        means = []
        for part in range(parts):
            weight = len(labels[part]) / len(batch.labels)  # in this process's images
            with self._no_sync() if part < parts - 1 else nullcontext():
                logits, losses = self._forward(images[part], labels[part])
                total = losses.total * (weight * batch.batch_fraction * world_size())
                self.scaler.scale(total).backward()
            means.append(losses.total.detach() * weight)
            # A placeholder image does not count, but every process needs the same set of sums.
            self._accumulate_metrics(logits, labels[part], losses, float(batch.batch_fraction > 0))
        return torch.stack(means).sum()

    def _no_sync(self):
        """Context in which gradients stay on this process, to be reduced with later ones."""
        return self.parallel.no_sync() if world_size() > 1 else nullcontext()

    def _forward(self, images: Tensor, labels: Tensor) -> tuple[tuple[Tensor, ...], Losses]:
        images = images.contiguous(memory_format=memory_format(images.shape[-1], self.device))
        with torch.autocast(self.device.type, self._dtype, enabled=self._dtype != torch.float32):
            logits = self.parallel(images)
        return logits, self._criterion(logits, labels)

    def _accumulate_metrics(
        self, logits: tuple[Tensor, ...], labels: Tensor, losses: Losses, weight: float
    ) -> None:
        self.sums.add(
            top1=torch.stack([topk_correct(each, labels) for each in logits]) * weight,
            losses=torch.stack(losses) * (len(labels) * weight),
        )

    def evaluate(self, loader: DataLoader, hook: CheckpointHook) -> dict[str, Scores]:
        """Score the model as `validation` and, if there is one, the weight average as `ema`."""
        models = {"validation": self.model}
        if self.ema:
            models["ema"] = self.ema.model
        scores = {}
        for name, model in models.items():
            broadcast_buffers(model)
            scores[name] = evaluate(model, hook.over(loader), self.device, self._dtype)
        return scores

    def finish_epoch(self) -> None:
        """Count the epoch as finished and reset the sums for the next one."""
        self.epoch += 1
        self.sums = MetricSums(self.device)

    def first_bad_step(self) -> int:
        """Return the first step with a non-finite loss on this process, or 0; waits for it."""
        return int(self._bad_step)


def memory_format(image_size: int, device: torch.device) -> torch.memory_format:
    """Return the faster memory format: channels last, except for small images on a CPU.

    The last feature maps of small images have 2x2 pixels or fewer, for which oneDNN's
    channels-last kernels take twice as long as its NCHW kernels (torch 2.15, 1,024 channels).
    """
    small = device.type == "cpu" and image_size <= 64
    return torch.contiguous_format if small else torch.channels_last
