"""Training and tests in several processes: resumed, signaled, killed and restarted by torchrun."""

import os
import re
import signal
import time

import pytest
from conftest import TESTS
from halves import assert_same_run, load, records
from processes import free_ports

FLAGS = "--ema 0.8 --mixup 0.5 --cutmix 1 --resume auto".split()

# torchrun without the seconds in which each process imports torch: they are forked.
TORCHRUN = """
import os, sys, time
from torch.distributed.launcher.api import LaunchConfig, elastic_launch

def train():
    from tiny_train import exit_status, install_fault, script
    install_fault()
    time.sleep(0.5 * int(os.environ["RANK"]))  # rank 0 may find what is left of other processes
    if status := exit_status(lambda: script.main(sys.argv[2:])):
        sys.exit(status)

config = LaunchConfig(1, 1, 2, rdzv_backend="c10d", rdzv_endpoint=f"127.0.0.1:{sys.argv[1]}",
                      run_id="x", max_restarts=1, monitor_interval=0.1, start_method="fork")
elastic_launch(config, train)()
"""


@pytest.mark.parametrize(
    ("half", "count"), [("wrn", 2), ("imagenet", 2), ("wrn", 3)], indirect=["half"]
)
def test_processes_stop_after_the_same_step_and_resume_to_the_same_bits(half, tmp_path, count):
    """One of them gets the signal. Each test image is scored once."""
    flags = (*FLAGS, *["--dropout"] * half.is_wrn, *["--dtype", "bfloat16"] * (count == 2))
    whole, stopped = tmp_path / "whole", tmp_path / "stopped"
    half.train_in_group(count, whole, *flags)
    outputs = half.train_in_group(count, stopped, *flags, status=143, FAULT="1 1 SIGTERM")
    assert all("stopped by SIGTERM" in output for output in outputs)
    assert ["the run is saved" in output for output in outputs] == [True, False, False][:count]
    assert (load(stopped)["step"], load(stopped)["processes"]) == (2, count)
    half.train_in_group(count, stopped, *flags)
    assert_same_run(stopped, whole)
    images = [
        [record[part]["images"] for part in ("train", "test", "ema")] for record in records(whole)
    ]
    assert images == [[12, 5, 5]] * 2


def test_a_signal_while_saving_stops_all_processes_at_the_next_step(wrn_half, tmp_path):
    """Not only the process that got it, for which the others would wait in vain."""
    words, fault = (tmp_path, "--checkpoint-minutes", 0), "1 1 sigterm_while_saving"
    wrn_half.train_in_group(2, *words, status=143, FAULT=fault)
    assert load(tmp_path)["step"] == 3
    (output,) = wrn_half.train_in_group(1, tmp_path, "--resume", "auto")
    assert "2 processes before, 1 now; this changes the statistics of batch norm" in output


@pytest.mark.parametrize(
    ("fault", "statuses"), [("1 5 bug", (2, 1)), ("0 5 SIGKILL", (-9, 2)), ("1 3 nan", (2, 2))]
)
def test_a_process_that_fails_ends_the_others(wrn_half, tmp_path, fault, statuses):
    """The last good checkpoint stays."""
    outputs = wrn_half.train_in_group(2, tmp_path, status=statuses, FAULT=fault)
    assert ("ZeroDivisionError: a bug" in outputs[1]) == ("bug" in fault)
    saved = load(tmp_path)
    assert saved["step"] == 3 and all(v.isfinite().all() for v in saved["model"].values())


def test_a_signal_from_outside_saves_and_stops_a_run(half, tmp_path):
    """Sent twice within moments, as `timeout` and SLURM do."""
    signum, status = ("SIGINT", 130) if half.is_wrn else ("SIGTERM", 143)
    run = half.start(tmp_path, "--epochs", 10000)
    wait_for(tmp_path / "checkpoint.pt")
    for _ in range(2):
        os.kill(run, signal.Signals[signum])
    output = half.wait(run, status)
    assert f"with --save {tmp_path} --resume auto\n" in output
    assert f"\nerror: stopped by {signum}; the run is saved: to continue, run" in output
    assert load(tmp_path)["step"] > 0


def test_torchrun_restarts_a_killed_run_without_changing_the_result(wrn_half, python, tmp_path):
    """Signaled itself, it saves and stops the run."""
    (tmp_path / "torchrun.py").write_text(TORCHRUN)

    def start(*words, **variables):
        argv, path = (*free_ports(1), *wrn_half.argv(*words)), (wrn_half.scripts.path, TESTS)
        return python.start(tmp_path / "torchrun.py", *argv, path=path, variables=variables)

    flags = (*FLAGS, "--checkpoint-minutes", 0)
    done = python.wait(start(tmp_path / "run", *flags, FAULT="1 5 SIGKILL"))
    assert done.returncode == 0, done.stderr
    assert re.search(r"resumed from .*: 1 epoch and 2 of 3 steps of epoch 2 done", done.stdout)
    wrn_half.train_in_group(2, tmp_path / "whole", *flags)
    assert_same_run(tmp_path / "run", tmp_path / "whole")
    run = start(tmp_path / "long", "--epochs", 10000, FAULT="9 0 none")
    wait_for(tmp_path / "long" / "checkpoint.pt")
    os.kill(run, signal.SIGTERM)
    done = python.wait(run)
    assert done.returncode != 0 and "the run is saved" in done.stdout + done.stderr


def wait_for(path) -> None:
    """Wait until a file exists."""
    for _ in range(4800):
        if path.exists():
            return
        time.sleep(0.025)
    pytest.fail(f"timeout waiting for {path}")


@pytest.mark.parametrize("half", ["imagenet"], indirect=True)
def test_the_result_does_not_depend_on_the_number_of_processes(half, tmp_path):
    """Without statistics of a batch. Their shares of a batch differ, and have micro-batches."""
    flags = "-b 5 --grad-accumulation 2 --ema 0.5 --mixup 1".split()
    for count in (1, 2, 3):
        half.train_in_group(count, tmp_path / str(count), *flags, GROUP_NORM="1")
        assert_same_run(tmp_path / str(count), tmp_path / "1", exact=False)
