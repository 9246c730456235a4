"""The thread that reads batches ahead: order, memory, errors."""

import threading

import pytest
import torch

DEADLINE_S = 60  # of what another thread does; instead of a hang


class Reader:
    """Fills images with the number of the batch; counts the batches."""

    def __init__(self, fails_at=None):
        self.started = 0
        self._changed = threading.Condition()
        self._fails_at = fails_at

    def __call__(self, keys, images):
        with self._changed:
            self.started += 1
            self._changed.notify_all()
        if keys[0] == self._fails_at:
            raise ValueError("no such batch")
        images.fill_(keys[0])
        return torch.tensor(keys)

    def wait_until_started(self, count):
        with self._changed:
            assert self._changed.wait_for(lambda: self.started >= count, DEADLINE_S)


def batches(imagenet, read, sizes=(3, 3, 3, 3, 3, 3, 3, 2), depth=2):
    keys = [[number] * size for number, size in enumerate(sizes)]
    return imagenet.read_ahead.ReadAhead(keys, read, 4, depth, pinned=False)


def test_batches_come_in_order_and_stay_until_the_next_is_asked_for(imagenet):
    read = Reader()
    for number, (images, labels) in enumerate(batches(imagenet, read)):
        read.wait_until_started(min(number + 3, 8))  # the thread is as far ahead as it may be
        assert images.shape == (len(labels), 3, 4, 4) and images.dtype == torch.uint8
        assert images.is_contiguous(memory_format=torch.channels_last)
        assert (images == number).all() and labels.tolist() == [number] * len(labels)
    assert read.started == 8 and len(batches(imagenet, read)) == 8


def test_memory_is_used_again_also_after_a_smaller_batch(imagenet):
    loader = batches(imagenet, Reader(), sizes=(2, *[3] * 11), depth=1)
    for _ in range(2):
        seen = [images.data_ptr() for images, _ in loader]
        assert len(seen) == 12 and len(set(seen)) <= 4


def test_nothing_is_read_further_ahead(imagenet):
    read = Reader()
    iterator = iter(batches(imagenet, read))
    next(iterator)
    read.wait_until_started(3)
    iterator.close()
    assert read.started == 3


def test_an_error_of_the_thread_is_raised(imagenet):
    iterator = iter(batches(imagenet, Reader(fails_at=2)))
    assert [next(iterator)[1].tolist() for _ in range(2)] == [[0] * 3, [1] * 3]
    with pytest.raises(ValueError, match="no such batch"):
        next(iterator)
