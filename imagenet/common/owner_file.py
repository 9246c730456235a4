"""The lock for file systems without record locks: a file that names the process that made it."""

import contextlib
import os
import re
import socket
from pathlib import Path

from .command_line import UserError


class FolderLocked(UserError):
    """Another process has locked a folder."""


def create_owner_file(path: Path, flag: str) -> contextlib.ExitStack:
    """Create the file `path`, which names this process; return a context that removes it.

    A file whose process ran on this machine and has ended is replaced. `flag` is that of the
    folder, for messages.

    Raises:
        FolderLocked: another process owns the file, or may own it.
        OSError: the file can't be written.
    """
    own = process_name(os.getpid())
    try:
        with open(path, "x") as file:
            file.write(own)
    except FileExistsError:
        with contextlib.suppress(FileNotFoundError):  # its process has just ended
            remove_if_stale(path, flag)
        return create_owner_file(path, flag)
    lock = contextlib.ExitStack()
    lock.callback(remove_own, path, own)
    return lock


def process_name(pid: int) -> str:
    """Return the machine, the id and the start time of a process; nothing if it has ended.

    The start time tells it from a later process with the same id.
    """
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return ""
    except PermissionError:
        pass  # a process of another user
    state, start = "?", "?"
    with contextlib.suppress(OSError):  # only Linux has these files
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        state, start = fields[0], fields[19]
    return "" if state == "Z" else f"{socket.gethostname()} {pid} {start}"


def remove_if_stale(path: Path, flag: str) -> None:
    """Remove the file if its process ran on this machine and has ended, otherwise raise."""
    owner = path.read_text()
    match = re.fullmatch(r"(\S+) ([1-9]\d{0,8}) (\S+)", owner)
    host, pid = match.groups()[:2] if match else ("an unknown machine", "?")
    if host != socket.gethostname():
        raise FolderLocked(
            f"{flag} {path.parent}: another run is writing there, process {pid} on {host}; wait "
            f"for it or choose another folder; if it has ended, remove {path}"
        )
    if process_name(int(pid)) == owner:
        raise FolderLocked(
            f"{flag} {path.parent}: another run is writing there, process {pid} on this machine; "
            "wait for it or choose another folder"
        )
    # Renamed first: if another process has replaced the file in the meantime, it is put back.
    grabbed = path.with_name(f"{path.name}.{os.getpid()}")
    os.rename(path, grabbed)
    if grabbed.read_text() != owner:
        with contextlib.suppress(FileExistsError):
            os.link(grabbed, path)
    grabbed.unlink()


def remove_own(path: Path, own: str) -> None:
    """Remove the file unless it is another process's by now."""
    with contextlib.suppress(OSError):
        if path.read_text() == own:
            path.unlink()
