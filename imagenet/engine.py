"""The trainer: one training step, one training epoch, one evaluation; the weight average."""

import copy
from collections.abc import Callable
from contextlib import nullcontext

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

from common.batch_norm import keep_buffers
from common.data_parallel import scale_for_ddp, wrap_ddp
from common.distributed import broadcast_buffers, world_size
from common.metrics import MetricSums, topk_correct
from evaluate import Scores, evaluate, forward
from loader import Batch, TrainingLoader
from preemption import CheckpointHook
from progress import EpochProgress
from schedule import Schedule
from synergy import Losses


class ModelEma:
    """A copy of a model with averaged weights: average <- decay * average + (1 - decay) * weight.

    The running statistics of batch normalization are averaged as well, because those of the
    original model do not fit the averaged weights.

    Args:
        model: the model to follow; the average starts at its current weights.
        decay: in [0, 1); 0 copies the weights.
    """

    def __init__(self, model: nn.Module, decay: float):
        self.model = copy.deepcopy(model).eval().requires_grad_(False)
        self._decay = decay
        # Listed once, because the tensors of both models are only ever changed in place.
        pairs = list(
            zip(self.model.state_dict().values(), model.state_dict().values(), strict=True)
        )
        self._averaged = [pair for pair in pairs if pair[0].is_floating_point()]
        self._copied = [pair for pair in pairs if not pair[0].is_floating_point()]  # counters

    @torch.no_grad()
    def update(self) -> None:
        """Update the average with the model's weights, after a step."""
        averages, weights = map(list, zip(*self._averaged, strict=True))
        torch._foreach_lerp_(averages, weights, 1 - self._decay)
        for average, value in self._copied:
            average.copy_(value)


class Trainer:
    """A model with its optimizer and the other state that changes during training.

    Args:
        model: maps images (B, 3, S, S) to a tuple of logits (B, K), the backbone's first.
        criterion: maps logits and labels to `Losses`.
        optimizer: of the model's parameters.
        ema: moving average of the model's weights, if any.
        dtype: of convolutions and matrix products. The loss is computed in float32.
        micro_batches: number of parts of a batch, whose gradients are accumulated.

    Attributes:
        device: of the model.
        step: number of finished steps of the whole run.
        epoch: number of finished epochs, including their evaluation.
        sums: of losses and correct predictions in the current epoch, on this process.
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
        # If disabled, its methods pass their arguments through.
        self.scaler = torch.amp.GradScaler(self.device.type, enabled=dtype == torch.float16)
        self.parallel = wrap_ddp(model, self.device)
        self.step = self.epoch = 0
        self.sums = MetricSums(self.device)
        self._criterion = criterion
        self._dtype = dtype
        self._micro_batches = micro_batches
        self._nonfinite_step = torch.zeros((), dtype=torch.int64, device=self.device)

    def compile(self) -> None:
        """Compile the training. Batches of each size get a graph of their own, the fastest one."""
        self.parallel = torch.compile(self.parallel, dynamic=False)

    def train_epoch(
        self,
        loader: TrainingLoader,
        schedule: Schedule,
        hook: CheckpointHook,
        progress: EpochProgress,
        log_interval: int,
    ) -> None:
        """Train from the current step to the end of the epoch.

        Args:
            loader: of the training batches.
            schedule: of the learning rate.
            hook: called after each step.
            progress: shows the loss.
            log_interval: steps between updates of the loss, each of which waits for the device.

        Raises:
            UserError: a loss was not finite, or an image cannot be read.
            Interrupted: a signal arrived; the run is saved.
        """
        self.parallel.train()
        first_step = self.step - self.epoch * loader.sampler.steps
        with progress:
            for batch in progress.track(loader.epoch(self.epoch, first_step)):
                loss = self.train_step(batch, schedule.rate(self.step))
                at_interval = self.step % log_interval == 0
                if at_interval:
                    progress.show(float(loss))
                hook(check_losses=at_interval)
            hook.check_losses()

    def train_step(self, batch: Batch, lr: float) -> Tensor:
        """Run one training step without waiting for the device.

        (The exception is float16 without a fused optimizer: the gradient scaler waits.)

        Returns:
            The mean loss of this process's images, a scalar on the device.
        """
        if not len(batch.labels):
            return self._skip_step(batch)
        for group in self.optimizer.param_groups:
            group["lr"] = lr
        self.optimizer.zero_grad(set_to_none=True)
        with nullcontext() if batch.batch_fraction else keep_buffers(self.model):
            loss = self._accumulate_gradients(batch)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        if self.ema:
            self.ema.update()
        self.step += 1
        self._nonfinite_step.masked_fill_((self._nonfinite_step == 0) & ~loss.isfinite(), self.step)
        return loss

    def _skip_step(self, batch: Batch) -> Tensor:
        """Count a step without update: no image of the whole batch can be read."""
        classifiers, losses = 1 + len(self.model.branches), len(Losses._fields)
        zeros = torch.zeros(classifiers), torch.zeros(losses)
        self.sums.add(top1=zeros[0], losses=zeros[1], unreadable=batch.unreadable)
        self.step += 1
        return torch.zeros((), device=self.device)

    def _accumulate_gradients(self, batch: Batch) -> Tensor:
        """Compute the gradients of the mean loss over the whole batch.

        DistributedDataParallel averages gradients over processes. Each process therefore scales
        its loss by its fraction of the batch times the number of processes.

        Returns:
            The mean loss over this process's images, detached.
        """
        parts = min(self._micro_batches, len(batch.labels))
        images, labels = batch.images.tensor_split(parts), batch.labels.tensor_split(parts)
        means = []
        self.sums.add(unreadable=batch.unreadable)
        for part in range(parts):
            weight = len(labels[part]) / len(batch.labels)  # fraction of this process's images
            with self._no_sync() if part < parts - 1 else nullcontext():
                logits = forward(self.parallel, images[part], self._dtype)
                losses = self._criterion(logits, labels[part])
                total = scale_for_ddp(losses.total, weight * batch.batch_fraction)
                self.scaler.scale(total).backward()
            means.append(losses.total.detach() * weight)
            # A placeholder image counts with weight 0: all processes need the same sums.
            self._accumulate_metrics(logits, labels[part], losses, float(batch.batch_fraction > 0))
        return torch.stack(means).sum()

    def _no_sync(self):
        """Return a context in which gradients are accumulated but not yet all-reduced."""
        return self.parallel.no_sync() if world_size() > 1 else nullcontext()

    def _accumulate_metrics(
        self, logits: tuple[Tensor, ...], labels: Tensor, losses: Losses, weight: float
    ) -> None:
        self.sums.add(
            top1=torch.stack([topk_correct(each, labels) for each in logits]) * weight,
            losses=torch.stack(losses) * (len(labels) * weight),
        )

    def evaluate(self, loader: DataLoader, hook: CheckpointHook) -> dict[str, Scores]:
        """Score the model (`validation`) and its weight average, if there is one (`ema`)."""
        models = {"validation": self.model}
        if self.ema:
            models["ema"] = self.ema.model
        scores = {}
        for name, model in models.items():
            broadcast_buffers(model)
            scores[name] = evaluate(model, hook.wrap(loader), self.device, self._dtype)
        return scores

    def finish_epoch(self) -> None:
        """Count the epoch as finished and reset the sums for the next one."""
        self.epoch += 1
        self.sums = MetricSums(self.device)

    def first_nonfinite_step(self) -> int:
        """Return the first step with a non-finite loss on this process, or 0.

        Waits for the device.
        """
        return int(self._nonfinite_step)
