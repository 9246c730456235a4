"""The life of a training run: start or resume, epochs, save, stop.

Keys of `checkpoint.pt`:
    format: version of this format.
    metadata: of the network: program, arch, classes and so on.
    options: of the command line.
    data: number of images, and a hash that tells data sets apart.
    model, ema: state dicts; `ema` is empty without a weight average.
    optimizer, scaler: state dicts; `scaler` is empty except in float16.
    step, epoch: numbers of finished steps and epochs.
    sums: of losses and correct predictions in the current epoch, over all processes.
    rng, processes: state of each process's random generator, which dropout uses; their number.
The learning rate and the order of the images are functions of the step.
"""

import time
from collections.abc import Callable, Sequence

import torch

from . import checkpoint
from .command_line import UserError, plural
from .distributed import barrier, gather, print_once, rank, world_size
from .engine import Trainer, TrainingBatches
from .evaluation import Batch, Scores
from .logs import Progress, RunLog, peak_memory_mib, train_record
from .options import TrainingConfig
from .preemption import Preemption
from .run_folder import CHECKPOINT, FORMAT, Run

SUMS = {"top1": 1, "losses": 1, "images": 0}  # dimensions of the sums in an epoch


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
    preemption: Preemption,
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


def save(run: Run, trainer: Trainer, metadata: dict, data: dict) -> None:
    """Save the run, in all processes together: none leaves before rank 0 has saved.

    Raises:
        UserError: a weight is not finite, or the file can't be written. The previous one is kept.
    """
    trainer.check_losses()
    sums, rng = trainer.sums.totals(), gather(generator(trainer.compute.device).get_state())
    if rank() == 0:
        checkpoint.save(
            run.folder / CHECKPOINT, content_of(run, trainer, metadata, data, sums, rng)
        )
    barrier()


def content_of(
    run: Run, trainer: Trainer, metadata: dict, data: dict, sums: dict, rng: list
) -> dict:
    """Return the content of a checkpoint. Raise `UserError` if a weight is not finite."""
    model = trainer.model.state_dict()
    if broken := [name for name, value in model.items() if not value.isfinite().all()]:
        raise UserError(
            f"not finite after step {trainer.step}: {checkpoint.abbreviate(broken)}; the previous "
            "checkpoint was kept; try a lower --lr"
        )
    return {
        "format": FORMAT,
        "metadata": metadata,
        "options": run.config.to_dict(),
        "data": data,
        "model": model,
        "ema": trainer.ema.module.state_dict() if trainer.ema else {},
        "optimizer": trainer.optimizer.state_dict(),
        "scaler": trainer.scaler.state_dict(),
        "step": trainer.step,
        "epoch": trainer.epoch,
        "sums": sums,
        "rng": rng,
        "processes": world_size(),
    }


def generator(device: torch.device) -> torch.Generator:
    """Return the default random generator of a device."""
    if device.type == "cuda":
        return torch.cuda.default_generators[device.index]
    return torch.default_generator


def resume(run: Run, trainer: Trainer, steps: int, data: dict) -> None:
    """Load the checkpoint of a run into the trainer; `steps` are those of an epoch.

    Raises:
        UserError: it does not fit the network, is damaged, or is of a run on other images.
    """
    saved, source = run.saved, run.source
    if saved["data"] != data:
        raise UserError(
            f"{source}: of a run on other images ({saved['data']}, now {data}); use the same ones, "
            "or start a new run in another folder"
        )
    checkpoint.load_weights(trainer.model, saved["model"], source)
    if trainer.ema:
        checkpoint.load_weights(trainer.ema.module, saved["ema"], source)
    checkpoint.load_optimizer(trainer.optimizer, saved["optimizer"], source)
    epoch, step, sums = saved["epoch"], saved["step"], saved["sums"]
    try:
        if not 0 <= epoch * steps <= step <= (epoch + 1) * steps:
            raise ValueError(f"step {step} of epoch {epoch + 1}")
        trainer.scaler.load_state_dict(saved["scaler"])
        if saved["processes"] == world_size():
            generator(trainer.compute.device).set_state(saved["rng"][rank()])
        finite = all(value.isfinite().all() for value in sums.values())
        if not finite or {name: value.ndim for name, value in sums.items()} not in ({}, SUMS):
            raise ValueError("sums of another form")
        # The saved sums are over all processes, so only rank 0 starts from them.
        trainer.sums.add(**{name: value * (rank() == 0) for name, value in sums.items()})
    except (RuntimeError, TypeError, ValueError, IndexError, AttributeError) as error:
        raise UserError(f"{source} is damaged ({error}); use another checkpoint") from error
    trainer.epoch, trainer.step = epoch, step
    done = plural(epoch, "epoch")
    if step > epoch * steps:
        done += f" and {step - epoch * steps} of {plural(steps, 'step')} of epoch {epoch + 1}"
    if step > run.config.epochs * steps:
        raise UserError(
            f"--epochs {run.config.epochs}: the run in {source} has {done} done; use "
            f"{-(-step // steps)} or more"
        )
    print_once(f"resumed from {source}: {done} done")
    if saved["processes"] != world_size():
        print_once(
            f"note: {plural(saved['processes'], 'process')} before, {world_size()} now; this "
            "changes the statistics of batch norm, and with them the results"
        )
