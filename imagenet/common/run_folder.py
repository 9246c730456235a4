"""The folder of a run: locked, never that of another run, and its checkpoint.

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

import contextlib
import errno
import fcntl
from collections.abc import Callable, Iterator, Sized
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from . import checkpoint
from .command_line import UserError, plural
from .distributed import barrier, gather, print_once, rank, world_size
from .engine import Trainer
from .logs import LOG, read_log
from .options import TrainingConfig, from_checkpoint

CHECKPOINT, LOCK = "checkpoint.pt", "lock"
KEYS = {"rng": list} | dict.fromkeys("format step epoch processes".split(), int)
KEYS |= dict.fromkeys("metadata options data model ema optimizer scaler sums".split(), dict)
SUMS = {"top1": 1, "losses": 1, "images": 0}  # dimensions of the sums in an epoch


def checkpoint_path(path: Path) -> Path:
    """Return the path itself or, for the folder of a run, that of its checkpoint."""
    if path.is_dir() and not (path / CHECKPOINT).exists():
        raise UserError(f"{path}: no {CHECKPOINT} in it yet; give a run or an export, or a file")
    return path / CHECKPOINT if path.is_dir() else path


@dataclass(frozen=True)
class Run:
    """A run in its locked folder."""

    config: TrainingConfig  # final
    folder: Path
    source: Path | None  # the checkpoint that is resumed
    saved: dict | None  # its content; after `resume`, without the weights

    @property
    def is_finished(self) -> bool:
        done = self.saved is not None and self.saved["epoch"] == self.config.epochs
        return done and not self.saved["sums"]  # of a further epoch


@contextlib.contextmanager
def open_run(
    config: TrainingConfig, complete: Callable[[TrainingConfig], TrainingConfig], program: str
) -> Iterator[Run]:
    """Lock the folder of a run and find the checkpoint to resume from.

    All processes must call it together. If the block fails before anything is written, the folder
    is left as it was.

    Args:
        config: options of the command line.
        complete: fills in the options that were neither given nor taken from a checkpoint.
        program: which writes its name into its checkpoints.

    Raises:
        UserError: the folder is in use or holds another run, or there is no such checkpoint.
    """
    if config.resume == "auto" and config.save is None:
        raise UserError("--resume auto requires --save DIR, the folder of the run")
    folder = config.save or new_folder(f"{config.arch}-{config.method}-seed{config.seed}")
    if config.save is None and config.checkpoint:
        folder = checkpoint_path(config.checkpoint).parent
    barrier()  # all processes have chosen it before it is created
    with lock_folder(folder) if rank() == 0 else contextlib.nullcontext():
        barrier()
        source = checkpoint_to_resume(config, folder)
        saved = checkpoint.load(source) if source else None
        if saved:
            checkpoint.require_keys(saved, KEYS, source)
            if (other := saved["metadata"].get("program", program)) != program:
                raise UserError(f"{source}: a run of {other}/; resume it there")
            config = from_checkpoint(config, saved["options"], source)
        run = Run(complete(replace(config, save=folder)), folder, source, saved)
        if run.is_finished:
            done = plural(run.config.epochs, "epoch")
            print_once(f"{source}: the run of {done} is already finished")
        yield run


def new_folder(name: str) -> Path:
    """Return `logs/name`, or `logs/name-2` and so on: the first that does not exist."""
    folder, number = Path("logs", name), 1
    while folder.exists():
        number += 1
        folder = Path("logs", f"{name}-{number}")
    return folder


@contextlib.contextmanager
def lock_folder(folder: Path) -> Iterator[None]:
    """Create `folder` if necessary and lock it while the block runs, or raise `UserError`."""
    created = [each for each in (folder, *folder.parents) if not each.exists()]
    new = not (folder / LOCK).exists()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = open(folder / LOCK, "a")  # noqa: SIM115
    except OSError as error:
        raise UserError(f"--save {folder}: can't be written ({error.strerror})") from error
    with lock:
        try:
            # A record lock, which child processes do not inherit: a data-loading worker that
            # outlives a killed run for a few seconds must not keep it from being resumed.
            fcntl.lockf(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno in (errno.EACCES, errno.EAGAIN):
                raise UserError(
                    f"--save {folder}: another run is writing there; choose another folder"
                ) from error
            print_once(f"warning: {folder} can't be locked ({error.strerror})")
        try:
            yield
        except BaseException:
            with contextlib.suppress(OSError):
                if new and not (folder / CHECKPOINT).exists():
                    (folder / LOCK).unlink()
                for each in created:
                    each.rmdir()  # fails if it is not empty
            raise


def checkpoint_to_resume(config: TrainingConfig, folder: Path) -> Path | None:
    """Return the checkpoint to resume from; None to start from scratch.

    It is a `UserError` if there is no such checkpoint, or if a run would be overwritten.
    """
    own = folder / CHECKPOINT
    given = config.checkpoint and checkpoint_path(config.checkpoint)
    if given and not given.is_file():
        raise UserError(f"--resume {given}: no such file")
    if own.exists() and config.resume == "auto":
        return own
    if given and (given.resolve() == own.resolve() or not own.exists()):
        return given
    epochs = len(read_log(folder / LOG)) if (folder / LOG).exists() else 0
    if own.exists() or epochs > 1:  # a run that was killed before its first save has one
        lost = "" if own.exists() else f", whose {CHECKPOINT} is missing"
        raise UserError(
            f"--save {folder}: already contains a run{lost}; resume it with --resume auto, or "
            "choose another folder"
        )
    return None


def save(run: Run, trainer: Trainer, metadata: dict, data: dict) -> None:
    """Save the run, in all processes together: none leaves before rank 0 has saved.

    If a weight is not finite, it is a `UserError`, and the previous checkpoint is kept.
    """
    trainer.check_losses()
    sums, rng = trainer.sums.totals(), gather(generator(trainer.compute.device).get_state())
    if rank() == 0:
        model = trainer.model.state_dict()
        if broken := [name for name, value in model.items() if not value.isfinite().all()]:
            raise UserError(
                f"not finite after step {trainer.step}: {checkpoint.abbreviate(broken)}; this step "
                "is not saved; try a lower --lr"
            )
        content = {
            "format": checkpoint.FORMAT,
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
        checkpoint.save(run.folder / CHECKPOINT, content)
    barrier()


def describe_data(classes: Sized, train: Sized, test: Sized, identity: str) -> dict:
    """Return what tells data sets apart, for logs and checkpoints."""
    counts = {"classes": classes, "train_images": train, "test_images": test}
    return {name: len(each) for name, each in counts.items()} | {"identity": identity}


def generator(device: torch.device) -> torch.Generator:
    """Return the default random generator of a device."""
    if device.type == "cuda":
        return torch.cuda.default_generators[device.index]
    return torch.default_generator


def resume(run: Run, trainer: Trainer, steps: int, data: dict) -> None:
    """Load the checkpoint of a run into the trainer; `steps` are those of an epoch.

    If it does not fit, is damaged, or is of a run on other images, it is a `UserError`.
    """
    saved, source = run.saved, run.source
    if saved["data"] != data:
        before, now = (str(each).replace("'", "").strip("{}") for each in (saved["data"], data))
        advice = "use the same ones, or start a new run in another folder"
        raise UserError(f"{source}: of a run on other images ({before}; now {now}); {advice}")
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
            state, own = saved["rng"][rank()], generator(trainer.compute.device)
            if {len(state), len(own.get_state())} != {16, 5056}:  # one of a GPU, one of a CPU
                own.set_state(state)
        valid = all(each.dtype == torch.float64 and each.isfinite().all() for each in sums.values())
        if not valid or {name: value.ndim for name, value in sums.items()} not in ({}, SUMS):
            raise ValueError("sums of another form")
        # The saved sums are over all processes, so only rank 0 starts from them.
        trainer.sums.add(**{name: value * (rank() == 0) for name, value in sums.items()})
    except (RuntimeError, TypeError, ValueError, IndexError, AttributeError) as error:
        raise UserError(f"{source} is damaged ({error}); use another checkpoint") from error
    saved.update(model=None, ema=None, optimizer=None)  # frees their memory
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
        processes = f"{plural(saved['processes'], 'process')} before, {world_size()} now"
        print_once(f"note: {processes}; this changes the statistics of batch norm, and the results")
