"""The life of a training run: start or resume, epochs, save at intervals, stop after a signal."""

import signal
import threading
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import torch
import torch.distributed as dist

from .command_line import Interrupted
from .distributed import print_once, rank, world_size
from .engine import Trainer
from .evaluation import Batch, Scores, print_scores
from .logs import Progress, RunLog, code_version, peak_memory_mib
from .run_folder import Run, resume, save

AGREE_S = 3.0  # between two times at which the processes agree whether to stop
REPEATED_AFTER_S = 3.0  # `timeout`, torchrun and SLURM send the same signal twice within moments


def fit(
    run: Run, trainer: Trainer, train, test: Sequence[Batch], metadata: dict, data: dict
) -> None:
    """Train to the last epoch, from the start or from the checkpoint; save and log each epoch.

    Args:
        run: from `open_run`.
        trainer: of the network, with its initial weights.
        train, test: batches of this process; for `train`, see `Trainer.train_epoch`.
        metadata: of the network, for its checkpoint.
        data: of the images; two runs on other images differ in it.

    Raises:
        UserError: a loss or weight is not finite, or the run can't be saved or resumed.
        Interrupted: a signal arrived; the run is saved.
    """
    config = run.config
    print_once(f"{trainer.schedule}\n{trainer.compute}, output folder {run.folder}")
    if run.saved:
        resume(run, trainer, train.steps, data)
    network = {name: value for name, value in metadata.items() if name != "classes"}
    network["parameters"] = sum(each.numel() for each in trainer.model.parameters())
    software = {"compute": str(trainer.compute), "processes": world_size()}
    software["code"] = code_version(Path(__file__).parents[1])
    options = config.to_dict()
    about = {"options": options, "network": network, "data": data, "software": software}
    log = RunLog(run.folder, about, trainer.epoch, trainer.step) if rank() == 0 else None
    how = "again" if config.resume == "auto" else f"with --save {run.folder} --resume auto"
    write = partial(save, run, trainer, metadata, data)
    with Preemption(write, config.checkpoint_minutes, trainer.compute.device, how) as preemption:
        while trainer.epoch < config.epochs:
            record, scores = run_epoch(trainer, train, test, preemption)
            trainer.finish_epoch()
            if log:
                log.write({"epoch": trainer.epoch, "step": trainer.step, **record})
            preemption.save()
    print_scores(scores)


def run_epoch(
    trainer: Trainer, train, test: Sequence[Batch], preemption: "Preemption"
) -> tuple[dict, Scores | None]:
    """Train to the end of the epoch, and test if it is due; return its record and the scores."""
    config, number = trainer.schedule.config, trainer.epoch + 1
    first_step = trainer.step - trainer.epoch * train.steps
    progress = Progress(f"epoch {number}/{config.epochs}", train.steps, first_step)
    trainer.train_epoch(train, progress, preemption.save_if_due)
    sums = trainer.sums.totals()
    images, losses = int(sums["images"]), (sums["losses"] / sums["images"]).tolist()
    record = {
        "lr": trainer.schedule.rate(trainer.step - 1),
        "train": {
            "images": images,
            "losses": dict(zip(trainer.criterion.loss_names, losses, strict=True)),
            "top1_errors": (100 - 100 * sums["top1"] / images).tolist(),
        },
        "times": progress.times(),
        "peak_memory_mib": peak_memory_mib(trainer.compute.device),
    }
    if number % config.test_every and number < config.epochs:
        return record, None
    start, after_batch = time.perf_counter(), preemption.save_if_due
    if world_size() > 1:
        # The processes may have different numbers of batches, so that they can't agree to stop.
        preemption.save()
        after_batch = lambda: None  # noqa: E731
    scores = trainer.test(Progress("testing", len(test)).over(test), after_batch)
    record["times"]["test_s"] = time.perf_counter() - start
    return record | {name: each.to_dict() for name, each in scores.items()}, scores["test"]


class Preemption:
    """Save the run at intervals, and stop it after a termination signal.

    The signal handler only sets a flag, which is looked at between two steps. Several processes
    agree on it every few seconds, so that all of them stop after the same step.

    Args:
        write: saves the run.
        minutes: between two checkpoints.
        device: of this process.
        how: to run the same command to continue, for a message.
    """

    def __init__(self, write: Callable[[], None], minutes: float, device: torch.device, how: str):
        self._write, self._interval_s = write, 60 * minutes
        self._device, self._how = device, how
        self._signum, self._signaled_at = 0, 0.0
        self._agreed = 0  # the signal on which all processes have agreed
        self._saved_at = self._agreed_at = time.monotonic()
        self._steps = self._steps_left = 1  # between two agreements
        self._previous: dict = {}

    def __enter__(self) -> "Preemption":
        if threading.current_thread() is not threading.main_thread():
            return self  # Python allows signal handlers in the main thread only
        numbers = [signal.SIGINT, signal.SIGTERM]
        if signal.getsignal(signal.SIGHUP) != signal.SIG_IGN:  # which nohup ignores
            numbers.append(signal.SIGHUP)
        self._previous = {number: signal.signal(number, self._note) for number in numbers}
        return self

    def __exit__(self, *error) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def _note(self, signum: int, frame) -> None:
        now = time.monotonic()
        if not self._signum:
            self._signum, self._signaled_at = signum, now
        elif now - self._signaled_at > REPEATED_AFTER_S:
            signal.signal(signum, self._previous[signum])
            signal.raise_signal(signum)

    def save_if_due(self) -> None:
        """Save the run if it is time to, or a signal has arrived; called after each step."""
        self._steps_left -= 1  # stays below 1 in a single process
        due = time.monotonic() - self._saved_at >= self._interval_s
        if self._steps_left <= 0 and self._agree(due):
            self._save()

    def save(self) -> None:
        """Save the run, in all processes together."""
        self._agree(due=True)
        self._steps = self._steps_left = 1  # it did not come after so many steps
        self._save()

    def _agree(self, due: bool) -> bool:
        """Return whether any process has received a signal or finds that saving is due."""
        self._agreed = self._signum
        if world_size() > 1:
            now = time.monotonic()
            step_us = round(1e6 * (now - self._agreed_at) / self._steps) + 1
            values = torch.tensor([self._signum, due, step_us], device=self._device)
            dist.all_reduce(values, dist.ReduceOp.MAX)
            self._agreed, due, step_us = values.tolist()
            interval_us = 1e6 * min(AGREE_S, self._interval_s)
            self._steps = self._steps_left = max(1, int(interval_us / step_us))
            self._agreed_at = now
        return bool(due or self._agreed)

    def _save(self) -> None:
        """Save the run. Raise `Interrupted` if the processes agreed on a signal."""
        self._write()
        self._saved_at = time.monotonic()
        if self._agreed:
            note = f"; the run is saved: to continue, run the same command {self._how}"
            raise Interrupted(self._agreed, note * (rank() == 0))
