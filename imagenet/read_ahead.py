"""Batches that a thread reads while the previous ones are used."""

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor

import torch
from torch import Tensor

Read = Callable[[Sequence, Tensor], Tensor]


class ReadAhead:
    """Batches of images and labels, read by one thread.

    The memory of a batch is used again after the next one has been asked for: fresh memory would
    take longer than what is copied into it. For a GPU it is pinned.

    Args:
        keys: of the images of each batch.
        read: fills a tensor (B, S, S, 3), uint8, with the images of B keys; returns their labels.
        image_size: S.
        depth: batches read ahead.
        pinned: whether the images are for a GPU.
    """

    def __init__(
        self, keys: Iterable[Sequence], read: Read, image_size: int, depth: int, pinned: bool
    ):
        self._keys = keys
        self._read = read
        self._size = image_size
        self._depth = depth
        self._pinned = pinned
        self._buffers: deque[Tensor] = deque(maxlen=depth + 1)

    def __len__(self) -> int:
        return len(self._keys)

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield images (B, 3, S, S), channels last, and labels (B,)."""
        pending: deque[Future] = deque()
        with ThreadPoolExecutor(1) as pool:
            try:
                for keys in self._keys:
                    pending.append(pool.submit(self._batch, keys, self._memory(len(keys))))
                    if len(pending) > self._depth:
                        yield pending.popleft().result()
                while pending:
                    yield pending.popleft().result()
            finally:
                for future in pending:
                    future.cancel()

    def _batch(self, keys: Sequence, images: Tensor) -> tuple[Tensor, Tensor]:
        labels = self._read(keys, images)
        return images.permute(0, 3, 1, 2), labels

    def _memory(self, count: int) -> Tensor:
        """Return memory for `count` images."""
        shape = (count, self._size, self._size, 3)
        if self._pinned:  # PyTorch itself uses it again, once the GPU has read it
            return torch.empty(shape, dtype=torch.uint8, pin_memory=True)
        full = len(self._buffers) == self._buffers.maxlen
        memory = self._buffers.popleft() if full else torch.empty(0)
        if len(memory) < count:
            memory = torch.empty(shape, dtype=torch.uint8)
        self._buffers.append(memory)
        return memory[:count]
