"""A process that waits for others ends with a line when they can no longer be reached."""

import threading
import time

import pytest
import torch.distributed as dist

DEADLINE_S = 60


@pytest.fixture
def heartbeat(wrn, monkeypatch):
    """The module, with short intervals; `heartbeat.ended` is set instead of ending the process."""
    module = wrn.heartbeat
    module.ended = threading.Event()

    def leave(status):
        assert status == 2
        module.ended.set()

    monkeypatch.setattr(module, "leave", leave)
    monkeypatch.setattr(module, "INTERVAL_S", 0.01)
    monkeypatch.setattr(module, "SILENCE_S", 0.2)
    return module


class Gone(dist.HashStore):
    """A store whose machine can no longer be reached: it never answers again."""

    def __init__(self, answers):
        super().__init__()
        self._left = answers
        self.released = threading.Event()

    def add(self, key, amount):
        self._left -= 1
        if self._left < 0:
            self.released.wait(DEADLINE_S)
            raise RuntimeError("gone")
        return super().add(key, amount)


def test_a_silent_process_is_named(heartbeat, capfd):
    store = dist.HashStore()
    store.add("heartbeat of 2", 1)  # the only one
    with heartbeat.Heartbeat(store, 0, 4):
        for _ in range(DEADLINE_S * 100):
            store.add("heartbeat of 1", 1)  # process 3 has not started yet
            if heartbeat.ended.wait(0.01):
                break
    assert "error: no sign of life from process 2 of this run for 0 s" in capfd.readouterr().err


def test_a_store_that_does_not_answer_ends_the_process(heartbeat, capfd):
    store = Gone(answers=3)
    with heartbeat.Heartbeat(store, 1, 2):
        assert heartbeat.ended.wait(DEADLINE_S)
    store.released.set()
    assert "no sign of life from the other processes of this run" in capfd.readouterr().err


@pytest.mark.parametrize("own_rank", [0, 1])
def test_processes_that_beat_or_have_left_are_left_alone(heartbeat, own_rank):
    store = dist.HashStore()
    with heartbeat.Heartbeat(store, own_rank, 2):
        end = time.monotonic() + 3 * heartbeat.SILENCE_S
        while time.monotonic() < end:
            store.add(f"heartbeat of {1 - own_rank}", 1)
            time.sleep(0.001)
        assert int(store.add(f"heartbeat of {own_rank}", 0)) > 3
    assert not heartbeat.ended.wait(2 * heartbeat.SILENCE_S)


@pytest.mark.parametrize("own_rank", [0, 1])
def test_process_0_saves_first(wrn, heartbeat, own_rank):
    """Another process waits for it only."""
    store = dist.HashStore()
    store.add(f"heartbeat of {1 - own_rank}", 1)
    with wrn.signals.raise_signals(), heartbeat.Heartbeat(store, own_rank, 2):
        with wrn.signals.defer_signals():
            ended = heartbeat.ended.wait(DEADLINE_S if own_rank else 5 * heartbeat.SILENCE_S)
        assert ended == bool(own_rank)
        assert heartbeat.ended.wait(DEADLINE_S)
