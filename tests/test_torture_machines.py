"""The simulated machines of `make torture`: they reach each other and leave nothing behind."""

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

TESTS = Path(__file__).parent
PROGRAM = """
import sys, time
from pathlib import Path
from torture.namespaces import Machine, enter_namespaces, missing

if reason := missing():
    print("missing:", reason, flush=True)
    sys.exit()
enter_namespaces()
folder = Path(sys.argv[1])
server, client = machines = [Machine(folder, index, 2) for index in range(2)]
serve = "import socket, time; s = socket.create_server(('', 9000)); s.accept(); time.sleep(600)"
server.start([sys.executable, "-c", serve, str(folder)])
greet = "until (exec 3<> /dev/tcp/node0/9000) 2> /dev/null; do sleep 0.1; done; hostname"
client.start(["bash", "-c", greet])
print(client.wait(60).out.split(), server.has_ended(), flush=True)
time.sleep(600)
"""


def test_machines_end_with_the_process_that_made_them(tmp_path):
    links = os.listdir("/sys/class/net") if sys.platform == "linux" else []
    command = [sys.executable, "-c", PROGRAM, str(tmp_path)]
    process = subprocess.Popen(command, cwd=TESTS, stdout=subprocess.PIPE, text=True)
    try:
        line = process.stdout.readline().strip()
        if line.startswith("missing:"):
            pytest.skip(line)
        assert line == "['node1'] False"
        assert processes_with(tmp_path) > 1
    finally:
        process.kill()
        process.wait()
    deadline = time.monotonic() + 60
    while processes_with(tmp_path) and time.monotonic() < deadline:
        time.sleep(0.02)
    assert not processes_with(tmp_path)
    assert os.listdir("/sys/class/net") == links


def processes_with(argument: Path) -> int:
    """Return the number of processes with this argument."""
    lines = subprocess.run(["ps", "-eww", "-o", "args="], capture_output=True, text=True).stdout
    return sum(line.endswith(str(argument)) for line in lines.splitlines())
