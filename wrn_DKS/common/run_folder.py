"""The folder of one run: held by one process at a time, its log one JSON record an epoch."""

import contextlib
import fcntl
import json
import os
from collections.abc import Iterator
from pathlib import Path

from .checkpoint import write_atomically
from .command_line import UserError

CHECKPOINT = "checkpoint.pt"
LOCK = "lock"


@contextlib.contextmanager
def lock_run_folder(folder: Path) -> Iterator[None]:
    """Make `folder` if need be, and hold it for this process until the block ends.

    Raises:
        UserError: it can't be written, or another run holds it.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        # The file stays when the run ends: removing it would race with the next to lock it.
        descriptor = os.open(folder / LOCK, os.O_WRONLY | os.O_CREAT, 0o666)
    except OSError as error:
        raise UserError(f"--save {folder}: can't be written ({error.strerror})") from error
    with os.fdopen(descriptor, "w") as lock:
        try:
            # A record lock, which children don't inherit: a loader's worker that outlives a
            # killed run by some seconds must not keep the run from being resumed.
            fcntl.lockf(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise UserError(
                f"--save {folder}: another run is writing there; wait for it or choose "
                "another folder"
            ) from error
        yield


def refuse_own_file(flag: str, path: Path, folder: Path, log: str) -> None:
    """Refuse a path, however it is spelled, that is one of the run's own files in `folder`."""
    if path.resolve() in [(folder / name).resolve() for name in (CHECKPOINT, LOCK, log)]:
        raise UserError(f"{flag} {path}: the run's own file; choose another name")


class Log:
    """A file with one JSON record a line; `epoch` in it counts finished epochs."""

    def __init__(self, path: Path, prefix: str = ""):
        self.path = path
        self._prefix = prefix

    def append(self, record: dict) -> None:
        """Add a record and wait until it is on the disk.

        Raises:
            OSError: it can't be written.
        """
        with open(self.path, "a") as file:
            file.write(self._prefix + json.dumps(record) + "\n")
            file.flush()
            os.fsync(file.fileno())

    def truncate_after(self, epoch: int) -> None:
        """Drop what was logged after `epoch` finished epochs, and a line that was half written."""
        if not self.path.exists():
            return
        kept = "".join(line for line in self._lines() if self._record(line)["epoch"] <= epoch)
        write_atomically(self.path, lambda file: file.write(kept.encode()))

    def records(self) -> list[dict]:
        """Every whole record of the file."""
        return [self._record(line) for line in self._lines()]

    def _lines(self) -> list[str]:
        lines = self.path.read_text().splitlines(keepends=True)
        return [line for line in lines if line.startswith(self._prefix) and line.endswith("}\n")]

    def _record(self, line: str) -> dict:
        try:
            record = json.loads(line[len(self._prefix) :])
            return {**record, "epoch": int(record["epoch"])}
        except (ValueError, KeyError, TypeError) as error:
            raise UserError(
                f"{self.path}: a line of it is no record of a run: {line[:80]!r}"
            ) from error
