"""--skip-unreadable in imagenet/train.py: what is left of a batch counts as before."""

from pathlib import Path

import pytest
import torch
from conftest import TESTS
from processes import free_ports
from training import (
    TinyNetwork,
    assert_same_run,
    command_line,
    error_of,
    load_checkpoint,
    log_records,
    run_train,
    write_data,
)

UNREADABLE = -1


@pytest.fixture(scope="module")
def train(imagenet):
    return lambda argv: run_train(imagenet, argv)


@pytest.fixture
def broken(tmp_path):
    """A data folder with two training images that cannot be decoded."""
    data = write_data(tmp_path / "data")
    for name in ("cat/cat_1.png", "eel/eel_3.png"):
        (data / "train" / name).write_bytes(b"not an image")
    return data


def test_skipped_images_are_counted_and_logged(train, broken, tmp_path, capsys):
    argv = command_line(broken, tmp_path / "run")
    assert ".png: not an image that can be read (unknown format)" in error_of(train, capsys, argv)
    assert train([*argv, "--skip-unreadable"]) == 0
    out, err = capsys.readouterr()
    assert out.count("skipped 2 training images that cannot be read\n") == 2  # epochs
    assert err.count("cat_1.png: not an image that can be read") == 2
    assert [record["train"]["unreadable"] for record in log_records(tmp_path / "run")] == [2, 2]


@pytest.mark.parametrize("mixing", [(), ("--mixup", "0.2")])
def test_a_resumed_run_equals_an_uninterrupted_one(
    train, imagenet, broken, tmp_path, monkeypatch, mixing
):
    """Killed within an epoch, also after the unreadable images were counted."""
    train_step, calls = imagenet.engine.Trainer.train_step, []

    def killed_before_step_7(trainer, *args):
        calls.append(1)
        if len(calls) == 7:
            raise InterruptedError
        return train_step(trainer, *args)

    flags = ("--skip-unreadable", "--checkpoint-minutes", "0", *mixing)
    argv = command_line(broken, tmp_path / "run", *flags, "--resume", "auto")
    with monkeypatch.context() as patch:
        patch.setattr(imagenet.engine.Trainer, "train_step", killed_before_step_7)
        assert train(argv) == 2
    assert load_checkpoint(tmp_path / "run")["step"] == 6
    assert train(argv) == 0
    assert train(command_line(broken, tmp_path / "whole", *flags)) == 0
    assert_same_run(tmp_path / "run", tmp_path / "whole")


def test_a_run_goes_on_when_an_image_becomes_unreadable(train, tmp_path, capsys):
    """With a checkpoint from before unreadable images were counted."""
    data = write_data(tmp_path / "data")
    argv = command_line(data, tmp_path / "run", "--resume", "auto")
    assert train([*argv, "--epochs", "1"]) == 0
    content = load_checkpoint(tmp_path / "run")
    del content["options"]["skip_unreadable"]
    torch.save(content, tmp_path / "run" / "checkpoint.pt")
    (data / "train" / "cat" / "cat_1.png").write_bytes(b"")
    assert "cat_1.png" in error_of(train, capsys, argv)
    assert train([*argv, "--skip-unreadable"]) == 0
    assert [record["train"]["unreadable"] for record in log_records(tmp_path / "run")] == [0, 1]


def test_a_checkpoint_without_the_number_of_unreadable_images_is_resumed(
    train, imagenet, broken, tmp_path, monkeypatch
):
    """One that was saved within an epoch before they were counted: the number was 0."""
    save = tmp_path / "run"
    argv = command_line(write_data(tmp_path / "good"), save, "--checkpoint-minutes", "0")
    written = []
    monkeypatch.setattr(imagenet.checkpoint, "save", lambda path, content: written.append(content))
    assert train(argv) == 0
    content = written[1]  # after the second step
    assert content["sums"].pop("unreadable") == 0
    torch.save(content, save / "checkpoint.pt")
    monkeypatch.undo()
    assert train([*argv, "--resume", "auto"]) == 0
    assert log_records(save)[-1]["train"]["unreadable"] == 0


def test_no_readable_training_image_is_an_error(train, tmp_path, capsys):
    data = write_data(tmp_path / "data")
    for path in (data / "train").glob("*/*.png"):
        path.write_bytes(b"")
    capsys.readouterr()
    assert train(command_line(data, tmp_path / "run", "--skip-unreadable")) == 2
    last = capsys.readouterr().err.splitlines()[-1]
    assert last == "error: none of the 13 training images can be read"


def test_validation_images_are_never_skipped(train, tmp_path, capsys):
    data = write_data(tmp_path / "data")
    (data / "val" / "cat" / "cat_1.png").write_bytes(b"")
    argv = command_line(data, tmp_path / "run", "--skip-unreadable")
    assert str(Path("val", "cat", "cat_1.png")) in error_of(train, capsys, argv)


@pytest.mark.parametrize(
    ("labels", "fraction", "others", "used", "expected"),
    [
        ([4, -1, 2], 0.5, 2, [0, 2], (2 / 4, 1)),
        ([4, 1, 2], 0.5, 1, [0, 1, 2], (3 / 4, 0)),
        ([-1, -1], 0.5, 2, [1], (0, 2)),  # a placeholder, because others have images
        ([-1], 0.0, 1, [0], (0, 0)),  # was a placeholder before
        ([-1, -1], 0.5, 0, [], (0, 2)),
    ],
)
@pytest.mark.parametrize("previous", [None, 7, UNREADABLE])
def test_what_is_left_of_a_batch(
    imagenet, monkeypatch, labels, fraction, others, used, expected, previous
):
    """`others` is the number of readable images in the other processes.

    For mixing, there is an image before those of this process; instead of an unreadable one, the
    last image is used.
    """
    skipping = imagenet.skipping.SkippedImages(previous is not None)
    monkeypatch.setattr(skipping, "_sum", lambda count: count + others)
    if previous is not None and used:
        used = [0 if previous >= 0 else used[-1] + 1, *(index + 1 for index in used)]
    if previous is not None:
        labels = [previous, *labels]
    images = torch.arange(len(labels)).view(-1, 1, 1, 1).expand(-1, 3, 2, 2)
    result = skipping(images, torch.tensor(labels), fraction)
    assert result[0][:, 0, 0, 0].tolist() == used
    assert result[1].tolist() == [max(labels[index], 0) for index in used]
    assert result[2:] == expected


# The gradient of each step of an epoch with unreadable images, in one, two and three processes.
# Arguments: data folder, output folder and three free ports.
GRADIENTS_SCRIPT = """
import os, sys
import torch
from common.distributed import distributed_context, rank
from data import AugmentedDataset, find_image_sets
from engine import Trainer
from loader import Batch, ResumableBatchSampler, TrainingLoader
from pathlib import Path
from synergy import SynergyLoss
from training import TinyNetwork

def compute(data, path):
    with distributed_context("cpu") as device:
        files = find_image_sets(Path(data), None, 40, "crop", skip_unreadable=True).train
        torch.manual_seed(0)
        network = TinyNetwork("", num_classes=3)
        trainer = Trainer(network, SynergyLoss(), torch.optim.SGD(network.parameters(), lr=0))
        trainer.parallel.eval()
        sampler = ResumableBatchSampler(len(files), 3, seed=0)
        loader = TrainingLoader(AugmentedDataset(files, 0), sampler, 0, 1, device, None)
        gradients = []
        for batch in loader.epoch(0):
            for parameter in network.parameters():
                parameter.grad = torch.zeros_like(parameter)  # stays if the step is skipped
            trainer.train_step(batch, 0.0)
            gradients.append([parameter.grad for parameter in network.parameters()])
        sums = trainer.sums.totals()
        if rank() == 0:
            torch.save({"gradients": gradients, "sums": sums}, path)

torch.set_num_threads(1)
pids = []
for world_size, port in zip((1, 2, 3), sys.argv[3:]):
    os.environ.update(WORLD_SIZE=str(world_size), MASTER_ADDR="127.0.0.1", MASTER_PORT=port)
    for rank_ in range(world_size):
        os.environ["RANK"] = str(rank_)
        pid = os.fork()
        if not pid:
            compute(sys.argv[1], f"{sys.argv[2]}/{world_size}.pt")
            os._exit(0)
        pids.append(pid)
sys.exit(any([os.waitpid(pid, 0)[1] for pid in pids]))
"""


def expected_step(imagenet, network, images, labels):
    """The gradients of the mean loss over the images, and the sums of their metrics."""
    network.zero_grad()
    logits = network(images)
    losses = imagenet.synergy.SynergyLoss()(logits, labels)
    losses.total.backward()
    top1 = torch.stack([(each.argmax(-1) == labels).sum() for each in logits])
    gradients = [parameter.grad.clone() for parameter in network.parameters()]
    return gradients, top1, torch.stack(losses).detach() * len(labels)


def test_gradients_and_metrics_are_those_of_the_readable_images(python, imagenet, tmp_path):
    """A batch lacks one of three images, the next all of them, the third two."""
    data = write_data(tmp_path / "data")
    files = imagenet.data.find_image_sets(data, None, 40, "crop").train
    batches = list(imagenet.loader.ResumableBatchSampler(13, 3, seed=0))
    lost = {key for batch, count in zip(batches, (1, 3, 2), strict=False) for key in batch[:count]}
    dataset = imagenet.data.AugmentedDataset(files, seed=0)
    torch.manual_seed(0)
    network = TinyNetwork("", num_classes=3).eval()
    std, mean = (
        255 * torch.tensor(values).view(3, 1, 1)
        for values in (imagenet.presets.IMAGENET_STD, imagenet.presets.IMAGENET_MEAN)
    )
    expected, top1, losses = [], 0, 0
    for batch in batches:
        pairs = [dataset[key] for key in batch if key not in lost]
        if not pairs:
            expected.append([torch.zeros_like(each) for each in network.parameters()])
            continue
        images = torch.stack([(image - mean) / std for image, _ in pairs])
        labels = torch.tensor([label for _, label in pairs])
        gradients, *sums = expected_step(imagenet, network, images, labels)
        expected.append(gradients)
        top1, losses = top1 + sums[0], losses + sums[1]
    for _, index in lost:
        files.paths[index].write_bytes(b"")
    script = tmp_path / "gradients.py"
    script.write_text(GRADIENTS_SCRIPT)
    done = python.run(script, data, tmp_path, *free_ports(3), path=[imagenet.path, TESTS])
    assert done.returncode == 0, done.stderr
    for world_size in (1, 2, 3):
        result = torch.load(tmp_path / f"{world_size}.pt")
        for actual, step in zip(result["gradients"], expected, strict=True):
            for a, b in zip(actual, step, strict=True):
                torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-6)
        sums = result["sums"]
        assert sums["unreadable"] == 6 and torch.equal(sums["top1"], top1.double())
        torch.testing.assert_close(sums["losses"], losses.double(), rtol=1e-5, atol=1e-6)
