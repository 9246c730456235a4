"""The folder of a run and its lock."""

import contextlib
import fcntl
import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TextIO

from .command_line import UserError

CHECKPOINT = "checkpoint.pt"
LOCK = "lock"
RUN_FILES = (CHECKPOINT, LOCK, "log.txt", "log.jsonl")


def new_run_folder(name: str) -> Path:
    """Return `logs/name`, or `logs/name-2` and so on: the first that holds nothing but a lock."""
    folder, number = Path("logs", name), 1
    while folder.exists() and any(path.name != LOCK for path in folder.iterdir()):
        number += 1
        folder = Path("logs", f"{name}-{number}")
    return folder


def checkpoint_path(path: Path) -> Path:
    """Return the path of a checkpoint that is given as the file or as the folder of its run."""
    return path / CHECKPOINT if path.is_dir() else path


@contextlib.contextmanager
def lock_run_folder(folder: Path) -> Iterator[None]:
    """Create `folder` if necessary and lock it for this process while the block runs.

    If the block fails before it writes anything, the folder is left as it was.

    Raises:
        UserError: the folder can't be written, or another run has locked it.
    """
    # The stack closes the lock after the cleanup, so that no other run can lock a removed file.
    with contextlib.ExitStack() as stack, remove_if_failed(folder, LOCK):
        stack.enter_context(open_lock(folder))
        yield


def open_lock(folder: Path) -> TextIO:
    """Open and lock the lock file; see `lock_run_folder`."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = open(folder / LOCK, "a")  # noqa: SIM115
    except OSError as error:
        raise UserError(f"--save {folder}: can't be written ({error.strerror})") from error
    try:
        # A record lock, because child processes do not inherit it: a data-loading worker that
        # outlives a killed run for a few seconds must not keep the run from being resumed.
        fcntl.lockf(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        is_current = os.path.samestat(os.fstat(lock.fileno()), os.stat(folder / LOCK))
    except FileNotFoundError:
        is_current = False
    except OSError as error:
        lock.close()
        raise UserError(
            f"--save {folder}: another run is writing there; wait for it or choose another folder"
        ) from error
    if is_current:
        return lock
    lock.close()  # a run that failed has removed it after it was opened here
    return open_lock(folder)


@contextlib.contextmanager
def remove_if_failed(folder: Path, name: str) -> Iterator[None]:
    """If the block fails and has created nothing but the file `name` in `folder`, remove it.

    The folder and its parents are removed too if they are new.
    """
    created = [each for each in (folder, *folder.parents) if not each.exists()]
    before = set(os.listdir(folder)) if folder.is_dir() else set()
    try:
        yield
    except BaseException:
        with contextlib.suppress(OSError):
            if set(os.listdir(folder)) - before == {name}:
                (folder / name).unlink()
            for each in created:
                each.rmdir()  # fails if it is not empty
        raise


def refuse_run_file(flag: str, path: Path, folder: Path, log: str) -> None:
    """Raise `UserError` if `path` is one of the files that a run writes in `folder`."""
    if path.resolve() in [(folder / name).resolve() for name in (CHECKPOINT, LOCK, log)]:
        raise UserError(f"{flag} {path}: the run writes a file of this name; choose another name")


def refuse_overwriting(flag: str, path: Path, inputs: Iterable[Path | None]) -> None:
    """Raise `UserError` if `path` is an input of the command, or a file of any run."""
    target = path.resolve()
    if target in [checkpoint_path(each).resolve() for each in inputs if each]:
        raise UserError(f"{flag} {path}: this command reads it; choose another name")
    if target.name in RUN_FILES and (target.parent / CHECKPOINT).exists():
        raise UserError(f"{flag} {path}: a file of a run; choose another name")
