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


class ForkedPython:
    """Run scripts through forked_scripts.py, which saves importing torch in each process.

    Args:
        folder: for the output of the processes.
    """

    def __init__(self, folder: Path):
        self._folder = folder
        self._outputs = {}  # by process ID
        environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
        self._server = subprocess.Popen(
            [sys.executable, Path(__file__).with_name("forked_scripts.py")],
            env=environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

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
        self._outputs[pid] = Path(f"{output}.out"), Path(f"{output}.err")
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
        out, err = (file.read_text() for file in self._outputs[pid])
        return subprocess.CompletedProcess(pid, status, out, err)

    def run(self, script: Path, *argv, **options) -> subprocess.CompletedProcess:
        """Run a script; return its exit status and output. The arguments are those of `start`."""
        return self.wait(self.start(script, *argv, **options))

    def close(self) -> None:
        kill_descendants(self._server.pid)
        self._server.stdin.close()
        self._server.wait()


class ScriptRuns:
    """Start a script of a script folder in processes of a process group, or alone.

    Args:
        python: starts the processes.
        script: path of the script.
        path: folders to import from.
    """

    def __init__(self, python: ForkedPython, script: Path, *path: Path):
        self._python, self._script, self._path = python, script, path

    def start(self, argv: list[str], **variables: str) -> int:
        """Start the script with environment variables; return its process ID."""
        return self._python.start(self._script, *argv, path=self._path, variables=variables)

    def wait(self, pid: int, status: int = 0) -> str:
        """Wait for the process, which must exit with `status`; return its output."""
        done = self._python.wait(pid)
        assert done.returncode == status, done.stdout + done.stderr
        return done.stdout + done.stderr
