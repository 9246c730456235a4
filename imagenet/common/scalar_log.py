"""TensorBoard scalars of a run."""

import threading
from pathlib import Path

from .command_line import UserError


class ScalarLog:
    """Write scalars to a file that TensorBoard reads.

    TensorBoard writes the file in a thread. If that fails, the thread prints a traceback before the
    next call here can raise the error, and a full disk would be reported twice. Until `close`, this
    class therefore hides such tracebacks.

    Args:
        folder: of the run.
        step: existing scalars from this step on are hidden.
    """

    def __init__(self, folder: Path, step: int):
        # Imported here because it takes seconds and only process 0 needs it.
        from torch.utils.tensorboard import SummaryWriter

        self._folder = folder
        self._excepthook = threading.excepthook
        threading.excepthook = self._report_thread
        try:
            self._writer = SummaryWriter(folder, purge_step=step)
        except OSError as error:
            raise self._failure(error) from error

    def write(self, scalars: dict[str, float], step: int) -> None:
        """Write values by tag and flush them to disk.

        Raises:
            UserError: the file can't be written.
        """
        try:
            for tag, value in scalars.items():
                self._writer.add_scalar(tag, value, step)
            self._writer.flush()
        except OSError as error:
            raise self._failure(error) from error

    def close(self) -> None:
        """Close the file, to which everything has been written."""
        self._writer.close()
        threading.excepthook = self._excepthook

    def _failure(self, error: OSError) -> UserError:
        return UserError(
            f"{self._folder}: the file for TensorBoard can't be written: {error.strerror}; free "
            "some space or choose another folder"
        )

    def _report_thread(self, failure: threading.ExceptHookArgs) -> None:
        """Report the exception of a thread, unless `write` is going to raise it."""
        is_of_tensorboard = type(failure.thread).__module__.partition(".")[0] == "tensorboard"
        if not (is_of_tensorboard and issubclass(failure.exc_type, OSError)):
            self._excepthook(failure)
