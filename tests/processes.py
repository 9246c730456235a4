"""Helpers for tests that start processes."""

import contextlib
import os
import signal
import socket
from pathlib import Path


def free_ports(count: int) -> list[str]:
    """Return free ports of this machine."""
    listeners = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [str(listener.getsockname()[1]) for listener in listeners]
    for listener in listeners:
        listener.close()
    return ports


def child_processes(process: int) -> list[int]:
    """Return the IDs of the child processes of a process, on Linux."""
    children = []
    with contextlib.suppress(OSError):  # it may end meanwhile
        for path in Path(f"/proc/{process}/task").glob("*/children"):
            children += [int(word) for word in path.read_text().split()]
    return children


def kill_descendants(process: int) -> list[str]:
    """Kill all children of a process and theirs; return the command lines of those that ran."""
    killed = []
    for child in child_processes(process):
        killed += kill_descendants(child)
        with contextlib.suppress(OSError):
            command = Path(f"/proc/{child}/cmdline").read_bytes().replace(b"\0", b" ").decode()
            os.kill(child, signal.SIGKILL)
            killed += [command] * bool(command)  # a process that has ended has none
    return killed
