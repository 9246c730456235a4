"""Refuse a cache of `train.py --cache DIR` that is not of its images, or a disk without space."""

import contextlib
import os
from itertools import zip_longest
from pathlib import Path

from cache import (
    FILES,
    FORMAT,
    LOCK,
    PIXELS,
    RESIZE,
    STATE,
    CacheState,
    partial_files,
    read_state,
    write_error,
)
from common.command_line import UserError


def check(folder: Path, expected: CacheState, lines: list[str]) -> None:
    """Raise `UserError` unless the cache in `folder` is complete, undamaged and of these images.

    Args:
        folder: contains images.bin.
        expected: state before anything is written.
        lines: of files.txt.
    """
    remedy = f"choose another folder, or delete {folder / PIXELS}, which is then made anew"
    state = read_state(folder)
    if state is None:
        raise UserError(f"--cache {folder}: {STATE} is missing or damaged; {remedy}")
    size = (folder / PIXELS).stat().st_size
    if (state.format, state.resize) != (FORMAT, RESIZE):
        problem = "made by another version of this program"
    elif (state.written, size) != (state.count, state.offset(state.count)):
        problem = f"damaged: {PIXELS} has {size:,} bytes, not {state.offset(state.count):,}"
    elif state.image_size != expected.image_size:
        problem = f"made for --image-size {state.image_size}, not {expected.image_size}"
    elif state.source() != expected.source():
        problem = f"out of date: {describe_change(folder, lines)}"
        if state.count != expected.count:
            problem += f" ({state.count:,} images, now {expected.count:,})"
    else:
        return
    raise UserError(f"--cache {folder}: {problem}; {remedy}")


def describe_change(folder: Path, lines: list[str]) -> str:
    """Return the first difference between the image files and those that a cache was made from."""
    try:
        text = (folder / FILES).read_bytes().decode("utf-8", "surrogateescape")
    except OSError:
        return f"made from other files, and {FILES} is missing"
    for old, new in zip_longest(text.split("\n"), lines, fillvalue="? ? nothing"):
        if old != new:
            (*_, was), (*_, name) = old.split(" ", 2), new.split(" ", 2)
            if was == name:
                return f"{name} has changed since it was made"
            return f"it has {was} where there is {name} now"
    return f"made from other files, and {FILES} is damaged"


def check_folder(folder: Path, expected: CacheState) -> None:
    """Print the size of a cache that is to be made.

    Raises:
        UserError: the folder holds something else, or the disk is too small.
    """
    try:
        names = {path.name for path in folder.iterdir()} if folder.is_dir() else set()
    except OSError as error:
        raise write_error(folder, error) from error
    others = sorted(names - {"lost+found"})  # a disk of its own has that
    if others and not any(name.startswith((LOCK, STATE)) for name in others):
        raise UserError(
            f"--cache {folder}: has other files, such as {others[0]}; choose a new folder"
        )
    require_space(folder, expected)


def require_space(folder: Path, expected: CacheState) -> None:
    """Print the size of the cache. Raise `UserError` if the disk is too small for it."""
    existing = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    disk = os.statvfs(existing)
    free = disk.f_bavail * disk.f_frsize
    for path in partial_files(folder):  # of builds that were interrupted
        with contextlib.suppress(OSError):
            free += path.stat().st_blocks * 512
    size = expected.offset(expected.count)
    print(
        f"--cache {folder}: {expected.count:,} images take {describe_size(size)}, and "
        f"{describe_size(free)} are free",
        flush=True,
    )
    if size > free:
        raise UserError(
            f"--cache {folder}: {expected.count:,} images take {describe_size(size)}, but only "
            f"{describe_size(free)} are free there; choose a folder on a larger disk, or train "
            "without --cache"
        )


def describe_size(count: int) -> str:
    """Return a number of bytes as text, such as `252.1 GB`."""
    return f"{count / 1e9:,.1f} GB" if count >= 1e8 else f"{count / 1e6:,.1f} MB"
