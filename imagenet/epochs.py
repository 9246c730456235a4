"""The epochs of a run, one after the other: train, validate, log, save."""

import time
from collections.abc import Iterable, Iterator
from functools import partial

import torch
from torch.utils.data import DataLoader
from tqdm import tqdm

import train_state
from command_line import DTYPES
from data import evaluation_loader
from distributed import rank, share_buffers
from engine import Trainer
from epoch_log import EpochLog, train_record, validation_record
from evaluate import evaluate
from image_sets import ImageSets
from pause import Interruption, Pause
from run_folder import CHECKPOINT
from schedule import Schedule
from train_data import Batch, Order, Readers, TrainingData
from train_options import Config


def run_epochs(config: Config, trainer: Trainer, sets: ImageSets, order: Order) -> None:
    """Do the epochs that are left, and save the run after each.

    Raises:
        Refused: a loss was not finite, an image can't be read, or the run can't be saved.
        Stopped: a signal has come; the run is saved.
    """
    schedule = make_schedule(config, order.steps)
    save = partial(train_state.save, config.save / CHECKPOINT, trainer, config, sets)
    log = EpochLog(config.save, trainer.epoch, trainer.step) if rank() == 0 else None
    with Readers() as readers, Interruption() as interruption:
        data, validation = make_loaders(config, sets, order, trainer.device, readers)
        pause = Pause(interruption, trainer, save, config.checkpoint_minutes)
        while trainer.epoch < config.epochs:
            times = train_epoch(config, trainer, data, schedule, pause)
            record = {"lr": schedule.rate(trainer.step - 1), "times": times}
            record["train"] = train_record(trainer.sums.totals(), len(sets.train))
            record |= validate(config, trainer, validation, pause)
            trainer.finish_epoch()
            if log:
                log.write(config, trainer.epoch, trainer.step, record)
            pause.save()
    if log:
        log.close()


def make_loaders(
    config: Config, sets: ImageSets, order: Order, device: torch.device, readers: Readers
) -> tuple[TrainingData, DataLoader]:
    """Batches to train on, and this process's batches to validate with."""
    workers = config.workers
    training = TrainingData(
        sets.train, order, config.seed, workers, config.prefetch, device, readers
    )
    return training, evaluation_loader(sets.validation, config.batch_size, workers, device, readers)


def make_schedule(config: Config, steps: int) -> Schedule:
    """The learning rate that the options ask for, with so many steps an epoch."""
    return Schedule(
        config.lr_schedule,
        config.lr,
        steps,
        config.epochs,
        config.warmup_epochs,
        config.milestones,
        config.lr_factor,
    )


def train_epoch(
    config: Config, trainer: Trainer, data: TrainingData, schedule: Schedule, pause: Pause
) -> dict:
    """Train on what is left of the epoch; returns the record's `times`."""
    steps = data.order.steps
    first = trainer.step - trainer.epoch * steps
    trainer.parallel.train()
    with Meter(f"epoch {trainer.epoch + 1}/{config.epochs}", first, steps) as meter:
        for batch in meter.over(data.epoch(trainer.epoch, first)):
            loss = trainer.train_step(batch, schedule.rate(trainer.step))
            at_interval = trainer.step % config.log_interval == 0
            if at_interval:
                meter.show(float(loss))
            pause(read=at_interval)
        pause.refuse_bad_losses()
        return meter.times()


def validate(config: Config, trainer: Trainer, loader: DataLoader, pause: Pause) -> dict:
    """Score the network, and the average of its weights; the record's `validation` and `ema`."""
    networks = {"validation": trainer.model}
    if trainer.ema:
        networks["ema"] = trainer.ema.model
    record = {}
    for name, network in networks.items():
        share_buffers(network)
        scores = evaluate(network, pause.over(loader), trainer.device, DTYPES[config.dtype])
        record[name] = validation_record(scores)
    return record


class Meter:
    """Times an epoch's training: a progress bar on process 0, images/s, time spent waiting.

    Args:
        title: of the bar.
        first: steps of the epoch that were done before.
        steps: in the epoch.
    """

    def __init__(self, title: str, first: int, steps: int):
        hidden = None if rank() == 0 else True  # None: where there is no terminal
        self._bar = tqdm(
            total=steps, initial=first, desc=title, unit="step", leave=False, disable=hidden
        )
        self._images = 0.0
        self._waiting_s = 0.0
        self._start = time.perf_counter()

    def __enter__(self) -> "Meter":
        return self

    def __exit__(self, *exception) -> None:
        self._bar.close()

    def over(self, batches: Iterable[Batch]) -> Iterator[Batch]:
        """The batches; what passes until one is there counts as waiting for data."""
        iterator = iter(batches)
        while True:
            asked = time.perf_counter()
            batch = next(iterator, None)
            self._waiting_s += time.perf_counter() - asked
            if batch is None:
                return
            yield batch
            if batch.share:
                self._images += len(batch.labels) / batch.share  # of the whole batch
            self._bar.update()

    def show(self, loss: float) -> None:
        """Show the loss of a batch and the rates so far."""
        times = self.times()
        self._bar.set_postfix_str(
            f"loss {loss:.3f}, {times['images_per_s']:.0f} images/s, "
            f"{times['waiting_percent']:.0f} % waiting for data",
            refresh=False,
        )

    def times(self) -> dict[str, float]:
        """Seconds, images (of all processes) a second, percent of the time spent waiting."""
        seconds = time.perf_counter() - self._start
        return {
            "train_s": seconds,
            "images_per_s": self._images / seconds,
            "waiting_percent": 100 * self._waiting_s / seconds,
        }
