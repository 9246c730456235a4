"""The trainer: one training step, one training epoch, one evaluation of every classifier."""

import time
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from common.command_line import UserError
from common.distributed import broadcast_buffers, data_parallel, rank, world_size
from common.metrics import MetricSums, topk_correct
from common.sgd import clear_momentum, make_sgd
from loader import Batch, Batches, seeded_generator
from progress import Progress
from schedule import StepSchedule
from synergy import Losses, SynergyLoss, pairwise_divergences

MOMENTUM = 0.9  # the paper's and the released code's


@dataclass(frozen=True)
class EpochResult:
    """Metrics of one epoch. Losses are means over batches; a partial batch counts as a full one."""

    losses: dict[str, float]  # by the fields of `Losses`
    errors: list[float]  # top-1 error in percent: backbone, then branches from shallow to deep
    images: int
    time_s: float
    ensemble_error: float | None = None  # of the mean probabilities; evaluation only
    divergences: list[list[float]] | None = None  # KL(p_j || p_i) at [j][i]; evaluation only


class Trainer:
    """A model and everything that trains it.

    Args:
        model: returns a tuple of logits (B, K), the backbone's first.
        criterion: the loss of these logits.
        schedule: of the learning rate.
        weight_decay: on every trainable tensor, BN's and biases too, as in the released code.
        dtype: of convolutions and matrix products; the loss is computed in float32 at least.
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
        self.memory_format = memory_format(model)
        self.model = model.to(device, memory_format=self.memory_format)
        self.criterion = criterion
        self.schedule = schedule
        self.optimizer = make_sgd(self.model, schedule.lr, MOMENTUM, weight_decay)
        # With enabled=False its calls do nothing special.
        self.scaler = torch.amp.GradScaler(device.type, enabled=dtype == torch.float16)
        self.dtype = dtype
        self.device = device
        self._parallel = data_parallel(self.model, device)

    def train_epoch(
        self, batches: Batches, epoch: int, progress: Progress, seed: int
    ) -> EpochResult:
        """Train on every batch of `epoch` (0-based).

        Raises:
            UserError: a loss was not finite; names the step.
        """
        self._start_epoch(epoch, seed)
        start = time.perf_counter()
        sums, guard = MetricSums(self.device), NonFiniteGuard(self.device)
        # Reading a value synchronizes with a GPU; on a CPU it is free.
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
        """Set the epoch's learning rate, momentum and random numbers of dropout."""
        for group in self.optimizer.param_groups:
            group["lr"] = self.schedule.rate(epoch)
        if self.schedule.resets_momentum(epoch):
            clear_momentum(self.optimizer)
        # A function of (seed, epoch), so that a resumed run draws the same numbers.
        torch.manual_seed(int(seeded_generator(seed, epoch, rank()).initial_seed()))
        self._parallel.train()

    def train_step(self, batch: Batch) -> tuple[tuple[Tensor, ...], Losses]:
        """Update the weights once; return the logits and losses from before the update."""
        logits = self._forward(self._parallel, batch)
        losses = self.criterion(logits, batch.labels)
        self.optimizer.zero_grad(set_to_none=True)
        self.scaler.scale(scale_for_ddp(losses.total, batch)).backward()
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
        for batch in Progress("testing", len(batches)).over(batches.epoch()):
            logits = self._forward(self.model, batch)
            accumulate(sums, batch, logits, self.criterion(logits, batch.labels))
            mean_p = torch.stack(logits).float().softmax(-1).mean(0)  # (B, K)
            counts = float(batch.batch_fraction > 0)
            sums.add(
                ensemble=topk_correct(mean_p, batch.labels) * counts,
                divergences=pairwise_divergences(logits) * batch.batch_fraction,
            )
        return summarize(sums, start)


def memory_format(model: nn.Module) -> torch.memory_format:
    """Return channels last, which is faster, where it is safe.

    With fewer channels than a vector register has floats (up to 16), oneDNN's backward of a
    strided 1x1 convolution in channels last writes past its buffers: seen in torch 2.14 on a CPU
    with AVX2, where networks narrower than WRN-d-0.5 crashed.
    """
    narrow = any(
        conv.kernel_size == (1, 1) and conv.in_channels < 16
        for conv in model.modules()
        if isinstance(conv, nn.Conv2d)
    )
    return torch.contiguous_format if narrow else torch.channels_last


def scale_for_ddp(loss: Tensor, batch: Batch) -> Tensor:
    """Scale this process's loss so that DDP's mean over processes is the whole batch's loss."""
    return loss * (batch.batch_fraction * world_size())


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
                f"the loss is not finite since step {step} of epoch {epoch + 1}; the last "
                "checkpoint is from before it; try a lower --lr"
            )


def accumulate(sums: MetricSums, batch: Batch, logits: tuple[Tensor, ...], losses: Losses) -> None:
    """Add this process's part of a batch to the sums of an epoch."""
    counts = float(batch.batch_fraction > 0)
    correct = torch.stack([topk_correct(each, batch.labels) for each in logits])
    sums.add(
        batches=batch.batch_fraction,  # the fractions of one batch add up to 1
        images=len(batch.labels) * counts,
        correct=correct * counts,
        losses=torch.stack(losses) * batch.batch_fraction,
    )


def summarize(sums: MetricSums, start: float) -> EpochResult:
    """Return the means over all processes of the sums since `start` (of perf_counter)."""
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
