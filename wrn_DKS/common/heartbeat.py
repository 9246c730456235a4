"""Notice that another process can no longer be reached, and end this one.

A cut cable, or a machine that loses power, closes no connection. Collectives then wait until their
time limit, which must be long because one process may save the run while the others wait.
"""

import contextlib
import sys
import threading

import torch.distributed as dist

from .leaving import leave
from .signals import recorder

INTERVAL_S = 5.0
SILENCE_S = 60.0


class Heartbeat:
    """While the block runs, count up a key of the store, and watch those of the other processes.

    If another process, or the store itself, has been silent for `SILENCE_S` seconds, print a line
    and end this process with status 2. Process 0 first finishes what it is saving.

    Args:
        store: a connection that nothing else uses, because a call can block it.
        own_rank, count: rank of this process and number of processes.
    """

    def __init__(self, store: dist.Store, own_rank: int, count: int):
        self._store = store
        self._rank = own_rank
        self._keys = [f"heartbeat of {rank}" for rank in range(count)]
        self._beats = [0] * count  # of each process, as far as known here
        self._ended = threading.Event()

    def __enter__(self) -> "Heartbeat":
        # Two threads, because the first one waits without a limit if the store does not answer.
        for work in (self._exchange, self._watch):
            threading.Thread(target=work, daemon=True).start()
        return self

    def __exit__(self, *error) -> None:
        self._ended.set()

    def _exchange(self) -> None:
        with contextlib.suppress(RuntimeError):  # the store is gone, and stays silent
            while True:
                self._store.add(self._keys[self._rank], 1)
                self._beats = [self._store.add(key, 0) for key in self._keys]
                if self._ended.wait(INTERVAL_S):
                    return

    def _watch(self) -> None:
        # Intervals are counted instead of seconds: a process that was suspended must not take its
        # own silence for that of others. A process is watched from its first beat on.
        silent, before = [0] * len(self._keys), self._beats
        while not self._ended.wait(INTERVAL_S):
            beats = self._beats
            silent = [
                0 if new != old or not new else intervals + 1
                for intervals, new, old in zip(silent, beats, before, strict=True)
            ]
            before = beats
            lost = [rank for rank, each in enumerate(silent) if each * INTERVAL_S >= SILENCE_S]
            if lost and not (self._rank == 0 and recorder().protections):
                self._end(lost)

    def _end(self, lost: list[int]) -> None:
        """Name the processes that were lost, and end this one."""
        names = ", ".join(map(str, lost[:8])) + (" …" if len(lost) > 8 else "")
        who = "the other processes" if self._rank in lost else f"process {names}"
        print(
            f"error: no sign of life from {who} of this run for {SILENCE_S:.0f} s; check the "
            "machines and the network between them, then resume the run",
            file=sys.stderr,
        )
        leave(2)
