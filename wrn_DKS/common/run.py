"""The life of a training run: start or resume, epochs, save at intervals, stop after a signal."""

import signal
import time
from collections.abc import Callable, Sequence

import torch
import torch.distributed as dist

from .command_line import Interrupted
from .distributed import print_once, rank, world_size
from .engine import Trainer, TrainingBatches
from .evaluation import Batch, Scores
from .logs import Progress, RunLog, peak_memory_mib, train_record
from .options import TrainingConfig
from .run_folder import Run, resume, save

AGREE_S = 3.0  # between two times at which the processes agree whether to stop
REPEATED_AFTER_S = 3.0  # `timeout`, torchrun and SLURM send the same signal twice within moments


def fit(
    run: Run,
    trainer: Trainer,
    train: TrainingBatches,
    test: Sequence[Batch],
    metadata: dict,
    data: dict,
) -> Scores:
    """Train to the last epoch, from the start or from the checkpoint; save and log each epoch.

    Args:
        run: from `open_run`.
        trainer: of the network, with its initial weights.
        train, test: batches of this process.
        metadata: of the network, for its checkpoint.
        data: of the images; two runs on other images differ in it.

    Returns:
        The scores after the last epoch.

    Raises:
        UserError: a loss or weight is not finite, or the run can't be saved or resumed.
        Interrupted: a signal arrived; the run is saved.
    """
    config, device = run.config, trainer.compute.device
    if run.saved:
        resume(run, trainer, train.steps, data)
    log = open_log(run, trainer, metadata, data) if rank() == 0 else None
    how = "again" if config.resume == "auto" else f"with --save {run.folder} --resume auto"
    with Preemption(config.checkpoint_minutes, device, how) as preemption:

        def save_now() -> None:
            save(run, trainer, metadata, data)
            preemption.saved()

        while trainer.epoch < config.epochs:
            record, scores = run_epoch(config, trainer, train, test, preemption, save_now)
            trainer.finish_epoch()
            if log:
                log.write({"epoch": trainer.epoch, "step": trainer.step, **record})
            preemption.agree()
            save_now()
    if log:
        log.close()
    return scores


def open_log(run: Run, trainer: Trainer, metadata: dict, data: dict) -> RunLog:
    """Return the log of a run, each record of which says what was run."""
    network = {name: value for name, value in metadata.items() if name != "classes"}
    parameters = sum(parameter.numel() for parameter in trainer.model.parameters())
    about = {
        "options": run.config.to_dict(),
        "network": network | {"parameters": parameters},
        "data": data,
        "software": {"compute": str(trainer.compute), "processes": world_size()},
    }
    return RunLog(run.folder, about, trainer.epoch, trainer.step)


def run_epoch(
    config: TrainingConfig,
    trainer: Trainer,
    train: TrainingBatches,
    test: Sequence[Batch],
    preemption: "Preemption",
    save_now: Callable[[], None],
) -> tuple[dict, Scores | None]:
    """Train to the end of the epoch, and test if it is due; return its record and the scores."""

    def save_if_due() -> None:
        if preemption.is_due():
            save_now()

    epochs_after = config.epochs - trainer.epoch - 1
    first_step = trainer.step - trainer.epoch * train.steps
    name = f"epoch {trainer.epoch + 1}/{config.epochs}"
    progress = Progress(name, train.steps, first_step)
    trainer.train_epoch(train, progress, save_if_due)
    record = {
        "lr": trainer.schedule.rate(trainer.step - 1),
        "train": train_record(trainer.sums.totals(), trainer.criterion.loss_names),
        "times": progress.times(),
        "peak_memory_mib": peak_memory_mib(trainer.compute.device),
    }
    if (trainer.epoch + 1) % config.test_every and epochs_after:
        return record, None
    start, after_batch = time.perf_counter(), save_if_due
    if world_size() > 1:
        # The processes may have different numbers of batches, so that they can't agree to stop.
        preemption.agree()
        save_now()
        after_batch = lambda: None  # noqa: E731
    scores = trainer.test(Progress("testing", len(test)).over(test), after_batch)
    record["times"]["test_s"] = time.perf_counter() - start
    return record | {name: each.to_dict() for name, each in scores.items()}, scores["test"]


class Preemption:
    """Notice that the run must be saved, and stop it after a termination signal.

    The signal handler only sets a flag, which is looked at between two steps. Several processes
    agree on it every few seconds, so that all of them stop after the same step.

    Args:
        minutes: between two checkpoints.
        device: of this process.
        how: to run the same command to continue, for a message.
    """

    def __init__(self, minutes: float, device: torch.device, how: str):
        self._interval_s = 60 * minutes
        self._device, self._how = device, how
        self._signum, self._signaled_at = 0, 0.0
        self._agreed = 0  # the signal on which all processes have agreed
        self._saved_at = self._agreed_at = time.monotonic()
        self._steps = self._steps_left = 1  # between two agreements
        self._previous: dict = {}

    def __enter__(self) -> "Preemption":
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

    def is_due(self) -> bool:
        """Return, after each step and on all processes alike, whether to save the run now."""
        due = time.monotonic() - self._saved_at >= self._interval_s
        if world_size() == 1:
            self._agreed = self._signum
            return due or self._agreed > 0
        self._steps_left -= 1
        return self._steps_left <= 0 and self.agree(due)

    def agree(self, due: bool = False) -> bool:
        """Return whether any process has received a signal or finds that saving is due."""
        now = time.monotonic()
        step_us = round(1e6 * (now - self._agreed_at) / self._steps) + 1
        self._agreed = self._signum
        if world_size() > 1:
            values = torch.tensor([self._signum, due, step_us], device=self._device)
            dist.all_reduce(values, dist.ReduceOp.MAX)
            self._agreed, due, step_us = values.tolist()
        self._agreed_at = now
        self._steps = self._steps_left = max(1, int(1e6 * min(AGREE_S, self._interval_s) / step_us))
        return bool(due or self._agreed)

    def saved(self) -> None:
        """Note that the run is saved. Raise `Interrupted` if the processes agreed on a signal."""
        self._saved_at = time.monotonic()
        if self._agreed:
            print_once(f"the run is saved; to continue, run the same command {self._how}")
            raise Interrupted(self._agreed)
