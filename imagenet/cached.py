"""Image files whose decoded and resized pixels are in a cache, and batches of them."""

import contextlib
import faulthandler
import os
import resource
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import torch
from torch import Tensor

from augmentation import RandomCrop
from cache import PIXELS, open_pixels
from common.command_line import UserError
from data import UNREADABLE, ImageFiles, ImageSets
from read_ahead import ReadAhead

FLIPPED_BYTES = 2**20  # flipped at a time, which stay in the CPU's cache


class CachedFiles(ImageFiles):
    """Image files that are read from a cache.

    Args:
        files: the image files.
        source: images.bin.
        pixels: (N, H, W, 3) uint8, their transformed images, in memory that is mapped to it.
        unreadable: indices of the files that could not be read when the cache was made.
    """

    def __init__(
        self, files: ImageFiles, source: Path, pixels: Tensor, unreadable: Sequence[int] = ()
    ):
        super().__init__(files.paths, files.labels, files.transform, files.skip_unreadable)
        self.source = source
        self.pixels = pixels
        self.batch_labels = torch.as_tensor(files.labels).clone()
        self.batch_labels[list(unreadable)] = UNREADABLE

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return self.pixels[index].permute(2, 0, 1), int(self.batch_labels[index])

    def batches(self, indices: Iterable[range], depth: int, pinned: bool) -> ReadAhead:
        """Return the batches of these ranges of images; see `ReadAhead`."""
        return ReadAhead(indices, self._read, self.pixels.shape[1], depth, pinned)

    def _read(self, indices: range, images: Tensor) -> Tensor:
        part = slice(indices.start, indices.stop)
        images.copy_(self.pixels[part])
        return self.batch_labels[part]


class ReadAdvice:
    """Asks the system for all images of a batch at once, if they are not in memory.

    Otherwise it reads a part of one image at a time, when its memory is touched: with memory for a
    half of the file, 190 images per second instead of 3,500. If the file is in memory, asking takes
    a sixth of the time of reading; so each epoch starts without it.

    Args:
        path: of images.bin.
        image_bytes: size of a square.
    """

    def __init__(self, path: Path, image_bytes: int):
        self._file = open(path, "rb")  # noqa: SIM115
        self._image_bytes = image_bytes
        self._epoch = -1
        self._needed = False

    @contextlib.contextmanager
    def reading(self, keys: Sequence[tuple[int, int]]) -> Iterator[None]:
        """Ask for the images of these keys (epoch, index), if necessary; the block reads them."""
        if keys[0][0] != self._epoch:
            self._epoch, self._needed = keys[0][0], False
        if self._needed:
            for _, index in keys:
                start = index * self._image_bytes
                os.posix_fadvise(
                    self._file.fileno(), start, self._image_bytes, os.POSIX_FADV_WILLNEED
                )
        before = disk_reads()
        yield
        if disk_reads() - before > len(keys) / 8 and hasattr(os, "posix_fadvise"):  # not on macOS
            self._needed = True


def disk_reads() -> int:
    """Return how often this process has waited for the disk when it touched memory."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_majflt


class CachedCrops:
    """Random crops of cached squares: those of `AugmentedDataset`, a batch at a time.

    Args:
        files: the squares.
        random_part: gives the position and the flip of each crop.
    """

    def __init__(self, files: CachedFiles, random_part: RandomCrop):
        self._labels = files.batch_labels
        self._random_part = random_part
        self._size = files.transform.image_size
        self._side = files.pixels.shape[1]
        self._advice = ReadAdvice(files.source, files.pixels[0].numel())
        # Every row of every crop is a window of the bytes. They overlap, which costs no memory.
        flat, width = files.pixels.view(-1), 3 * self._size
        self._windows = flat.as_strided((len(flat) - width + 1, width), (1, 1))

    def batches(
        self, keys: Iterable[Sequence[tuple[int, int]]], depth: int, pinned: bool
    ) -> ReadAhead:
        """Return the batches of these keys (epoch, index); see `ReadAhead`."""
        return ReadAhead(keys, self._read, self._size, depth, pinned)

    def _read(self, keys: Sequence[tuple[int, int]], images: Tensor) -> Tensor:
        indices = torch.tensor([index for _, index in keys])
        top, left, flip = self._random_part.draws(keys[0][0])[indices].long().unbind(1)
        first_row = 3 * ((indices * self._side + top) * self._side + left)
        rows = first_row[:, None] + 3 * self._side * torch.arange(self._size)
        crops = images.view(-1, 3 * self._size)
        with self._advice.reading(keys):
            torch.index_select(self._windows, 0, rows.flatten(), out=crops)
        for part in flip.nonzero()[:, 0].split(max(1, FLIPPED_BYTES // images[0].numel())):
            # NumPy copies whole images; PyTorch's index_copy_ copies byte by byte.
            images.numpy()[part.numpy()] = images.index_select(0, part).flip(2).numpy()
        return self._labels[indices]


def read_from_cache(folder: Path, sets: ImageSets) -> ImageSets:
    """Return the same images, read from the complete cache in `folder`.

    Raises:
        UserError: the cache can't be read, or a training image could not be read when it was made
            and is not to be skipped.
    """
    state, pixels = open_pixels(folder)
    # If the file is truncated, or the disk fails, the system ends the process with SIGBUS. No
    # exception can be raised then, but this prints what the process was reading.
    if not faulthandler.is_enabled():
        with contextlib.suppress(RuntimeError, OSError, AttributeError):  # no standard error
            faulthandler.enable()
    if state.unreadable and not sets.train.skip_unreadable:
        raise UserError(
            f"{sets.train.paths[state.unreadable[0]]}: could not be read when --cache {folder} was "
            f"made; use --skip-unreadable, or replace the image and delete "
            f"{folder / PIXELS}"
        )
    end = state.offset(state.train)
    squares = pixels[:end].view(-1, state.side, state.side, 3)
    crops = pixels[end:].view(-1, state.image_size, state.image_size, 3)
    return sets._replace(
        train=CachedFiles(sets.train, folder / PIXELS, squares, state.unreadable),
        validation=CachedFiles(sets.validation, folder / PIXELS, crops),
    )
