"""Build the image cache of `train.py --cache DIR`; see `cache.py` for its files."""

import contextlib
import os
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

from torch.utils.data import DataLoader, Dataset

from cache import (
    FILES,
    LOCK,
    PIXELS,
    STATE,
    CacheState,
    describe_files,
    expected_state,
    partial_files,
    read_state,
    write_error,
)
from cache_checks import check, check_folder
from cached import read_from_cache
from common.command_line import UserError
from common.distributed import once_per_machine, print_once, rank
from common.files import sync_folder, write_atomically
from common.owner_file import FolderLocked
from common.progress import Bar, format_duration
from common.run_folder import open_lock
from common.signals import check_signals
from data import UNREADABLE, ImageSets
from workers import WorkerSignalGuard, worker_errors

CHUNK = 64  # images that a worker writes at a time
SAVE_S = 10  # seconds between two records of the progress, of which a kill loses the last
POLL_S = 1


def cached_sets(folder: Path, data: Path, sets: ImageSets, workers: int) -> ImageSets:
    """Return the images, read from the cache in `folder`, which is made if it is not there.

    All processes must call it together. One process of each machine makes or checks the cache.

    Args:
        folder: of the cache.
        data: contains the images.
        sets: the images.
        workers: processes that decode images, for each process of the run.

    Raises:
        UserError: the cache is not of these images, or can't be made.
    """
    processes = workers * int(os.environ.get("LOCAL_WORLD_SIZE", 1))
    once_per_machine(lambda: make_or_check(folder, data, sets, processes))
    print_once(f"the images are read from --cache {folder}")
    return read_from_cache(folder, sets)


def make_or_check(folder: Path, data: Path, sets: ImageSets, processes: int) -> None:
    """Make the cache in `folder`, or check that it is of these images."""
    lines = describe_files(data, sets)
    expected = expected_state(lines, sets)
    if not (folder / PIXELS).exists():
        check_folder(folder, expected)
        with wait_for_lock(folder):
            if not (folder / PIXELS).exists():  # another run may just have made it
                build(folder, sets, expected, lines, processes)
    check(folder, expected, lines)


@contextlib.contextmanager
def wait_for_lock(folder: Path) -> Iterator[None]:
    """Lock the cache while the block runs. Wait for another process that has locked it."""
    waiting = False
    while True:
        try:
            lock = open_lock(folder, "--cache", LOCK)
            break
        except FolderLocked as error:
            if not waiting:
                print(f"waiting: {error}", flush=True)
            waiting = True
        check_signals()
        time.sleep(POLL_S)
    with lock:
        yield


def build(
    folder: Path, sets: ImageSets, expected: CacheState, lines: Sequence[str], processes: int
) -> None:
    """Make the cache, or the rest of one whose making was interrupted."""
    partial = folder / expected.partial_name()
    state = read_state(folder) if partial.exists() else None
    try:
        if state is None or state.source() != expected.source():
            if old := partial_files(folder):
                reason = f"it is of other images, options or another version, or without {STATE}"
                print(f"--cache {folder}: begun again, because {reason}", flush=True)
            for path in old:
                path.unlink()
            state = expected
            write_atomically(folder / FILES, lambda file: file.write("\n".join(lines).encode()))
            state.write(folder)
        elif state.written:
            print(f"--cache {folder}: continued after {state.written:,} images", flush=True)
        # Not truncated: what has been written stays.
        with open(os.open(partial, os.O_RDWR | os.O_CREAT, 0o666), "rb+") as file:
            file.truncate(expected.offset(expected.count))
            write_images(partial, sets, state, processes)
        os.replace(partial, folder / PIXELS)
        sync_folder(folder)
    except OSError as error:
        raise write_error(folder, error) from error


def write_images(path: Path, sets: ImageSets, state: CacheState, processes: int) -> None:
    """Write the remaining images with worker processes; save the progress from time to time."""
    progress = BuildProgress(path, state)
    chunks = Chunks(path, sets, state)
    with progress, worker_errors(), WorkerSignalGuard() as guard:
        loader = DataLoader(
            chunks,
            batch_size=None,
            sampler=range(state.written, state.count, CHUNK),
            num_workers=processes,
            worker_init_fn=guard,
        )
        for unreadable in loader:
            progress.add(unreadable)
            check_signals()


class Chunks(Dataset):
    """Writes a part of the images when it is asked for it.

    Args:
        path: of the file, which exists.
        sets: the images.
        state: of the cache.
    """

    def __init__(self, path: Path, sets: ImageSets, state: CacheState):
        self._path = path
        self._sets = sets
        self._state = state

    def __getitem__(self, start: int) -> list[int]:
        """Write the images from `start` on; return the indices of those that can't be read."""
        state, unreadable, content = self._state, [], []
        stop = min(start + CHUNK, state.count)
        for index in range(start, stop):
            is_train = index < state.train
            files = self._sets.train if is_train else self._sets.validation
            image, label = files[index if is_train else index - state.train]
            if label == UNREADABLE:
                unreadable.append(index)
            content.append(image.permute(1, 2, 0).contiguous().numpy().tobytes())
        try:
            self._write(start, b"".join(content))
        except OSError as error:
            raise write_error(self._path.parent, error) from error
        return unreadable

    def _write(self, start: int, content: bytes) -> None:
        with open(self._path, "rb+") as file:
            file.seek(self._state.offset(start))
            file.write(content)


class BuildProgress:
    """Shows how many images are written, and saves it in the cache's state.

    Args:
        path: of the file that receives them.
        state: at the start.
    """

    def __init__(self, path: Path, state: CacheState):
        self._path = path
        self._state = state
        hidden = None if rank() == 0 else True  # None: hidden unless there is a terminal
        self._bar = Bar(
            total=state.count, initial=state.written, desc="caching images", disable=hidden
        )
        self._start, self._saved = time.monotonic(), time.monotonic()
        self._first = state.written

    def __enter__(self) -> "BuildProgress":
        return self

    def __exit__(self, kind, error, traceback) -> None:
        self._bar.close()
        # After an error, saving it may fail for the same reason, which is reported already.
        with contextlib.suppress(*[OSError, UserError] if error else []):
            self._save()

    def add(self, unreadable: Sequence[int]) -> None:
        """Count a chunk of images."""
        written = min(self._state.written + CHUNK, self._state.count)
        unreadable = (*self._state.unreadable, *unreadable)
        self._state = replace(self._state, written=written, unreadable=unreadable)
        now = time.monotonic()
        rate = (written - self._first) / (now - self._start)
        left = format_duration((self._state.count - written) / rate)
        self._bar.statuses = (f" {rate:.0f} img/s, {left} left", f" {left} left")
        self._bar.update(written - self._bar.n)
        if now - self._saved > SAVE_S:
            self._save()
            self._saved = now

    def _save(self) -> None:
        """Save the progress, once the images are on the disk."""
        with open(self._path, "rb+") as file:
            os.fsync(file.fileno())
        self._state.write(self._path.parent)
