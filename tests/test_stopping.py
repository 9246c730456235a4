"""Two processes stop and fail together, and leave without tearing their process group down."""

import json
import threading
from pathlib import Path

import pytest
import torch
from cifar_runs import SMALL_CIFAR_RUN
from conftest import TESTS
from processes import free_ports
from training import command_line, write_data


def run_pairs(
    python, folder: str, cases: dict[str, dict]
) -> dict[str, tuple[list[int], list[str]]]:
    """Run `paired_runs.py`; return the exit statuses and the outputs of each case."""
    for case, port in zip(cases.values(), free_ports(len(cases)), strict=True):
        case["port"] = port
    words = [folder, json.dumps(list(cases.values()))]
    done = python.run(TESTS / "paired_runs.py", *words, path=[TESTS])
    assert done.returncode == 0, done.stderr
    results = {}
    for (name, case), statuses in zip(cases.items(), json.loads(done.stdout), strict=True):
        texts = [Path(f"{case['output']}.{rank}").read_text() for rank in range(2)]
        results[name] = statuses, texts
    return results


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("pairs")


@pytest.fixture(scope="module")
def imagenet_pairs(python, folder):
    """The results of imagenet/train.py with each fault."""
    data, cases = write_data(folder / "images"), {}
    for fault, flags, file in (
        ("stop", [], "checkpoint.pt"),
        ("not_finite", ["--checkpoint-minutes", "0"], None),
        ("bug", [], None),
        ("full_disk", [], None),
        ("slow_export", ["--epochs", "1", "--export", str(folder / "x.pth")], "../x.pth"),
    ):
        save = folder / f"imagenet_{fault}"
        cases[fault] = {
            "fault": fault,
            "argv": command_line(data, save, *flags),
            "output": f"{save}.txt",
            "file": file and str(save / file),
        }
    return run_pairs(python, "imagenet", cases)


@pytest.fixture(scope="module")
def cifar_pairs(python, folder):
    """The results of wrn_DKS/main.py with each fault."""
    cases = {}
    for fault in ("stop_later", "not_finite", "silence"):
        save = folder / f"cifar_{fault}"
        words = "--epochs 3 --batch_size 256 --device cpu --save".split()
        cases[fault] = {
            "fault": fault,
            "argv": [*SMALL_CIFAR_RUN, *words, str(save)],
            "output": f"{save}.txt",
            "file": None,
        }
    return run_pairs(python, "wrn_DKS", cases)


def test_all_processes_stay_until_a_stopped_run_is_saved(imagenet_pairs, folder):
    statuses, (output, other) = imagenet_pairs["stop"]
    assert statuses == [143, 143], output + other
    assert "saved after step 2 of the run" in output and "--resume auto" in output
    assert other.endswith("stopped by SIGTERM\n")
    assert torch.load(folder / "imagenet_stop" / "checkpoint.pt", weights_only=True)["step"] == 2


def test_a_signal_to_one_process_stops_both_with_the_last_checkpoint(cifar_pairs, folder):
    statuses, (output, other) = cifar_pairs["stop_later"]
    assert statuses == [143, 143], output + other
    assert "--resume auto (epoch 2 starts again)" in output
    assert other.endswith("stopped by SIGTERM\n")
    path = folder / "cifar_stop_later" / "checkpoint.pt"
    assert torch.load(path, weights_only=True)["epoch"] == 1


@pytest.mark.parametrize("pairs", ["imagenet_pairs", "cifar_pairs"])
def test_all_processes_name_the_weight_that_is_not_finite(request, pairs):
    """Only process 0 looks at the weights, and these are its own."""
    statuses, outputs = request.getfixturevalue(pairs)["not_finite"]
    assert statuses == [2, 2], outputs
    reasons = [output.splitlines()[-1] for output in outputs]
    assert reasons[0] == reasons[1] and reasons[0].startswith("error: ")
    assert "running_mean" in reasons[0] and "not finite" in reasons[0]


def test_all_name_the_full_disk_of_process_0(imagenet_pairs):
    statuses, outputs = imagenet_pairs["full_disk"]
    assert statuses == [2, 2], outputs
    for output in outputs:
        assert "log.jsonl can't be written: No space left on device; free some space" in output


def test_a_process_does_not_wait_for_a_silent_one(cifar_pairs):
    (status, _), (output, _) = cifar_pairs["silence"]
    assert status == 2
    assert "error: no sign of life from process 1 of this run for 1 s; check the" in output


def test_a_process_that_fails_alone_says_why_and_leaves(imagenet_pairs):
    statuses, (other, output) = imagenet_pairs["bug"]
    assert statuses == [2, 1], output + other
    assert output.endswith("ZeroDivisionError: division by zero\n")
    assert "error: lost the connection to another process of this run" in other


def test_a_finished_process_waits_for_the_others(imagenet_pairs, folder):
    statuses, outputs = imagenet_pairs["slow_export"]
    assert statuses == [0, 0], outputs
    assert "exported the backbone" in outputs[0]
    assert not any("Exception" in output or "TCPStore" in output for output in outputs)


@pytest.mark.parametrize("own_rank", [0, 1])
def test_a_finished_process_does_not_wait_for_ever(wrn, monkeypatch, own_rank):
    monkeypatch.setattr(wrn.leaving, "WAIT_S", 0.1)
    arguments = torch.distributed.HashStore(), own_rank, 2
    waiting = threading.Thread(target=wrn.leaving.wait_for_peers, args=arguments, daemon=True)
    waiting.start()
    waiting.join(60)
    assert not waiting.is_alive()
