"""Helpers for tests that start processes."""

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
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


class RunServer:
    """Start a script in processes through forked_runs.py, which saves importing torch in each.

    Args:
        scripts: name of the script folder.
        folder: for the output of the processes.
    """

    def __init__(self, scripts: str, folder: Path):
        self._folder = folder
        self._server = subprocess.Popen(
            [sys.executable, Path(__file__).with_name("forked_runs.py"), scripts],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def _request(self, *request) -> int:
        print(json.dumps(request), file=self._server.stdin, flush=True)
        return int(self._server.stdout.readline())

    def start(self, argv: list[str], **variables: str) -> int:
        """Start the script; return its process ID."""
        return self._request("start", argv, str(self._folder / "output"), variables)

    def wait(self, pid: int, status: int = 0) -> str:
        """Wait for the process, which must exit with `status`; return the latest output."""
        actual, output = self._request("wait", pid), (self._folder / "output").read_text()
        assert actual == status, output
        return output

    def close(self) -> None:
        kill_descendants(self._server.pid)
        self._server.stdin.close()
        self._server.wait()
