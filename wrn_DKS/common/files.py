"""Files that are replaced in one step."""

import contextlib
import os
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO

from .command_line import UserError, one_line
from .signals import defer_signals


def write_atomically(path: Path, write: Callable[[BinaryIO], object]) -> None:
    """Write a file so that `path` always holds either the old or the new version.

    Termination signals are deferred until the file is written: torch's zip writer would turn the
    exception of a signal handler into a RuntimeError.

    Args:
        path: file to create or replace.
        write: writes the content to the open file.

    Raises:
        UserError: the file can't be written, for example because the disk is full. An existing
            file is left untouched.
    """
    temporary = path.with_name(path.name + ".tmp")
    try:
        with defer_signals():
            with open(temporary, "wb") as file:
                write(file)
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, path)
            sync_folder(path.parent)
    except (OSError, RuntimeError) as error:
        # torch's zip writer raises a RuntimeError of its own after an OSError.
        is_second = isinstance(error, RuntimeError) and isinstance(error.__context__, OSError)
        cause = error.__context__ if is_second else error
        kept = "the previous version is intact; " if path.exists() else ""
        raise UserError(
            f"{path} can't be saved: {one_line(cause, 150)}; {kept}"
            "free some space or choose another folder"
        ) from error
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)


def sync_folder(folder: Path) -> None:
    """Flush a folder's entries to disk, so that a rename in it survives a power failure."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
