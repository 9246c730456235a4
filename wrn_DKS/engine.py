"""The trainer: one training step, one training epoch, one evaluation of every classifier."""

import time
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from common.batch_norm import synchronize_batch_norms
from common.command_line import UserError
from common.data_parallel import scale_for_ddp, wrap_ddp
from common.distributed import broadcast_buffers
from common.metrics import MetricSums, topk_correct
from common.progress import Progress
from common.sgd import clear_momentum, make_sgd
from layout import memory_format
from loader import Batch, Batches
from networks import build_network
from options import Config
from schedule import StepSchedule
from synergy import Losses, SynergyLoss, pairwise_divergences

MOMENTUM = 0.9  # as in the paper and the released code


@dataclass(frozen=True)
class EpochResult:
    """Metrics of one epoch. Losses are means over batches; a partial batch counts as a full one."""

    losses: dict[str, float]  # by field of `Losses`
    errors: list[float]  # top-1 error in percent: backbone, then branches from shallow to deep
    images: int
    time_s: float
    ensemble_error: float | None = None  # of the averaged probabilities; evaluation only
    divergences: list[list[float]] | None = None  # KL(p_j || p_i) at [j][i]; evaluation only


class Trainer:
    """A model with its loss, optimizer and learning-rate schedule.

    Args:
        model: returns a tuple of logits (B, K), the backbone's first.
        criterion: computes the loss from the logits and the labels.
        schedule: learning-rate schedule.
        weight_decay: applied to all trainable parameters, as in the released code.
        dtype: autocast dtype of the forward pass; float32 disables autocast.
        device: of the model and the batches.
    """

    def __init__(
        self,
        model: nn.Module,
        criterion: SynergyLoss,
        schedule: StepSchedule,
        weight_decay: float,
        dtype: torch.dtype,
        device: torch.device,
    ):
        self.memory_format = memory_format(model, device, dtype)
        self.model = model.to(device, memory_format=self.memory_format)
        self.criterion = criterion
        self.schedule = schedule
        self.optimizer = make_sgd(self.model, schedule.lr, MOMENTUM, weight_decay)
        # Disabled, it does not scale and its state dict is empty.
        self.scaler = torch.amp.GradScaler(device.type, enabled=dtype == torch.float16)
        self.dtype = dtype
        self.device = device
        self._parallel = wrap_ddp(self.model, device)

    def compile(self) -> None:
        """Compile the training. Batches of each size get a graph of their own, the fastest one."""
        self._parallel = torch.compile(self._parallel, dynamic=False)

    def train_epoch(
        self, batches: Batches, epoch: int, progress: Progress, seed: int
    ) -> EpochResult:
        """Train on every batch of `epoch` (0-based). `seed` is of dropout, in this epoch.

        Raises:
            UserError: a loss was not finite.
        """
        self._start_epoch(epoch, seed)
        start = time.perf_counter()
        sums, guard = MetricSums(self.device), NonFiniteGuard(self.device)
        # Reading a value synchronizes with a GPU; on the CPU it costs nothing.
        interval = 1 if self.device.type == "cpu" else 50
        for step, batch in enumerate(progress.over(batches.epoch(epoch)), 1):
            logits, losses = self.train_step(batch)
            guard.observe(losses.total, step)
            accumulate(sums, batch, logits, losses)
            if step % interval == 0 or step == len(batches):
                guard.check(epoch)
                so_far = summarize(sums, start)
                progress.show(so_far.images, so_far.losses["total"], so_far.errors[0])
        return so_far

    def _start_epoch(self, epoch: int, seed: int) -> None:
        """Set the learning rate, clear momentum at milestones, and seed dropout."""
        for group in self.optimizer.param_groups:
            group["lr"] = self.schedule.rate(epoch)
        if self.schedule.resets_momentum(epoch):
            clear_momentum(self.optimizer)
        # Seeded in each epoch, so that a resumed run draws the same numbers.
        torch.manual_seed(seed)
        self._parallel.train()

    def train_step(self, batch: Batch) -> tuple[tuple[Tensor, ...], Losses]:
        """Update the weights once; return the logits and losses computed before the update."""
        logits = self._forward(self._parallel, batch)
        losses = self.criterion(logits, batch.labels)
        self.optimizer.zero_grad(set_to_none=True)
        self.scaler.scale(scale_for_ddp(losses.total, batch.batch_fraction)).backward()
        self.scaler.step(self.optimizer)
        self.scaler.update()
        return logits, losses

    def _forward(self, model: nn.Module, batch: Batch) -> tuple[Tensor, ...]:
        images = batch.images.contiguous(memory_format=self.memory_format)
        with torch.autocast(self.device.type, self.dtype, enabled=self.dtype != torch.float32):
            return model(images)

    @torch.no_grad()
    def evaluate(self, batches: Batches) -> EpochResult:
        """Compute the error of every classifier and of their ensemble, each image once."""
        broadcast_buffers(self.model)
        self.model.eval()
        start, sums = time.perf_counter(), MetricSums(self.device)
        with Progress("testing", len(batches)) as progress:
            for batch in progress.over(batches.epoch()):
                logits = self._forward(self.model, batch)
                accumulate(sums, batch, logits, self.criterion(logits, batch.labels))
                mean_p = torch.stack(logits).float().softmax(-1).mean(0)  # (B, K)
                weight = float(batch.batch_fraction > 0)  # 0 for a placeholder image
                sums.add(
                    ensemble=topk_correct(mean_p, batch.labels) * weight,
                    divergences=pairwise_divergences(logits) * batch.batch_fraction,
                )
        return summarize(sums, start)

    @torch.no_grad()
    def predict(self, batches: Batches) -> Tensor:
        """Return the backbone's probabilities of the classes for each image, (N, K)."""
        self.model.eval()
        logits = [self._forward(self.model, batch)[0] for batch in batches.epoch()]
        return torch.cat(logits).float().softmax(-1)


def make_trainer(config: Config, num_classes: int, device: torch.device, branches: bool) -> Trainer:
    """Build the network and its trainer for these options."""
    torch.manual_seed(config.seed)
    model = build_network(config, num_classes, branches)
    if config.sync_bn:
        model = synchronize_batch_norms(model, device)
    trainer = Trainer(
        model,
        SynergyLoss(
            config.method,
            config.direction,
            config.aux_weight,
            config.synergy_weight,
            config.label_smoothing,
        ),
        StepSchedule(config.lr, config.epoch_step, config.lr_decay_ratio, config.arch == "wrn"),
        config.weight_decay,
        getattr(torch, config.dtype),
        device,
    )
    if config.compile:
        trainer.compile()
    return trainer


class NonFiniteGuard:
    """Remembers, on the device, the first step whose loss was infinite or NaN."""

    def __init__(self, device: torch.device):
        self._step = torch.zeros((), dtype=torch.int64, device=device)

    def observe(self, loss: Tensor, step: int) -> None:
        """Note a loss without synchronizing; `step` counts from 1."""
        self._step = torch.where((self._step == 0) & ~loss.isfinite(), step, self._step)

    def check(self, epoch: int) -> None:
        """Raise `UserError` if an observed loss was not finite. Synchronizes."""
        if step := int(self._step):
            raise UserError(
                f"the loss is not finite at step {step} of epoch {epoch + 1}; the last checkpoint "
                "was saved before it; try a lower --lr"
            )


def accumulate(sums: MetricSums, batch: Batch, logits: tuple[Tensor, ...], losses: Losses) -> None:
    """Add this process's part of a batch to the sums of an epoch."""
    weight = float(batch.batch_fraction > 0)  # 0 for a placeholder image
    correct = torch.stack([topk_correct(each, batch.labels) for each in logits])
    sums.add(
        batches=batch.batch_fraction,  # the fractions of one batch add up to 1
        images=len(batch.labels) * weight,
        correct=correct * weight,
        losses=torch.stack(losses) * batch.batch_fraction,
    )


def summarize(sums: MetricSums, start: float) -> EpochResult:
    """Average the sums over all processes; `start` is the `time.perf_counter` of the first step."""
    totals = sums.totals()
    images, batches = float(totals["images"]), float(totals["batches"])
    optional = {}
    if "ensemble" in totals:
        optional["ensemble_error"] = 100 - 100 * float(totals["ensemble"]) / images
        optional["divergences"] = (totals["divergences"] / batches).tolist()
    return EpochResult(
        losses=dict(zip(Losses._fields, (totals["losses"] / batches).tolist(), strict=True)),
        errors=(100 - 100 * totals["correct"] / images).tolist(),
        images=round(images),
        time_s=time.perf_counter() - start,
        **optional,
    )
