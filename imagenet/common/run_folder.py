"""The folder of a run and its lock."""

import contextlib
import errno
import fcntl
import os
from collections.abc import Iterable, Iterator
from pathlib import Path

from .command_line import UserError
from .owner_file import FolderLocked, create_owner_file

CHECKPOINT = "checkpoint.pt"
LOCK = "lock"
OWNER = f"{LOCK}.owner"  # on file systems without record locks
RUN_FILES = (CHECKPOINT, LOCK, OWNER, "log.txt", "log.jsonl")
NO_LOCKS = (errno.ENOSYS, errno.ENOLCK, errno.ENOTSUP, errno.EOPNOTSUPP)


def new_run_folder(name: str) -> Path:
    """Return `logs/name`, or `logs/name-2` and so on: the first that holds nothing but a lock."""
    folder, number = Path("logs", name), 1
    while folder.exists() and any(path.name not in (LOCK, OWNER) for path in folder.iterdir()):
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
    with contextlib.ExitStack() as stack, remove_if_failed(folder, LOCK, OWNER):
        stack.enter_context(open_lock(folder))
        yield


def open_lock(
    folder: Path, flag: str = "--save", name: str = LOCK
) -> contextlib.AbstractContextManager:
    """Create `folder` if necessary, open its lock file `name` and lock it.

    Args:
        folder: to lock.
        flag: with which the folder is given, for messages.
        name: of the file.

    Raises:
        FolderLocked: another process has locked the folder.
        UserError: the folder can't be written.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = open(folder / name, "a")  # noqa: SIM115
    except OSError as error:
        raise UserError(f"{flag} {folder}: can't be written ({error.strerror})") from error
    try:
        # A record lock, because child processes do not inherit it: a data-loading worker that
        # outlives a killed run for a few seconds must not keep the run from being resumed.
        fcntl.lockf(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        is_current = os.path.samestat(os.fstat(lock.fileno()), os.stat(folder / name))
    except FileNotFoundError:
        is_current = False
    except OSError as error:
        lock.close()
        if error.errno in NO_LOCKS:
            return open_owner_file(folder, flag, f"{name}.owner", error)
        if error.errno not in (errno.EACCES, errno.EAGAIN):
            raise UserError(f"{flag} {folder}: can't be locked ({error.strerror})") from error
        raise FolderLocked(
            f"{flag} {folder}: another run is writing there; wait for it or choose another folder"
        ) from error
    if is_current:
        return lock
    lock.close()  # a run that failed has removed it after it was opened here
    return open_lock(folder, flag, name)


def open_owner_file(
    folder: Path, flag: str, name: str, reason: OSError
) -> contextlib.AbstractContextManager:
    """Lock the folder with a file of its own, because its file system has no record locks."""
    try:
        lock = create_owner_file(folder / name, flag)
    except OSError as error:
        raise UserError(f"{flag} {folder}: can't be written ({error.strerror})") from error
    print(
        f"warning: {flag} {folder}: its file system has no record locks ({reason.strerror}); the "
        f"file {name} locks it instead",
        flush=True,
    )
    return lock


@contextlib.contextmanager
def remove_if_failed(folder: Path, *names: str) -> Iterator[None]:
    """If the block fails and has created nothing but files of these names in `folder`, remove them.

    The folder and its parents are removed too if they are new.
    """
    created = [each for each in (folder, *folder.parents) if not each.exists()]
    before = set(os.listdir(folder)) if folder.is_dir() else set()
    try:
        yield
    except BaseException:
        with contextlib.suppress(OSError):
            new = set(os.listdir(folder)) - before
            if new <= set(names):
                for name in new:
                    (folder / name).unlink()
            for each in created:
                each.rmdir()  # fails if it is not empty
        raise


def refuse_run_file(flag: str, path: Path, folder: Path, log: str) -> None:
    """Raise `UserError` if `path` is one of the files that a run writes in `folder`."""
    if path.resolve() in [(folder / name).resolve() for name in (CHECKPOINT, LOCK, OWNER, log)]:
        raise UserError(f"{flag} {path}: the run writes a file of this name; choose another name")


def refuse_overwriting(flag: str, path: Path, inputs: Iterable[Path | None]) -> None:
    """Raise `UserError` if `path` is an input of the command, or a file of any run."""
    target = path.resolve()
    if target in [checkpoint_path(each).resolve() for each in inputs if each]:
        raise UserError(f"{flag} {path}: this command reads it; choose another name")
    if target.name in RUN_FILES and (target.parent / CHECKPOINT).exists():
        raise UserError(f"{flag} {path}: a file of a run; choose another name")
