"""The folder of a run: locked, and never that of another run."""

import contextlib
import errno
import fcntl
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from . import checkpoint
from .command_line import UserError
from .distributed import barrier, print_once, rank
from .logs import LOG, JsonLog
from .options import TrainingConfig, from_checkpoint

CHECKPOINT, LOCK = "checkpoint.pt", "lock"
FORMAT = 2
KEYS = {  # of a checkpoint, described in `run.py`
    **dict.fromkeys(("format", "step", "epoch", "processes"), int),
    **dict.fromkeys(("metadata", "options", "data", "model", "ema", "optimizer"), dict),
    **dict.fromkeys(("scaler", "sums"), dict),
    "rng": list,
}


def checkpoint_path(path: Path) -> Path:
    """Return the path of a checkpoint that is given as the file or as the folder of its run."""
    return path / CHECKPOINT if path.is_dir() else path


@dataclass(frozen=True)
class Run:
    """A run in its locked folder."""

    config: TrainingConfig  # final
    folder: Path
    source: Path | None  # the checkpoint that is resumed
    saved: dict | None  # its content

    @property
    def is_finished(self) -> bool:
        return self.saved is not None and self.saved["epoch"] == self.config.epochs


@contextlib.contextmanager
def open_run(
    config: TrainingConfig,
    name: str,
    complete: Callable[[TrainingConfig], TrainingConfig],
) -> Iterator[Run]:
    """Lock the folder of a run and find the checkpoint to resume from.

    All processes must call it together. If the block fails before anything is written, the folder
    is left as it was.

    Args:
        config: options of the command line.
        name: of a new folder in ./logs, if none is given.
        complete: fills in the options that were neither given nor taken from a checkpoint.

    Raises:
        UserError: the folder is in use or holds another run, or there is no such checkpoint.
    """
    folder = config.save or new_folder(name)
    if config.save is None and config.checkpoint:
        folder = checkpoint_path(config.checkpoint).parent
    barrier()  # all processes have chosen it before it is created
    with lock_folder(folder) if rank() == 0 else contextlib.nullcontext():
        barrier()
        source = checkpoint_to_resume(config, folder)
        saved = load_run(source) if source else None
        if saved:
            config = from_checkpoint(config, saved["options"], source)
        yield Run(complete(replace(config, save=folder)), folder, source, saved)


def new_folder(name: str) -> Path:
    """Return `logs/name`, or `logs/name-2` and so on: the first that does not exist."""
    folder, number = Path("logs", name), 1
    while folder.exists():
        number += 1
        folder = Path("logs", f"{name}-{number}")
    return folder


@contextlib.contextmanager
def lock_folder(folder: Path) -> Iterator[None]:
    """Create `folder` if necessary and lock it while the block runs.

    Raises:
        UserError: the folder can't be written, or another run has locked it.
    """
    created = [each for each in (folder, *folder.parents) if not each.exists()]
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
                if os.listdir(folder) == [LOCK]:
                    (folder / LOCK).unlink()
                for each in created:
                    each.rmdir()  # fails if it is not empty
            raise


def checkpoint_to_resume(config: TrainingConfig, folder: Path) -> Path | None:
    """Return the checkpoint to resume from; None to start from scratch.

    Raises:
        UserError: there is no such checkpoint, or a run would be overwritten.
    """
    own = folder / CHECKPOINT
    given = config.checkpoint and checkpoint_path(config.checkpoint)
    if given and not given.is_file():
        problem = "no checkpoint in it yet" if config.checkpoint.is_dir() else "no such file"
        raise UserError(f"--resume {config.checkpoint}: {problem}")
    if own.exists() and config.resume == "auto":
        return own
    if given and (given.resolve() == own.resolve() or not own.exists()):
        return given
    epochs = len(JsonLog(folder / LOG).records()) if (folder / LOG).exists() else 0
    if own.exists() or epochs > 1:  # a run that was killed before its first save has one
        lost = "" if own.exists() else f", whose {CHECKPOINT} is missing"
        raise UserError(
            f"--save {folder}: already contains a run{lost}; resume it with --resume auto, or "
            "choose another folder"
        )
    return None


def load_run(path: Path) -> dict:
    """Load the checkpoint of a run. Raise `UserError` if the file is not one."""
    content = checkpoint.load(path)
    checkpoint.require_keys(content, KEYS, path)
    if content["format"] != FORMAT:
        raise UserError(
            f"{path}: expected checkpoint format {FORMAT}, found {content['format']}; use the "
            "version of this code that wrote it"
        )
    return content
