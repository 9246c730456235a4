"""Runs train.py on the tiny network in forks of one process that has imported it all.

Reads requests from standard input, a JSON list a line, and answers each with a number:
["start", command line, file for the output, further variables] with the process's id,
["wait", id] with its exit status, once it has ended.
"""

import json
import os
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent / "imagenet"))

import torch  # noqa: E402
from training import TinyNetwork  # noqa: E402

import train  # noqa: E402


def start(argv: list[str], output: str, variables: dict[str, str]) -> int:
    child = os.fork()
    if child:
        return child
    try:
        file = os.open(output, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(file, 1)
        os.dup2(file, 2)
        os.environ.update(variables)
        status = train.main(argv)
        sys.stdout.flush()
        sys.stderr.flush()
    finally:
        os._exit(status)


def wait(child: int) -> int:
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


if __name__ == "__main__":
    torch.set_num_threads(1)
    train.build = TinyNetwork
    for line in sys.stdin:
        request, *values = json.loads(line)
        print({"start": start, "wait": wait}[request](*values), flush=True)
