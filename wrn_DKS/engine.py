"""One epoch of training, and the evaluation of every classifier."""

import time
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from command_line import Refused
from distributed import data_parallel, rank, share_buffers, world_size
from loader import Batch, Batches, generator
from metrics import Sums, topk_correct
from progress import Progress
from schedule import StepSchedule
from sgd import clear_momentum, make_sgd
from synergy import Losses, SynergyLoss, divergences

MOMENTUM = 0.9  # the paper's and the released code's


@dataclass(frozen=True)
class Result:
    """What an epoch gave. Losses are means over batches, a partial batch as much as a full one."""

    losses: dict[str, float]  # by the fields of `Losses`
    errors: list[float]  # top-1 error in percent, the backbone's first, then the branches'
    images: int
    time_s: float
    ensemble_error: float | None = None  # of the averaged probabilities
    divergences: list[list[float]] | None = None  # KL(p_j || p_i) at [j][i]


class Trainer:
    """A network with what trains it.

    Args:
        model: returns a tuple of logits, the backbone's first.
        loss: of these logits.
        schedule: of the learning rate.
        weight_decay: on every trainable tensor, BN's and biases too, as in the released code.
        dtype: float32, or what autocast computes in.
        device: where all of it is.
    """

    def __init__(
        self,
        model: nn.Module,
        loss: SynergyLoss,
        schedule: StepSchedule,
        weight_decay: float,
        dtype: torch.dtype,
        device: torch.device,
    ):
        self.layout = memory_format(model)
        self.model = model.to(device, memory_format=self.layout)
        self.loss = loss
        self.schedule = schedule
        self.optimizer = make_sgd(self.model, schedule.lr, MOMENTUM, weight_decay)
        # Its enabled=False makes every call of it a plain one.
        self.scaler = torch.amp.GradScaler(device.type, enabled=dtype == torch.float16)
        self.dtype = dtype
        self.device = device
        self._parallel = data_parallel(self.model, device)

    def train_epoch(self, batches: Batches, epoch: int, progress: Progress, seed: int) -> Result:
        """Train on every batch of `epoch` (0-based).

        Raises:
            Refused: the loss became infinite or NaN; says at which step.
        """
        self._begin(epoch, seed)
        start, sums, bad_step = time.perf_counter(), Sums(self.device), NonFinite(self.device)
        # Reading a value waits for a GPU; a CPU has it at hand.
        interval = 1 if self.device.type == "cpu" else 50
        for step, batch in enumerate(progress.over(batches.epoch(epoch)), 1):
            logits, losses = self.losses(batch)
            self.update(self.weigh(losses, batch))
            bad_step.look(losses.total, step)
            count(sums, batch, logits, losses)
            if step % interval == 0 or step == len(batches):
                bad_step.refuse(epoch)
                so_far = result(sums, start)
                progress.show(so_far.images, so_far.losses["total"], so_far.errors[0])
        return so_far

    def _begin(self, epoch: int, seed: int) -> None:
        """Set what holds for the epoch: learning rate, momentum, random numbers of dropout."""
        for group in self.optimizer.param_groups:
            group["lr"] = self.schedule.rate(epoch)
        if self.schedule.clears_momentum(epoch):
            clear_momentum(self.optimizer)
        # A function of (seed, epoch), so that a resumed run draws the same.
        torch.manual_seed(int(generator(seed, epoch, rank()).initial_seed()))
        self._parallel.train()

    def losses(self, batch: Batch) -> tuple[list[Tensor], Losses]:
        """Forward: the logits of every classifier, and the losses of this process's share."""
        logits = self._logits(self._parallel, batch)
        return logits, self.loss(logits, batch.labels)

    def _logits(self, model: nn.Module, batch: Batch) -> tuple[Tensor, ...]:
        images = batch.images.contiguous(memory_format=self.layout)
        with torch.autocast(self.device.type, self.dtype, enabled=self.dtype != torch.float32):
            return model(images)

    @staticmethod
    def weigh(losses: Losses, batch: Batch) -> Tensor:
        """This process's part of the whole batch's loss, to which DDP's mean adds the others."""
        return losses.total * (batch.share * world_size())

    def update(self, loss: Tensor) -> None:
        """One step of SGD down the gradient of `loss`."""
        self.optimizer.zero_grad(set_to_none=True)
        self.scaler.scale(loss).backward()
        self.scaler.step(self.optimizer)
        self.scaler.update()

    @torch.no_grad()
    def evaluate(self, batches: Batches) -> Result:
        """The error of every classifier and of their averaged probabilities, each image once."""
        share_buffers(self.model)
        self.model.eval()
        start, sums = time.perf_counter(), Sums(self.device)
        for batch in Progress("testing", len(batches)).over(batches.epoch()):
            logits = self._logits(self.model, batch)
            count(sums, batch, logits, self.loss(logits, batch.labels))
            mean_p = torch.stack(logits).float().softmax(-1).mean(0)
            own = float(batch.share > 0)
            sums.add(
                ensemble=topk_correct(mean_p, batch.labels) * own,
                divergences=divergences(logits) * batch.share,
            )
        return result(sums, start)


def memory_format(model: nn.Module) -> torch.memory_format:
    """Channels last, in which convolutions need no reordering, where it is safe.

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


class NonFinite:
    """Keeps, on the device, the first step at which a loss was infinite or NaN."""

    def __init__(self, device: torch.device):
        self._step = torch.zeros((), dtype=torch.int64, device=device)

    def look(self, loss: Tensor, step: int) -> None:
        """Note a loss, waiting for nothing; `step` counts from 1."""
        self._step = torch.where((self._step == 0) & ~loss.isfinite(), step, self._step)

    def refuse(self, epoch: int) -> None:
        """Stop the run if any loss was bad. Reads the device."""
        if step := int(self._step):
            raise Refused(
                f"the loss is not finite since step {step} of epoch {epoch + 1}; the last "
                "checkpoint is from before it; try a lower --lr"
            )


def count(sums: Sums, batch: Batch, logits: tuple[Tensor, ...], losses: Losses) -> None:
    """Add this process's share of a batch to the sums of an epoch."""
    own = float(batch.share > 0)
    correct = torch.stack([topk_correct(each, batch.labels) for each in logits])
    sums.add(
        batches=batch.share,  # the shares of one batch add up to 1
        images=len(batch.labels) * own,
        correct=correct * own,
        losses=torch.stack(losses) * batch.share,
    )


def result(sums: Sums, start: float) -> Result:
    """The means over all processes of what was counted since `start` (of perf_counter)."""
    totals = sums.totals()
    images, batches = float(totals["images"]), float(totals["batches"])
    optional = {}
    if "ensemble" in totals:
        optional["ensemble_error"] = 100 - 100 * float(totals["ensemble"]) / images
        optional["divergences"] = (totals["divergences"] / batches).tolist()
    return Result(
        losses=dict(zip(Losses._fields, (totals["losses"] / batches).tolist(), strict=True)),
        errors=(100 - 100 * totals["correct"] / images).tolist(),
        images=round(images),
        time_s=time.perf_counter() - start,
        **optional,
    )
