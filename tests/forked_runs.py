"""Run a script in forks of one process that has already imported everything.

    python forked_runs.py FOLDER

FOLDER is a script folder: `wrn_DKS` runs main.py, `imagenet` runs train.py on `TinyNetwork`.
Reads requests from standard input, a JSON list per line, and answers each with a number:
["start", arguments, output file, environment variables] with the process ID;
["wait", process ID] with the exit status, once the process has ended.
"""

import json
import os
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent / sys.argv[1]))

import torch  # noqa: E402

if sys.argv[1] == "imagenet":
    from training import TinyNetwork

    import train as script

    script.build = TinyNetwork
else:
    import main as script


def start(argv: list[str], output: str, variables: dict[str, str]) -> int:
    """Fork a process that runs the script; return its ID."""
    pid = os.fork()
    if pid:
        return pid
    status = 1
    try:
        file = os.open(output, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(file, 1)
        os.dup2(file, 2)
        os.environ.update(variables)
        status = script.main(argv)
        sys.stdout.flush()
        sys.stderr.flush()
    finally:
        os._exit(status)


def wait(pid: int) -> int:
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


if __name__ == "__main__":
    torch.set_num_threads(1)
    for line in sys.stdin:
        request, *values = json.loads(line)
        print({"start": start, "wait": wait}[request](*values), flush=True)
