"""A log: a text file with one JSON record per epoch.

This module does not import torch, so that `report.py` does not wait for it.
"""

import json
import os
from pathlib import Path

from .command_line import UserError
from .files import write_atomically


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
            UserError: the file can't be written.
        """
        try:
            with open(self.path, "a") as file:
                file.write(self._prefix + json.dumps(record) + "\n")
                file.flush()
                os.fsync(file.fileno())
        except OSError as error:
            raise UserError(
                f"{self.path} can't be written: {error.strerror}; free some space or choose "
                "another folder"
            ) from error

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
        lines = self.path.read_text("utf-8", "replace").splitlines(keepends=True)
        return [line for line in lines if line.startswith(self._prefix) and line.endswith("}\n")]

    def _record(self, line: str) -> dict:
        try:
            record = json.loads(line[len(self._prefix) :])
            return {**record, "epoch": int(record["epoch"])}
        except (ValueError, KeyError, TypeError) as error:
            raise UserError(f"{self.path}: not a record of a run: {line[:80]!r}") from error
