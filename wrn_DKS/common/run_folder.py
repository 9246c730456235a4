"""The folder of a run: its lock, and its log with one JSON record per epoch."""

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
    """Create `folder` if necessary and lock it for this process while the block runs.

    Raises:
        UserError: the folder can't be written, or another run has locked it.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        # The lock file is never removed: that would race with the next process locking it.
        descriptor = os.open(folder / LOCK, os.O_WRONLY | os.O_CREAT, 0o666)
    except OSError as error:
        raise UserError(f"--save {folder}: can't be written ({error.strerror})") from error
    with os.fdopen(descriptor, "w") as lock:
        try:
            # A record lock, because child processes do not inherit it: a data-loading worker that
            # outlives a killed run for a few seconds must not keep the run from being resumed.
            fcntl.lockf(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise UserError(
                f"--save {folder}: another run is writing there; wait for it or choose "
                "another folder"
            ) from error
        yield


def refuse_run_file(flag: str, path: Path, folder: Path, log: str) -> None:
    """Raise `UserError` if `path` is one of the files that a run writes in `folder`."""
    if path.resolve() in [(folder / name).resolve() for name in (CHECKPOINT, LOCK, log)]:
        raise UserError(f"{flag} {path}: the run writes a file of this name; choose another name")


class Log:
    """A text file with one JSON record per line.

    Args:
        path: the file; it need not exist.
        prefix: what each line begins with. Other lines are ignored.
    """

    def __init__(self, path: Path, prefix: str = ""):
        self.path = path
        self._prefix = prefix

    def append(self, record: dict) -> None:
        """Append a record and flush it to disk. Its `epoch` is the number of finished epochs.

        Raises:
            OSError: the file can't be written.
        """
        with open(self.path, "a") as file:
            file.write(self._prefix + json.dumps(record) + "\n")
            file.flush()
            os.fsync(file.fileno())

    def truncate_after(self, epoch: int) -> None:
        """Remove the records of epochs after `epoch` and a partly written last line."""
        if not self.path.exists():
            return
        kept = "".join(line for line in self._lines() if self._record(line)["epoch"] <= epoch)
        write_atomically(self.path, lambda file: file.write(kept.encode()))

    def records(self) -> list[dict]:
        """Return all complete records.

        Raises:
            UserError: a line is not a record.
        """
        return [self._record(line) for line in self._lines()]

    def _lines(self) -> list[str]:
        lines = self.path.read_text().splitlines(keepends=True)
        return [line for line in lines if line.startswith(self._prefix) and line.endswith("}\n")]

    def _record(self, line: str) -> dict:
        try:
            record = json.loads(line[len(self._prefix) :])
            return {**record, "epoch": int(record["epoch"])}
        except (ValueError, KeyError, TypeError) as error:
            raise UserError(f"{self.path}: not a record of a run: {line[:80]!r}") from error
