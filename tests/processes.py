"""Helpers for tests that start processes."""

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
from functools import cached_property
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


class ForkedPython:
    """Run scripts through forked_scripts.py, which saves importing torch in each process.

    Args:
        folder: for the output of the processes.
    """

    def __init__(self, folder: Path):
        self._folder = folder
        self._outputs: dict[int, list[Path]] = {}  # by process ID

    @cached_property
    def _server(self) -> subprocess.Popen:
        environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
        command, pipe = [sys.executable, Path(__file__).with_name("forked_scripts.py")], -1
        return subprocess.Popen(command, env=environment, stdin=pipe, stdout=pipe, text=True)

    def _request(self, *request) -> int:
        print(json.dumps(request), file=self._server.stdin, flush=True)
        return int(self._server.stdout.readline())

    def start(self, script: Path, *argv, path=(), cwd=".", variables=None) -> int:
        """Start a script; return its process ID.

        Args:
            argv: its arguments.
            path: folders to import from.
            cwd: working directory.
            variables: added to the environment.
        """
        output = str(self._folder / str(len(self._outputs)))
        words, folders = [str(word) for word in (script, *argv)], [str(each) for each in path]
        pid = self._request("start", words, folders, os.path.abspath(cwd), output, variables or {})
        self._outputs[pid] = [Path(f"{output}.{suffix}") for suffix in ("out", "err")]
        return pid

    def wait(self, pid: int) -> subprocess.CompletedProcess:
        """Wait for a process; return its exit status and output."""
        try:
            status = self._request("wait", pid)
        except BaseException:  # such as a time limit; the next request needs its own answer
            kill_descendants(pid)
            os.kill(pid, signal.SIGKILL)
            self._server.stdout.readline()
            raise
        output = [file.read_text() for file in self._outputs[pid]]
        return subprocess.CompletedProcess(pid, status, *output)

    def run(self, script: Path, *argv, **options) -> subprocess.CompletedProcess:
        """Run a script; return its exit status and output. The arguments are those of `start`."""
        return self.wait(self.start(script, *argv, **options))

    def close(self) -> None:
        if "_server" in vars(self):
            kill_descendants(self._server.pid)
            self._server.kill()
            self._server.wait()
