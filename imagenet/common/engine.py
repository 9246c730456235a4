"""The trainer: one training step, one training epoch, and the state that they change."""

from collections.abc import Callable, Iterable
from contextlib import nullcontext
from copy import deepcopy

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from .command_line import UserError, plural
from .distributed import Compute, broadcast_buffers, print_once, rank, world_size, wrap_ddp
from .evaluation import Batch, Scores, Sums, evaluate
from .logs import Progress
from .options import TrainingConfig
from .schedule import Schedule, derived_seed


class Trainer:
    """A model with its optimizer and the other state that changes during training.

    Args:
        model: maps images (B, 3, S, S) to a tuple of logits (B, K), the backbone's first.
        criterion: maps logits and labels to `Losses`.
        schedule: of the learning rate.
        config: options of the training.
        compute: where and how to compute.

    Attributes:
        step: number of finished steps of the whole run.
        epoch: number of finished epochs, including their test.
        sums: of losses and correct predictions in the current epoch, on this process.
    """

    def __init__(
        self,
        model: nn.Module,
        criterion: nn.Module,
        schedule: Schedule,
        config: TrainingConfig,
        compute: Compute,
    ):
        self.compute = compute
        self.criterion = criterion
        self.schedule = schedule
        self.model = compute.place(model)
        if config.sync_bn and compute.device.type != "cuda":
            raise UserError(f"--sync-bn: runs on GPUs only, not on {compute.device}; leave it out")
        if config.sync_bn and world_size() > 1:
            self.model = nn.SyncBatchNorm.convert_sync_batchnorm(self.model)
        # Weight decay applies to every trainable tensor, as in the released code.
        options = {"momentum": config.momentum, "weight_decay": config.weight_decay, "fused": True}
        self.optimizer = torch.optim.SGD(self.model.parameters(), config.lr, **options)
        clear_momentum(self.optimizer)
        self.ema = None
        if config.ema:
            if (steps := config.epochs * schedule.steps_per_epoch) * (1 - config.ema) < 1:
                raise UserError(
                    f"--ema {config.ema}: the run of {plural(steps, 'step')} is shorter than the "
                    "average, which would stay near the initial weights; use a lower decay"
                )
            self.ema = WeightAverage(self.model, config.ema)
        # If disabled, its methods pass their arguments through, and its state dict is empty.
        enabled = compute.dtype == torch.float16
        self.scaler = torch.amp.GradScaler(compute.device.type, enabled=enabled)
        self.step = self.epoch = 0
        self.sums = Sums(compute.device)
        self._parallel = wrap_ddp(self.model, compute.device)
        if config.compile:  # batches of each size get a graph of their own, the fastest one
            self._parallel = torch.compile(self._parallel, dynamic=False)
        self._seed = config.seed
        self._micro_batches = config.grad_accumulation
        self._nonfinite_step = torch.zeros((), dtype=torch.int64, device=compute.device)

    def train_epoch(self, batches, progress: Progress, after_step: Callable[[], None]) -> None:
        """Train from the current step to the end of the epoch.

        Args:
            batches: their number `steps` in an epoch, and a method `epoch(epoch, first_step)` that
                yields each `Batch` of an epoch from a step on; both count from 0.
            progress: shows the loss.
            after_step: called after each step.
        """
        first_step = self.step - self.epoch * batches.steps
        if first_step == 0:  # of dropout; a run that is resumed later has the state
            torch.manual_seed(derived_seed(self._seed, self.epoch, rank()))
        self._parallel.train()
        # Reading a value waits for a GPU. On the CPU it costs nothing.
        interval = 1 if self.compute.device.type == "cpu" else 50
        for batch in progress.over(batches.epoch(self.epoch, first_step)):
            loss = self.train_step(batch)
            if self.step % interval == 0:
                self.check_losses()
                progress.show(float(loss))
            after_step()
        self.check_losses()

    def train_step(self, batch: Batch) -> Tensor:
        """Update the weights once, without waiting for the device.

        Returns:
            The mean loss of this process's images before the update, a scalar on the device.
        """
        for group in self.optimizer.param_groups:
            group["lr"] = self.schedule.rate(self.step)
        if self.schedule.clears_momentum_at(self.step):
            clear_momentum(self.optimizer)
        self.optimizer.zero_grad(set_to_none=True)
        loss = self._accumulate_gradients(batch)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        if self.ema:
            self.ema.update()
        self.step += 1
        self._nonfinite_step.masked_fill_((self._nonfinite_step == 0) & ~loss.isfinite(), self.step)
        return loss

    def _accumulate_gradients(self, batch: Batch) -> Tensor:
        """Compute the gradients of the mean loss over the whole batch.

        DistributedDataParallel averages gradients over processes. Each process therefore scales
        its loss by its fraction of the batch times the number of processes.
        """
        # The same number on all processes, because SyncBatchNorm communicates in each of them.
        parts = min(self._micro_batches, batch.total // world_size())
        images, labels = batch.images.tensor_split(parts), batch.labels.tensor_split(parts)
        means = []
        for part in range(parts):
            weight = len(labels[part]) / len(batch.labels)  # fraction of this process's images
            last = part == parts - 1 or world_size() == 1
            # Gradients are all-reduced once, after the last part.
            with nullcontext() if last else self._parallel.no_sync():
                logits = self.compute.forward(self._parallel, images[part])
                losses = self.criterion(logits, labels[part])
                fraction = weight * (len(batch.labels) / batch.total)
                self.scaler.scale(losses.total * (fraction * world_size())).backward()
            means.append(losses.total.detach() * weight)
            best, target = torch.stack([each.argmax(-1) for each in logits]), labels[part]  # (N, B)
            if target.dim() == 2:  # mixed images: of the classes, the most probable counts
                target = target.argmax(-1)
            self.sums.add(
                top1=(best == target).sum(-1),
                losses=torch.stack(losses).detach() * len(target),
                images=torch.full_like(self._nonfinite_step, len(target)),
            )
        return torch.stack(means).sum()

    def check_losses(self) -> None:
        """Raise `UserError` if a loss of this process was not finite. Waits for the device."""
        if step := int(self._nonfinite_step):
            raise UserError(
                f"the loss is not finite at step {step} of the run (epoch {self.epoch + 1}); this "
                "step is not saved; try a lower --lr"
            )

    def test(self, batches: Iterable[Batch], after_batch: Callable[[], None]) -> dict[str, Scores]:
        """Score the model (`test`) and its weight average, if there is one (`ema`)."""
        models = {"test": self.model} | ({"ema": self.ema.module} if self.ema else {})
        for model in models.values():
            broadcast_buffers(model)
        return evaluate(models, batches, self.compute, self.criterion, after_batch)

    def finish_epoch(self) -> None:
        """Count the epoch, and reset the sums for the next one."""
        self.epoch += 1
        self.sums = Sums(self.compute.device)


def clear_momentum(optimizer: torch.optim.SGD) -> None:
    """Set every momentum buffer to zero, which is equivalent to having none before the first step.

    If they were missing, the fused kernel would create them uninitialized in the first step, and
    they would stay so if the float16 gradient scaler skips that step, as it often does.
    """
    for group in optimizer.param_groups:
        if group["momentum"]:
            for parameter in group["params"]:
                optimizer.state[parameter]["momentum_buffer"] = torch.zeros_like(parameter)


class WeightAverage:
    """The moving average of a model's weights and running statistics, from the current ones on.

    PyTorch's `AveragedModel` copies a counter to the GPU in each step, and so waits for the GPU.
    """

    def __init__(self, model: nn.Module, decay: float):
        self.module, self._decay = deepcopy(model).eval().requires_grad_(False), decay
        self._averages, self._weights = (  # the same tensors during the whole run
            [value for value in each.state_dict().values() if value.is_floating_point()]
            for each in (self.module, model)
        )

    @torch.no_grad()
    def update(self) -> None:
        """Set average <- decay * average + (1 - decay) * weight."""
        torch._foreach_lerp_(self._averages, self._weights, 1 - self._decay)


def print_costs(name: str, build: Callable[[bool], nn.Module], branches: bool, size: int) -> None:
    """Print what a network costs for inference and, if it has branches, for training.

    `build` returns the network, with or without branches; it is called on the meta device, which
    uses neither memory nor random numbers. `size` is the side of an image in pixels. The
    multiply-adds of convolutions and linear layers count.
    """
    for with_branches in (False, True)[: 1 + branches]:
        counter = FlopCounterMode(display=False)
        with torch.device("meta"), torch.no_grad():
            model = build(with_branches).eval()
            with counter:
                model(torch.empty(1, 3, size, size))
        print_once(
            f"{name}{' with branches' * with_branches}: "
            f"{sum(each.numel() for each in model.parameters()):,} parameters, "
            f"{counter.get_total_flops() // 2:,} multiply-adds an image"
        )
