"""Several processes on the CPU give the gradients, errors and files of a single one."""

import json

import pytest
import torch
from conftest import TESTS
from processes import free_ports

# Arguments: the folder of the output, and two free ports.
SCRIPT = """
import sys
import torch
from common.data_parallel import scale_for_ddp
from common.distributed import distributed_context, rank
from common.leaving import run_script
from data import load_dataset
from engine import Trainer
from loader import AugmentedBatches, Batches
from schedule import StepSchedule
from synergy import SynergyLoss
from wide_resnet import WideResNet
from worlds import compute_in_groups

def compute(device):
    data = load_dataset("digits", None, 8, 1)
    small = data.train._replace(images=data.train.images[:11], labels=data.train.labels[:11])
    torch.manual_seed(0)
    model = WideResNet(10, 0.25, 10)
    trainer = Trainer(model, SynergyLoss(), StepSchedule(0.1, (), 0.2), 5e-4, torch.float32, device)
    trainer._parallel.eval()  # in training, batch norm statistics differ by process
    batches = AugmentedBatches(small, data.info, 5, device, seed=1, flip=False)
    gradients = []
    for batch in batches.epoch(0):  # of 5, 5 and 1 images
        losses = trainer.criterion(trainer._forward(trainer._parallel, batch), batch.labels)
        trainer.optimizer.zero_grad()
        scale_for_ddp(losses.total, batch.batch_fraction).backward()
        gradients.append([p.grad.clone() for p in model.parameters()])
    test = trainer.evaluate(Batches(data.test, data.info, 7, device))
    return {"gradients": gradients, "errors": test.errors, "losses": test.losses,
            "images": test.images}

def save(processes):
    with distributed_context("cpu") as device:
        results = compute(device)
        if rank() == 0:
            torch.save(results, f"{sys.argv[1]}/{processes}.pt")

torch.set_num_threads(1)
sys.exit(compute_in_groups(save, {2: sys.argv[2], 3: sys.argv[3]}))
"""


@pytest.fixture(scope="module")
def by_processes(python, wrn, tmp_path_factory):
    """Run SCRIPT, which computes in 1, 2 and 3 processes; return its results by their number."""
    folder = tmp_path_factory.mktemp("distributed")
    script = folder / "script.py"
    script.write_text(SCRIPT)
    done = python.run(script, folder, *free_ports(2), path=[wrn.path, TESTS])
    assert done.returncode == 0, done.stderr
    return {count: torch.load(folder / f"{count}.pt") for count in (1, 2, 3)}


@pytest.mark.parametrize("count", [2, 3])
def test_gradients_equal_those_of_one_process(by_processes, count):
    expected, actual = by_processes[1]["gradients"], by_processes[count]["gradients"]
    assert len(expected) == 3
    for a, b in zip(actual, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("count", [2, 3])
def test_each_image_is_evaluated_once(by_processes, count):
    assert by_processes[count]["images"] == 360
    assert by_processes[count]["errors"] == by_processes[1]["errors"]
    # The synergy loss is a small difference of larger numbers; one image changes it by 2e-5.
    expected = pytest.approx(by_processes[1]["losses"], rel=1e-5, abs=1e-5)
    assert by_processes[count]["losses"] == expected


# Arguments: two free ports.
RUNS_SCRIPT = """
import sys
import main
from worlds import compute_in_groups

def refuse(processes):
    assert main.main("--dataset folder --dataroot nowhere --save runs/x".split()) == 2

def run(processes):
    words = "--dataset digits --depth 10 --width 0.25 --epochs 2 --batch_size 256 --save"
    assert main.main([*words.split(), f"of-{processes}"]) == 0
    sys.stdout.flush()

statuses = [compute_in_groups(each, {2: sys.argv[i]}) for i, each in ((1, refuse), (2, run))]
sys.exit(any(statuses))
"""


def test_only_process_0_prints_and_writes(python, wrn, tmp_path):
    """A start that all processes refuse leaves nothing."""
    script, runs = tmp_path / "script.py", tmp_path / "runs"
    script.write_text(RUNS_SCRIPT)
    runs.mkdir()
    done = python.run(script, *free_ports(2), path=[wrn.path, TESTS], cwd=runs)
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("error: --dataroot nowhere: no such folder") == 3
    assert sorted(path.name for path in runs.iterdir()) == ["of-1", "of-2"]
    assert done.stdout.count("epoch 2/2") == 2 and "\n2 processes on cpu," in done.stdout
    lines = (runs / "of-2" / "log.txt").read_text().splitlines()
    records = [json.loads(line.removeprefix("json_stats: ")) for line in lines]
    assert [record["epoch"] for record in records] == [1, 2]
    assert records[1]["train_loss"] < records[0]["train_loss"]


def test_processes_can_not_share_a_gpu(wrn, monkeypatch):
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    with pytest.raises(wrn.command_line.UserError, match="use --device cuda"):
        wrn.distributed.select_device("cuda:0")
    assert wrn.distributed.select_device("cpu") == torch.device("cpu")


def test_a_process_that_does_not_start_is_not_waited_for(wrn, monkeypatch):
    monkeypatch.setattr(wrn.process_group, "START_S", 0.1)
    store = torch.distributed.HashStore()
    store.set("token of 1", "of a process that has exited")
    with pytest.raises(wrn.command_line.UserError, match=r"process 1 .* not started within 0.1 s"):
        wrn.process_group.fresh_store_prefix(store, 0, 3)
