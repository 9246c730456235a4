"""Downloads with several processes: one on each machine."""

import time
from collections.abc import Callable, Sequence
from pathlib import Path

from .command_line import UserError, plural
from .distributed import local_rank
from .signals import check_signals

POLL_S = 0.2


def download_once(
    files: Sequence[Path], download: Callable[[], None], timeout_s: float = 7200
) -> None:
    """Make sure that files exist. The first process of the machine downloads missing ones.

    The other processes look for the files from time to time. A collective in which they waited
    would fail after a few minutes.

    Args:
        files: must appear only when they are complete.
        download: creates them, or raises `UserError`.
        timeout_s: after which a waiting process gives up.

    Raises:
        UserError: the files can't be downloaded, or did not appear in time.
    """
    if local_rank() == 0:
        if not all(file.is_file() for file in files):
            download()
        return
    deadline = time.monotonic() + timeout_s
    while missing := [file for file in files if not file.is_file()]:
        if time.monotonic() > deadline:
            raise UserError(
                f"{missing[0]}: not downloaded by the first process of this machine within "
                f"{plural(round(timeout_s / 60), 'minute')}; look for its own error message, or "
                "download the file before the run"
            )
        check_signals()
        time.sleep(POLL_S)
