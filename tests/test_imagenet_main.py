"""imagenet/main.py: evaluation and prediction from the command line."""

import functools
import json
import sys
import time

import pytest
import torch
import torchvision
from conftest import TESTS
from evaluation import NETWORK, error_rate, run_main, write_checkpoint, write_validation_set
from processes import free_ports
from synthetic import save_weights, set_constant_ranking, write_folders, write_image


@pytest.fixture(scope="module")
def synsets(imagenet):
    return imagenet.validation_set.imagenet_synsets()


@pytest.fixture(scope="module")
def data(imagenet, tmp_path_factory):
    return write_validation_set(imagenet, tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    return write_checkpoint(tmp_path_factory.mktemp("weights") / "a.pth")


@pytest.fixture
def run(imagenet, capsys):
    return functools.partial(run_main, imagenet, capsys)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_errors_are_printed_and_written_as_json(run, weights, data, tmp_path, dtype):
    result = tmp_path / "result.json"
    status, out, err = run(*NETWORK, weights, data, "--json", result, "--dtype", dtype, "-p", 1)
    assert status == 0 and err == ""  # no progress bar: standard error is not a terminal
    assert out.splitlines()[-1] == error_rate(100 * 6 / 7, 100 * 2 / 7)
    assert f"device cpu, dtype {dtype}, images of 32 pixels" in out
    content = json.loads(result.read_text())
    assert content["top1_error"] == pytest.approx(100 * 6 / 7)
    assert content["top5_error"] == pytest.approx(100 * 2 / 7)
    assert (content["images"], content["unreadable"]) == (7, 0)
    assert content["images_per_s"] == pytest.approx(7 / content["seconds"])
    assert content["options"]["dtype"] == dtype
    assert content["checkpoint"] == str(weights)
    assert f"SHA-256 {content['sha256']}" in out and len(content["sha256"]) == 64


def test_branches_and_ensemble_are_evaluated(imagenet, run, tmp_path, monkeypatch):
    """The backbone always predicts class b, the branches class a."""
    resnet = imagenet.resnet
    config = resnet.NetworkConfig(
        resnet.BasicBlock,
        (1, 1, 1, 1),
        branches=(
            resnet.BranchSpec(2, (resnet.Stage(1, 8), resnet.Stage(1, 8))),
            resnet.BranchSpec(3, (resnet.Stage(1, 8),)),
        ),
    )
    monkeypatch.setitem(resnet.NETWORKS, "resnet18", config)
    model = resnet.build("resnet18", num_classes=7)
    set_constant_ranking(model.fc, [0, 1])
    set_constant_ranking(model.branches[0].classifier, [1])
    set_constant_ranking(model.branches[1].classifier, [1, 0])
    names = ["b", "a", *"cdefg"]  # not in the order of the folders
    path = save_weights(tmp_path / "a.pt", model.state_dict(), class_names=names, arch="resnet18")
    write_folders(tmp_path, {"a": 1, "b": 3})
    result = tmp_path / "result.json"
    status, out, _ = run("--model_path", path, tmp_path, "--branches", "--json", result)
    assert status == 0
    assert out.splitlines()[-5:] == [
        "[backbone] Top-1 error: 25.0000%, Top-5 error: 0.0000%",
        "[shallow branch] Top-1 error: 75.0000%, Top-5 error: 0.0000%",
        "[deep branch] Top-1 error: 75.0000%, Top-5 error: 0.0000%",
        # Mean of the probabilities (.73, .27), (0, 1) and (.27, .73) of b and a.
        "[ensemble] Top-1 error: 75.0000%, Top-5 error: 0.0000%",
        error_rate(25, 0),
    ]
    content = json.loads(result.read_text())
    classifiers = content["classifiers"]
    assert content["top1_error"] == 25  # the backbone's
    assert [*classifiers] == ["backbone", "shallow branch", "deep branch", "ensemble"]
    assert classifiers["ensemble"] == {"top1_error": 75, "top5_error": 0}
    for_inference, for_training = (line for line in out.splitlines() if "multiply-adds" in line)
    backbone = torchvision.models.ResNet(resnet.BasicBlock, [1, 1, 1, 1], num_classes=7)
    for network, line in ((backbone, for_inference), (model, for_training)):
        assert f": {sum(p.numel() for p in network.parameters()):,} parameters" in line
    status, out, _ = run("--model_path", path, tmp_path)
    assert status == 0 and "[shallow" not in out
    assert out.splitlines()[-1].startswith("[Error rate] Top-1: 25.0000%")


def test_networks_of_other_classes_use_the_folder_order(run, data, tmp_path):
    model = torchvision.models.shufflenet_v2_x0_5(num_classes=3)
    set_constant_ranking(model.fc, [1])
    path = save_weights(tmp_path / "a.pth", model.state_dict())
    status, out, _ = run(*NETWORK, path, data)
    assert status == 0 and out.splitlines()[-1] == error_rate(100 * 3 / 7, 0)


def test_flat_folder_is_evaluated_with_a_label_file(run, weights, synsets, tmp_path):
    for seed, name in enumerate("ab"):
        write_image(tmp_path / "val" / f"{name}.png", seed)
    (tmp_path / "labels").write_text(f"a.png {synsets[2]}\nb.png {synsets[5]}\n")
    status, out, _ = run(*NETWORK, weights, tmp_path, "--val-labels", tmp_path / "labels")
    assert status == 0 and out.splitlines()[-1] == error_rate(50, 0)


def test_unreadable_images_are_refused_or_skipped(run, weights, synsets, tmp_path):
    write_folders(tmp_path, {synsets[2]: 1, synsets[900]: 1})
    broken = tmp_path / "val" / synsets[5] / "broken.jpg"
    broken.parent.mkdir()
    broken.write_bytes(b"not an image")
    status, _, err = run(*NETWORK, weights, tmp_path)
    assert status == 2 and str(broken) in err and "Traceback" not in err
    status, out, err = run(*NETWORK, weights, tmp_path, "--skip-unreadable")
    assert status == 0 and "skipped 1 image that" in out and str(broken) in err
    assert out.splitlines()[-1] == error_rate(50, 50)


# Arguments: a free port, and the arguments of main.py.
GROUP_SCRIPT = """
import sys
import main
from worlds import compute_in_groups

def run(processes):
    assert main.main(sys.argv[2:]) == 0
    sys.stdout.flush()

sys.exit(compute_in_groups(run, {2: sys.argv[1]}))
"""


def test_two_processes_score_each_image_once(python, weights, data, imagenet, tmp_path):
    """A single process prints the same last line."""
    arguments = [*NETWORK, weights, data, *"--device cpu --image-size 32 -j 0 -b 4".split()]
    script = tmp_path / "script.py"
    script.write_text(GROUP_SCRIPT)
    done = python.run(script, *free_ports(1), *arguments, path=[imagenet.path, TESTS])
    assert done.returncode == 0, done.stderr
    rates = [line for line in done.stdout.splitlines() if "[Error rate]" in line]
    assert len(rates) == 2 and rates[0] == rates[1]
    assert done.stdout.count("7 images in") == 2
    assert done.stdout.count("2 processes on cpu, dtype float32") == 1


def test_predictions_have_class_names_and_probabilities(run, weights, tmp_path):
    image = write_image(tmp_path / "cat.png")
    result = tmp_path / "result.json"
    status, out, _ = run(*NETWORK, weights, "--predict", image, image, "--json", result)
    assert status == 0
    lines = out.splitlines()[-12:]
    assert lines[0] == lines[6] == str(image)
    assert lines[1].split("%")[1].strip() == "great white shark (n01484850)"
    # The logits are 5, 4, 3, 2, 1 and 995 times -30.
    probabilities = torch.tensor([5.0, 4, 3, 2, 1]).softmax(0)
    assert [float(line.split("%")[0]) for line in lines[1:6]] == pytest.approx(
        (100 * probabilities).tolist(), abs=0.006
    )
    first, second = json.loads(result.read_text())
    assert first == second and first["image"] == str(image) and len(first["classes"]) == 5
    best = {"name": "great white shark (n01484850)", "index": 2}
    assert first["classes"][0] == best | {"probability": pytest.approx(probabilities[0].item())}


@pytest.fixture
def cached(tmp_path):
    """A hub cache that already holds the released weights of `resnet18`."""
    model = torchvision.models.resnet18()
    set_constant_ranking(model.fc, [2, 5, 0, 1, 3])
    before = torch.hub.get_dir()
    torch.hub.set_dir(str(tmp_path / "hub"))
    (tmp_path / "hub" / "checkpoints").mkdir(parents=True)
    yield save_weights(tmp_path / "hub" / "checkpoints" / "dks_resnet18.pth", model.state_dict())
    torch.hub.set_dir(before)


def test_released_weights_are_taken_from_the_cache(run, cached, data):
    status, out, _ = run("--pretrained", data)
    assert status == 0 and str(cached) in out
    assert out.splitlines()[-1] == error_rate(100 * 6 / 7, 100 * 2 / 7)
    status, out, _ = run("-a", "resnet18", "--download-only")
    assert status == 0 and f"{cached}, SHA-256" in out and "Error rate" not in out


def test_torchvision_weights_are_evaluated(run, data, monkeypatch):
    model = torchvision.models.shufflenet_v2_x0_5()
    set_constant_ranking(model.fc, [2, 5, 0, 1, 3])
    monkeypatch.setattr("torchvision.models.get_model", lambda arch, weights: model)
    flags = ("-a", "shufflenet_v2_x0_5", "--torchvision-weights")
    status, out, _ = run(*flags, "IMAGENET1K_V1", data)
    assert status == 0 and out.splitlines()[-1] == error_rate(100 * 6 / 7, 100 * 2 / 7)
    status, _, err = run(*flags, "IMAGENET22K", data)
    assert status == 2 and "IMAGENET1K_V1" in err


@pytest.mark.parametrize(("size", "dtype"), [(32, "float32"), (64, "bfloat16")])
def test_notes_say_how_evaluation_differs_from_training(run, weights, data, tmp_path, size, dtype):
    content = {"model": torch.load(weights), "options": {"image_size": size, "dtype": dtype}}
    status, out, _ = run(*NETWORK, save_weights(tmp_path / "a.pth", content), data)
    assert status == 0
    assert ("--image-size 64 matches training" in out) == (size == 64)
    assert ("--dtype bfloat16 matches training" in out) == (dtype == "bfloat16")


def test_the_progress_bar_shows_errors_in_a_terminal(imagenet, capsys, monkeypatch):
    scores = imagenet.evaluate.Scores((imagenet.evaluate.Errors(85.714, 28.571),), None, 7, 0)
    for terminal in (False, True):
        monkeypatch.setattr(sys.stderr, "isatty", lambda shown=terminal: shown, raising=False)
        with imagenet.progress.EvaluationProgress(2, 1) as progress:
            progress(lambda: scores)
            time.sleep(0.2)  # tqdm draws at intervals
            progress(lambda: scores)
        bar = capsys.readouterr().err
        assert ("top-1 error 85.71 %, top-5 error 28.57 %" in bar) if terminal else not bar


def test_the_ensemble_averages_probabilities_not_logits(imagenet):
    """The mean of these logits is largest for class 0, that of the probabilities for class 1."""
    logits = [torch.tensor([row]) for row in ([30.0, 0, 0], [0, 6.0, 0], [0, 6.0, 0])]
    assert torch.stack(logits).mean(0).argmax() == 0
    counts = imagenet.evaluate.batch_counts(logits, torch.tensor([1]))
    assert counts["top1"].tolist() == [0, 1, 1, 1]


def test_json_can_not_overwrite_an_input_or_a_file_of_a_run(run, weights, data, tmp_path):
    image = write_image(tmp_path / "cat.png")
    before = image.read_bytes()
    status, _, error = run(*NETWORK, weights, "--predict", image, "--json", image)
    assert status == 2 and "this command reads it" in error and image.read_bytes() == before
    for name in ("checkpoint.pt", "log.jsonl"):
        (tmp_path / name).write_text("of a run")
    status, _, error = run(*NETWORK, weights, data, "--json", tmp_path / "log.jsonl")
    assert status == 2 and "a file of a run" in error
    assert (tmp_path / "log.jsonl").read_text() == "of a run"
