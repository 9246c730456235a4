"""Run Python scripts in forks of one process that has imported torch, torchvision and tensorboard.

Reads requests from standard input, a JSON list per line, and answers each with a number:
["start", arguments of `start`...] with the process ID;
["wait", process ID] with the exit status, once the process has ended.
"""

import atexit
import gc
import json
import os
import runpy
import sys
import threading
import traceback

import pytest  # noqa: F401
import torch
import torch.distributed
import torch.utils.tensorboard
import torchvision.transforms.v2  # noqa: F401


def start(argv: list[str], path: list[str], cwd: str, output: str, variables: dict) -> int:
    """Fork a process that runs a script; return its ID. See `ForkedPython.start`.

    `output` gets the suffixes .out and .err.
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
    try:
        runpy.run_path(argv[0], run_name="__main__")
        status = 0
    except SystemExit as end:
        status = end.code or 0
    except BaseException:
        traceback.print_exc()
        status = 1
    # As at the end of the interpreter, but without the seconds in which it takes torch apart.
    threading._shutdown()
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)


if __name__ == "__main__":
    torch.set_num_threads(1)
    gc.freeze()  # otherwise each process would copy the memory that its first collection visits
    for line in sys.stdin:
        request, *values = json.loads(line)
        if request == "start":
            answer = start(*values)
        else:
            answer = os.waitstatus_to_exitcode(os.waitpid(*values, 0)[1])
        print(answer, flush=True)
    os._exit(0)
