"""Signals that arrive in a finalizer, where Python swallows the exception of a signal handler."""

import gc
import os
import signal
import weakref

import tqdm


def send() -> None:
    os.kill(os.getpid(), signal.SIGTERM)  # Python calls the handler before this returns


class SendsWhenCollected:
    def __del__(self):
        send()


class Bar(tqdm.tqdm):
    def __del__(self):
        send()
        super().__del__()


def in_del() -> None:
    SendsWhenCollected()
    gc.collect()


def in_weakref_callback() -> None:
    class Target:
        pass

    target = Target()
    reference = weakref.ref(target, lambda _: send())
    del target
    gc.collect()
    assert reference() is None


def in_progress_bar() -> None:
    Bar(disable=True)
    gc.collect()


FINALIZERS = [in_del, in_weakref_callback, in_progress_bar]
