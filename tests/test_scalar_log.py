"""TensorBoard scalars: what is written, and one line if the disk is full."""

import errno
import os
import threading

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.summary.writer import record_writer


def test_scalars_are_written_and_later_ones_hidden(wrn, tmp_path):
    first = wrn.scalar_log.ScalarLog(tmp_path, 1)
    for step in (1, 2, 3):
        first.write({"error": step / 4, "loss": float(step)}, step)
    first.close()
    resumed = wrn.scalar_log.ScalarLog(tmp_path, 3)
    resumed.write({"error": 8.0}, 3)
    resumed.close()
    events = EventAccumulator(str(tmp_path)).Reload()
    assert [(e.step, e.value) for e in events.Scalars("error")] == [(1, 0.25), (2, 0.5), (3, 8)]
    assert [e.step for e in events.Scalars("loss")] == [1, 2]


def test_a_full_disk_is_one_line(wrn, tmp_path, monkeypatch, capfd):
    """The thread of TensorBoard meets it first, and must not print its traceback too."""
    log = wrn.scalar_log.ScalarLog(tmp_path / "run", 1)

    def fail(*args):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(record_writer.RecordWriter, "write", fail)
    expected = "run: the file for TensorBoard can't be written: No space left on device; free some"
    with pytest.raises(wrn.command_line.UserError, match=expected):
        log.write({"error": 1.0}, 1)
    assert not capfd.readouterr().err


def test_errors_of_other_threads_are_still_printed(wrn, tmp_path, monkeypatch):
    printed = []
    monkeypatch.setattr(threading, "excepthook", printed.append)
    before = threading.excepthook
    log = wrn.scalar_log.ScalarLog(tmp_path, 1)
    for path in ("missing", "\0"):
        thread = threading.Thread(target=os.stat, args=(path,))
        thread.start()
        thread.join()
    assert [failure.exc_type for failure in printed] == [FileNotFoundError, ValueError]
    log.close()
    assert threading.excepthook == before
