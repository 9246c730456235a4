"""weights/: each file is whole and belongs to a log of study/cifar100/; its card has its errors."""

import hashlib
import json
import math
from statistics import median

import pytest
from conftest import ROOT
from safetensors import safe_open

WEIGHTS = ROOT / "weights"
FILES = sorted(WEIGHTS.glob("*.safetensors"))


def test_files_have_their_hashes():
    lines = (WEIGHTS / "SHA256SUMS").read_text().splitlines()
    hashes = {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in FILES}
    assert hashes
    assert lines == [f"{digest}  {name}" for name, digest in hashes.items()]


@pytest.mark.parametrize("path", FILES, ids=[path.stem for path in FILES])
def test_networks_belong_to_their_logs(wrn, path):
    method = path.stem.removeprefix("resnet32-cifar100-")
    log = ROOT / "study" / "cifar100" / f"{method}-seed1.jsonl"
    options, *epochs = map(json.loads, log.read_text().splitlines())
    last = epochs[-1]
    with safe_open(path, "pt") as file:
        state = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        metadata = json.loads(file.metadata()["dks"])
    assert last["epoch"] == options["epochs"] == metadata["epoch"]
    for name in ("arch", "depth", "width", "image_size", "dtype", "method"):
        assert metadata[name] == options[name], name
    assert len(metadata["classes"]) == options["num_classes"]

    network = wrn.resnet.ResNet(options["depth"], options["num_classes"], branches=False)
    expected = {name: (value.shape, value.dtype) for name, value in network.state_dict().items()}
    assert {name: (value.shape, value.dtype) for name, value in state.items()} == expected
    steps = math.ceil(options["train_images"] / options["batch_size"]) * options["epochs"]
    assert state["bn.num_batches_tracked"] == steps
    assert all(value.isfinite().all() for value in state.values())

    accuracies = [last.get(f"test_acc{key}") for key in ("", "_ep1", "_ep2")]
    errors = [100 - each if each is not None else None for each in accuracies]
    errors += [last["test_error_ensemble"] if errors[1] else None, 100 - last["train_acc"]]
    cells = [f"{error:.2f}" if error is not None else "" for error in errors]
    hours = sum(epoch["train_time"] + epoch.get("test_time", 0) for epoch in epochs) / 3600
    rate = options["train_images"] / median(epoch["train_time"] for epoch in epochs)
    row = f"| {' | '.join([method, *cells, f'{hours:.1f}', f'{rate:.0f}'])} |"
    assert row in (WEIGHTS / "README.md").read_text().splitlines(), row
    (line,) = [each for each in (ROOT / "README.md").read_text().splitlines() if "**ours**" in each]
    column = 3 + ("baseline", "ds", "dks").index(method)
    assert line.split("|")[column].strip() == cells[0]
