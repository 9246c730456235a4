"""Training in processes of its own: killed, signalled, several of them under torchrun."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from training import assert_same_run, command_line, records, write_data

TESTS = Path(__file__).parent
BEGIN = f"""
import os, sys
sys.path[:0] = [{str(TESTS.parent / "imagenet")!r}, {str(TESTS)!r}]
import torch
torch.set_num_threads(1)
from training import TinyNetwork
"""

# train.py on the tiny network, for torchrun; argv: its command line.
TRAIN = """
import train
train.build = TinyNetwork
sys.exit(train.main(sys.argv[1:]))
"""

# Gradients of a batch of 5 images and of one of 2, as the sampler divides them, in forked
# processes; argv: folder of the results. Micro-batches are tried with two processes.
GRADIENTS = """
from common.distributed import distributed_context, rank
from engine import Trainer
from synergy import SynergyLoss
from loader import Batch, ResumableBatchSampler

def compute(path, parts):
    with distributed_context("cpu"):
        torch.manual_seed(0)
        images, labels = torch.randn(7, 3, 40, 40), torch.arange(7) % 3
        network = TinyNetwork("", num_classes=3)
        sgd = torch.optim.SGD(network.parameters(), lr=0.1)
        trainer = Trainer(network, SynergyLoss(), sgd, micro_batches=parts)
        trainer.parallel.eval()
        sampler, gradients = ResumableBatchSampler(7, 5, seed=0), []
        for step, keys in enumerate(sampler):
            trainer.optimizer.zero_grad()
            own = torch.tensor([index for _, index in keys])
            batch = Batch(images[own], labels[own], sampler.batch_fraction(step))
            trainer._accumulate_gradients(batch)
            gradients.append([p.grad.clone() for p in network.parameters()])
        sums = trainer.sums.totals()
        if rank() == 0:
            torch.save({"gradients": gradients, "sums": sums}, path)

children = []
for world, parts, port in ((1, 1, sys.argv[2]), (2, 2, sys.argv[3]), (3, 1, sys.argv[4])):
    os.environ.update(WORLD_SIZE=str(world), MASTER_ADDR="127.0.0.1", MASTER_PORT=port)
    for rank_ in range(world):
        os.environ["RANK"] = str(rank_)
        child = os.fork()
        if not child:
            compute(f"{sys.argv[1]}/{world}.pt", parts)
            os._exit(0)
        children.append(child)
sys.exit(any([os.waitpid(child, 0)[1] for child in children]))
"""


def free_ports(count: int) -> list[str]:
    """Ports of this machine on which nothing listens."""
    listeners = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [str(listener.getsockname()[1]) for listener in listeners]
    for listener in listeners:
        listener.close()
    return ports


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return write_data(tmp_path_factory.mktemp("images"))


class Runs:
    """Processes that forked_runs.py starts."""

    def __init__(self, folder: Path):
        self._folder = folder
        self._server = subprocess.Popen(
            [sys.executable, TESTS / "forked_runs.py"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def _ask(self, *request) -> int:
        print(json.dumps(request), file=self._server.stdin, flush=True)
        return int(self._server.stdout.readline())

    def start(self, argv: list[str], **variables: str) -> int:
        """Start train.py; returns the process's id."""
        return self._ask("start", argv, str(self._folder / "output"), variables)

    def ended(self, child: int, status: int = 0) -> str:
        """What was printed last, once the process has ended with that status."""
        found, output = self._ask("wait", child), (self._folder / "output").read_text()
        assert found == status, output
        return output

    def close(self) -> None:
        self._server.stdin.close()
        self._server.wait()


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    runs = Runs(tmp_path_factory.mktemp("runs"))
    yield runs
    runs.close()


def wait_for_epochs(save: Path, count: int) -> None:
    """Wait until the log has so many epochs."""
    log = save / "log.jsonl"
    for _ in range(2400):
        if log.exists() and log.read_bytes().count(b"\n") >= count:
            return
        time.sleep(0.025)
    pytest.fail(f"no epoch {count} in {log}")


def children(process: int) -> list[int]:
    """The processes that a process has started."""
    return [
        int(word) for word in Path(f"/proc/{process}/task/{process}/children").read_text().split()
    ]


def test_killed_and_signalled_it_ends_as_if_never_stopped(runs, data, tmp_path):
    save, endless = tmp_path / "run", ("--epochs", "100000", "--checkpoint-minutes", "0")
    argv = command_line(data, save, *endless, "--ema", "0.9", "-j", "1", "--resume", "auto")
    run = runs.start(argv)
    wait_for_epochs(save, 2)
    os.kill(run, signal.SIGKILL)
    runs.ended(run, -signal.SIGKILL)
    run = runs.start(argv)  # though the killed run's worker may still be there
    wait_for_epochs(save, len(records(save)) + 2)
    for process in (*children(run), run):  # as a scheduler does
        os.kill(process, signal.SIGTERM)
    output = runs.ended(run, 143)
    assert "--resume auto" in output and "stopped by SIGTERM" in output
    epochs = ("--epochs", str(len(records(save)) + 2))
    runs.ended(runs.start([*argv, *epochs]))
    runs.ended(runs.start(command_line(data, tmp_path / "whole", "--ema", "0.9", *epochs)))
    assert_same_run(save, tmp_path / "whole")


def test_a_signal_to_one_process_stops_all_of_them(runs, data, tmp_path):
    argv = command_line(data, tmp_path, "--epochs", "100000", "--ema", "0.9")
    (port,) = free_ports(1)
    variables = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    pair = [runs.start(argv, RANK=str(rank), **variables) for rank in range(2)]
    wait_for_epochs(tmp_path, 1)
    os.kill(pair[1], signal.SIGTERM)
    for process in pair:
        runs.ended(process, 143)
    saved = torch.load(tmp_path / "checkpoint.pt", weights_only=True)
    assert saved["processes"] == 2 and saved["step"] >= 4
    # One process goes on from there, and says so.
    argv += ["--resume", "auto", "--epochs", str(saved["epoch"] + 1)]
    assert "saved by 2 processes" in runs.ended(runs.start(argv))


def test_a_killed_worker_of_torchrun_is_restarted(runs, data, tmp_path):
    script = tmp_path / "train.py"
    script.write_text(BEGIN + TRAIN)
    argv = command_line(data, tmp_path / "run", "--epochs", "30", "--ema", "0.9")
    argv += ["--checkpoint-minutes", "0", "--resume", "auto"]
    launch = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    command = [sys.executable, *launch, "--max-restarts", "2", script, *argv]
    with open(tmp_path / "output", "w") as output:
        torchrun = subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT)
    try:
        wait_for_epochs(tmp_path / "run", 1)
        os.kill(children(torchrun.pid)[1], signal.SIGKILL)
        assert torchrun.wait(120) == 0, (tmp_path / "output").read_text()
    finally:
        torchrun.terminate()
    assert "resumed from" in (tmp_path / "output").read_text()
    (port,) = free_ports(1)
    variables = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    argv = command_line(data, tmp_path / "whole", "--epochs", "30", "--ema", "0.9")
    for process in [runs.start(argv, RANK=str(rank), **variables) for rank in range(2)]:
        runs.ended(process)
    assert_same_run(tmp_path / "run", tmp_path / "whole")


def test_several_processes_have_the_gradients_of_one(tmp_path):
    """Batches of 5 and 2 images: of three processes, one has none of the second batch."""
    script = tmp_path / "gradients.py"
    script.write_text(BEGIN + GRADIENTS)
    subprocess.run([sys.executable, script, tmp_path, *free_ports(3)], check=True, timeout=120)
    one, *several = [torch.load(tmp_path / f"{world}.pt") for world in (1, 2, 3)]
    for other in several:
        for own_batch, batch in zip(other["gradients"], one["gradients"], strict=True):
            for own, expected in zip(own_batch, batch, strict=True):
                torch.testing.assert_close(own, expected, rtol=1e-5, atol=1e-6)
        for name, value in one["sums"].items():
            torch.testing.assert_close(other["sums"][name], value, rtol=1e-5, atol=1e-6)
