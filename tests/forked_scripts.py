"""Run Python scripts in forks of one process that has imported torch, torchvision and tensorboard.

Reads requests from standard input, a JSON list per line, and answers each with a number:
["start", arguments of `start`...] with the process ID;
["wait", process ID] with the exit status, once the process has ended.
"""

import json
import os
import runpy
import sys

import torch
import torch.utils.tensorboard
import torchvision  # noqa: F401


def start(argv: list[str], path: list[str], cwd: str, output: str, variables: dict) -> int:
    """Fork a process that runs a script; return its ID.

    Args:
        argv: path of the script, and its arguments.
        path: folders to import from, before all others.
        cwd: working directory.
        output: path that gets the suffixes .out and .err.
        variables: added to the environment.
    """
    pid = os.fork()
    if pid:
        return pid
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    for descriptor, suffix in ((1, "out"), (2, "err")):
        file = os.open(f"{output}.{suffix}", os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(file, descriptor)
    os.environ.update(variables)
    os.chdir(cwd)
    sys.path[:1] = path
    sys.argv = argv
    runpy.run_path(argv[0], run_name="__main__")
    sys.exit()


def wait(pid: int) -> int:
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


if __name__ == "__main__":
    torch.set_num_threads(1)
    for line in sys.stdin:
        request, *values = json.loads(line)
        print({"start": start, "wait": wait}[request](*values), flush=True)
