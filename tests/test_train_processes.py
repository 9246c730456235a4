"""imagenet/train.py in separate processes: killed, signalled, and under torchrun."""

import os
import re
import signal
import time
from pathlib import Path

import pytest
import torch
import torch.distributed.run
from conftest import TESTS
from processes import child_processes, free_ports
from training import assert_same_run, command_line, log_records, write_data

SETUP = f"""
import os, sys
sys.path[:0] = [{str(TESTS.parent / "imagenet")!r}, {str(TESTS)!r}]
import torch
torch.set_num_threads(1)
from training import TinyNetwork
"""

# train.py on TinyNetwork, for torchrun. Process 1 is killed before the second step of the second
# epoch when it runs for the first time. Arguments: those of train.py.
TRAIN_SCRIPT = """
import signal
import train
from common.leaving import run_script
train.build = TinyNetwork
train_step = train.Trainer.train_step

def killed(trainer, *arguments):
    first_time = os.environ["TORCHELASTIC_RESTART_COUNT"] == "0"
    if first_time and trainer.step == 5 and os.environ["RANK"] == "1":
        os.kill(os.getpid(), signal.SIGKILL)
    return train_step(trainer, *arguments)

train.Trainer.train_step = killed
run_script(lambda: train.main(sys.argv[1:]))
"""

# Gradients of a batch of 5 and of a batch of 2 images in one, two and three processes; two use
# micro-batches. Arguments: output folder and two free ports.
GRADIENTS_SCRIPT = """
import sys
import torch
from common.distributed import distributed_context, rank
from engine import Trainer
from synergy import SynergyLoss
from loader import Batch, ResumableBatchSampler
from training import TinyNetwork
from worlds import compute_in_groups

def compute(processes):
    with distributed_context("cpu"):
        torch.manual_seed(0)
        images, labels = torch.randn(7, 3, 40, 40), torch.arange(7) % 3
        network = TinyNetwork("", num_classes=3)
        sgd = torch.optim.SGD(network.parameters(), lr=0.1)
        parts = 2 if processes == 2 else 1
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
            torch.save({"gradients": gradients, "sums": sums}, f"{sys.argv[1]}/{processes}.pt")

sys.exit(compute_in_groups(compute, {2: sys.argv[2], 3: sys.argv[3]}))
"""


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return write_data(tmp_path_factory.mktemp("images"))


def wait_for_epochs(save: Path, count: int) -> None:
    """Wait until `count` epochs are logged."""
    log = save / "log.jsonl"
    for _ in range(2400):
        if log.exists() and log.read_bytes().count(b"\n") >= count:
            return
        time.sleep(0.025)
    pytest.fail(f"timeout waiting for epoch {count} in {log}")


def test_a_killed_and_signalled_run_ends_as_an_uninterrupted_one(imagenet_runs, data, tmp_path):
    save, endless = tmp_path / "run", ("--epochs", "100000", "--checkpoint-minutes", "0")
    argv = command_line(data, save, *endless, "--ema", "0.9", "-j", "1", "--resume", "auto")
    run = imagenet_runs.start(argv)
    wait_for_epochs(save, 2)
    os.kill(run, signal.SIGKILL)
    imagenet_runs.wait(run, -signal.SIGKILL)
    run = imagenet_runs.start(argv)  # although a worker of the killed run may still exist
    wait_for_epochs(save, len(log_records(save)) + 2)
    for process in (*child_processes(run), run):  # as schedulers do
        os.kill(process, signal.SIGTERM)
    output = imagenet_runs.wait(run, 143)
    assert "--resume auto" in output and "stopped by SIGTERM" in output
    epochs = ("--epochs", str(len(log_records(save)) + 2))
    imagenet_runs.wait(imagenet_runs.start([*argv, *epochs]))
    imagenet_runs.wait(
        imagenet_runs.start(command_line(data, tmp_path / "whole", "--ema", "0.9", *epochs))
    )
    assert_same_run(save, tmp_path / "whole")


def test_a_signal_to_one_process_stops_all_processes(imagenet_runs, data, tmp_path):
    argv = command_line(data, tmp_path, "--epochs", "100000", "--ema", "0.9")
    (port,) = free_ports(1)
    variables = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    pair = [imagenet_runs.start(argv, RANK=str(rank), **variables) for rank in range(2)]
    wait_for_epochs(tmp_path, 1)
    os.kill(pair[1], signal.SIGTERM)
    for process in pair:
        imagenet_runs.wait(process, 143)
    saved = torch.load(tmp_path / "checkpoint.pt", weights_only=True)
    assert saved["processes"] == 2 and saved["step"] >= 4
    # A single process can resume the run.
    argv += ["--resume", "auto", "--epochs", str(saved["epoch"] + 1)]
    assert "saved by 2 processes" in imagenet_runs.wait(imagenet_runs.start(argv))


def test_torchrun_restarts_a_killed_run_without_changing_the_result(
    python, imagenet_runs, data, tmp_path
):
    script = tmp_path / "train.py"
    script.write_text(SETUP + TRAIN_SCRIPT)
    argv = command_line(data, tmp_path / "run", "--epochs", "3", "--ema", "0.9")
    argv += ["--checkpoint-minutes", "0", "--resume", "auto"]
    launch = ["--standalone", "--nproc_per_node", "2", "--max-restarts", "1"]
    done = python.run(torch.distributed.run.__file__, *launch, script, *argv)
    assert done.returncode == 0, done.stderr
    assert re.search(r"resumed from .*: 1 epoch( and 1 of 4 steps of epoch 2)? done", done.stdout)
    assert "2 processes on cpu, dtype float32" in done.stdout
    (port,) = free_ports(1)
    variables = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    argv = command_line(data, tmp_path / "whole", "--epochs", "3", "--ema", "0.9")
    for process in [imagenet_runs.start(argv, RANK=str(rank), **variables) for rank in range(2)]:
        imagenet_runs.wait(process)
    assert_same_run(tmp_path / "run", tmp_path / "whole")


def test_gradients_do_not_depend_on_the_number_of_processes(python, imagenet, tmp_path):
    """With three processes, one has no image of the second batch."""
    script = tmp_path / "gradients.py"
    script.write_text(GRADIENTS_SCRIPT)
    done = python.run(script, tmp_path, *free_ports(2), path=[imagenet.path, TESTS])
    assert done.returncode == 0, done.stderr
    single, *several = [torch.load(tmp_path / f"{world_size}.pt") for world_size in (1, 2, 3)]
    for other in several:
        for actual, expected in zip(other["gradients"], single["gradients"], strict=True):
            for a, b in zip(actual, expected, strict=True):
                torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6)
        for name, value in single["sums"].items():
            torch.testing.assert_close(other["sums"][name], value, rtol=1e-5, atol=1e-6)
