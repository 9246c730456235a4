"""ImageNet evaluation and prediction, from the command line to the numbers."""

import json
import os
import subprocess
import sys

import pytest
import torch
import torchvision
from synthetic import always, save, write_folders, write_image

CHANCE = "[Error rate] Top-1: {:.4f}%, Top-5: {:.4f}%"


@pytest.fixture(scope="module")
def synsets(imagenet):
    return imagenet.validation_set.imagenet_synsets()


@pytest.fixture(scope="module")
def data(synsets, tmp_path_factory):
    """Seven images of classes 2, 5 and 900: one, four and two."""
    counts = {synsets[2]: 1, synsets[5]: 4, synsets[900]: 2}
    return write_folders(tmp_path_factory.mktemp("data"), counts)


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    """A network that finds class 2 the likeliest, class 5 second, class 900 nowhere near."""
    model = torchvision.models.shufflenet_v2_x0_5()
    always(model.fc, [2, 5, 0, 1, 3])
    state = {f"module.{name}": value for name, value in model.state_dict().items()}
    return save(tmp_path_factory.mktemp("weights") / "a.pth", state)


@pytest.fixture
def run(imagenet, capsys):
    """Runs main.py in this process, small and without workers: its status, output and errors."""

    def run(*arguments):
        small = ("--device", "cpu", "--image-size", "32", "-j", "0", "-b", "3")
        status = imagenet.main.main([*small, *map(str, arguments)])
        return status, *capsys.readouterr()

    return run


NETWORK = ("-a", "shufflenet_v2_x0_5", "--model_path")


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_errors_are_counted_over_all_thousand_classes(run, weights, data, tmp_path, dtype):
    result = tmp_path / "result.json"
    status, out, err = run(*NETWORK, weights, data, "--json", result, "--dtype", dtype, "-p", 1)
    assert status == 0
    assert out.splitlines()[-1] == CHANCE.format(100 * 6 / 7, 100 * 2 / 7)
    assert "top-1 85.71%" in err  # the bar
    content = json.loads(result.read_text())
    assert content["top1_error"] == pytest.approx(100 * 6 / 7)
    assert content["top5_error"] == pytest.approx(100 * 2 / 7)
    assert (content["images"], content["unreadable"]) == (7, 0)
    assert content["images_per_s"] == pytest.approx(7 / content["seconds"])
    assert content["options"]["dtype"] == dtype
    assert content["checkpoint"] == str(weights)
    assert f"SHA-256 {content['sha256']}" in out and len(content["sha256"]) == 64


def test_branches_and_their_ensemble(imagenet, run, tmp_path, monkeypatch):
    """Backbone and deep branch always say b, whose index is 0, the shallow branch a."""
    resnet = imagenet.resnet
    row = resnet.Network(
        resnet.BasicBlock,
        (1, 1, 1, 1),
        shallow=(resnet.Stage(1, 8), resnet.Stage(1, 8)),
        deep=(resnet.Stage(1, 8),),
    )
    monkeypatch.setitem(resnet.NETWORKS, "resnet18", row)
    model = resnet.build("resnet18", num_classes=7)
    always(model.fc, [0, 1])
    always(model.branches[0].classifier, [1])
    always(model.branches[1].classifier, [0, 1])
    names = ["b", "a", *"cdefg"]  # not in the order of folders
    path = save(tmp_path / "a.pt", model.state_dict(), class_names=names, arch="resnet18")
    write_folders(tmp_path, {"a": 1, "b": 3})
    status, out, _ = run("--model_path", path, tmp_path, "--branches")
    assert status == 0
    assert [line.split(",")[0] for line in out.splitlines()[-5:]] == [
        "[backbone] Top-1: 25.0000%",
        "[shallow branch] Top-1: 75.0000%",
        "[deep branch] Top-1: 25.0000%",
        # Of b and a it averages (.73, .27), (0, 1) and (.73, .27).
        "[average] Top-1: 75.0000%",
        "[Error rate] Top-1: 25.0000%",
    ]
    backbone, whole = (line for line in out.splitlines() if "multiply-adds" in line)
    status, out, _ = run("--model_path", path, tmp_path)
    assert status == 0 and "[shallow" not in out
    assert out.splitlines()[-1].startswith("[Error rate] Top-1: 25.0000%")
    alone = torchvision.models.ResNet(resnet.BasicBlock, [1, 1, 1, 1], num_classes=7)
    assert f"to use: {sum(p.numel() for p in alone.parameters()):,} parameters" in backbone
    assert f"with DKS: {sum(p.numel() for p in model.parameters()):,} parameters" in whole


def test_folder_order_counts_for_other_networks(run, data, tmp_path):
    model = torchvision.models.shufflenet_v2_x0_5(num_classes=3)
    always(model.fc, [1])
    path = save(tmp_path / "a.pth", model.state_dict())
    status, out, _ = run(*NETWORK, path, data)
    assert status == 0 and out.splitlines()[-1] == CHANCE.format(100 * 3 / 7, 0)


def test_flat_folder_with_labels(run, weights, synsets, tmp_path):
    for seed, name in enumerate("ab"):
        write_image(tmp_path / "val" / f"{name}.png", seed)
    (tmp_path / "labels").write_text(f"a.png {synsets[2]}\nb.png {synsets[5]}\n")
    status, out, _ = run(*NETWORK, weights, tmp_path, "--val-labels", tmp_path / "labels")
    assert status == 0 and out.splitlines()[-1] == CHANCE.format(50, 0)


def test_unreadable_images_end_the_run_or_are_counted(run, weights, synsets, tmp_path):
    write_folders(tmp_path, {synsets[2]: 1, synsets[900]: 1})
    broken = tmp_path / "val" / synsets[5] / "broken.jpg"
    broken.parent.mkdir()
    broken.write_bytes(b"no image")
    status, _, err = run(*NETWORK, weights, tmp_path)
    assert status == 2 and str(broken) in err and "Traceback" not in err
    status, out, err = run(*NETWORK, weights, tmp_path, "--skip-unreadable")
    assert status == 0 and "1 image(s) could not be read" in out and str(broken) in err
    assert out.splitlines()[-1] == CHANCE.format(50, 50)


def test_two_processes_score_each_image_once(weights, data, imagenet, run):
    arguments = [*NETWORK, str(weights), str(data), "--device", "cpu", "--image-size", "32"]
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    ran = subprocess.run(
        [*torchrun, "--nproc_per_node", "2", "main.py", *arguments, "-j", "0", "-b", "4"],
        cwd=imagenet.path,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=100,
    )
    assert ran.returncode == 0, ran.stderr
    status, out, _ = run(*NETWORK, weights, data)
    assert ran.stdout.splitlines()[-1] == out.splitlines()[-1]
    assert ran.stdout.count("[Error rate]") == 1 and "7 images in" in ran.stdout


def test_script_refuses_in_one_line_what_a_worker_finds(weights, synsets, tmp_path, imagenet):
    broken = tmp_path / "val" / synsets[5] / "broken.jpg"
    broken.parent.mkdir(parents=True)
    broken.write_bytes(b"no image")
    ran = subprocess.run(
        [sys.executable, imagenet.path / "main.py", *NETWORK, weights, tmp_path, "-j", "1"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=100,
    )
    error = ran.stderr.splitlines()[-1]
    assert ran.returncode == 2
    assert error.startswith(f"error: {broken}: not an image") and "Traceback" not in ran.stderr


def test_predictions_name_the_classes(run, weights, tmp_path):
    image = write_image(tmp_path / "cat.png")
    status, out, _ = run(*NETWORK, weights, "--predict", image, image)
    assert status == 0
    lines = out.splitlines()[-12:]
    assert lines[0] == lines[6] == str(image)
    assert lines[1].split("%")[1].strip() == "great white shark (n01484850)"
    # Logits 5, 4, 3, 2, 1 and 995 of -30.
    shares = torch.tensor([5.0, 4, 3, 2, 1]).softmax(0)
    assert [float(line.split("%")[0]) for line in lines[1:6]] == pytest.approx(
        (100 * shares).tolist(), abs=0.006
    )


@pytest.fixture
def cached(tmp_path, weights):
    """A hub cache that already holds `resnet18`'s released weights."""
    model = torchvision.models.resnet18()
    always(model.fc, [2, 5, 0, 1, 3])
    before = torch.hub.get_dir()
    torch.hub.set_dir(str(tmp_path / "hub"))
    (tmp_path / "hub" / "checkpoints").mkdir(parents=True)
    yield save(tmp_path / "hub" / "checkpoints" / "dks_resnet18.pth", model.state_dict())
    torch.hub.set_dir(before)


def test_released_weights_come_from_the_cache(run, cached, data):
    status, out, _ = run("--pretrained", data)
    assert status == 0 and str(cached) in out
    assert out.splitlines()[-1] == CHANCE.format(100 * 6 / 7, 100 * 2 / 7)
    status, out, _ = run("-a", "resnet18", "--download-only")
    assert status == 0 and f"{cached}, SHA-256" in out and "Error rate" not in out


def test_weights_of_torchvisions_own(run, imagenet, data, monkeypatch):
    model = torchvision.models.shufflenet_v2_x0_5()
    always(model.fc, [2, 5, 0, 1, 3])
    monkeypatch.setattr("torchvision.models.get_model", lambda arch, weights: model)
    own = ("-a", "shufflenet_v2_x0_5", "--torchvision-weights")
    status, out, _ = run(*own, "IMAGENET1K_V1", data)
    assert status == 0 and out.splitlines()[-1] == CHANCE.format(100 * 6 / 7, 100 * 2 / 7)
    status, _, err = run(*own, "IMAGENET22K", data)
    assert status == 2 and "IMAGENET1K_V1" in err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["DATA"], "no weights given"),
        (["DATA", "--pretrained", "--model_path", "WEIGHTS"], "several kinds of weights"),
        (["DATA", "--model_path", "nowhere.pth"], "nowhere.pth: no such file"),
        (["DATA", "--model_path", "WEIGHTS"], "is of another network: it lacks"),
        (["DATA", "-a", "resnet19", "--model_path", "WEIGHTS"], "resnet19: expected one of"),
        (["nowhere", *NETWORK, "WEIGHTS"], "nowhere/val: no such folder"),
        ([*NETWORK, "WEIGHTS"], "no data"),
        (["DATA", *NETWORK, "WEIGHTS", "--branches"], "no auxiliary branches"),
        (["DATA", "--pretrained", "--branches"], "--branches"),
        (["DATA", *NETWORK, "WEIGHTS", "--json", "nowhere/a.json"], "make it first"),
        (["DATA", *NETWORK, "WEIGHTS", "--json", "/dev/null"], "no file"),
        (["DATA", *NETWORK, "WEIGHTS", "--json", ""], "no file"),
        (["DATA", *NETWORK, "WEIGHTS", "--json", "WEIGHTS"], "the checkpoint itself"),
        (["DATA", *NETWORK, "WEIGHTS", "--predict", "a.png"], "leave out a data folder"),
        ([*NETWORK, "WEIGHTS", "--json", "a.json", "--predict", "a.png"], "leave out --json"),
        ([*NETWORK, "WEIGHTS", "--predict", "nowhere.png"], "nowhere.png: no such file"),
        (["--download-only", "--model_path", "WEIGHTS"], "several kinds of weights"),
        (["--download-only", "DATA"], "leave out a data folder"),
        (["--download-only", "--predict", "a.png"], "leave out --predict"),
        (["--download-only", "-a", "resnet34"], "weights were released for"),
        (["DATA", "--pretrained", "-a", "resnet34"], "weights were released for"),
        (["DATA", *NETWORK, "WEIGHTS", "-j", "1025"], "from 0 to 1024"),
        (["DATA", *NETWORK, "WEIGHTS", "-b", "0"], "expected a whole number of at least 1"),
        (["DATA", *NETWORK, "WEIGHTS", "--device", "cuda:99"], "cuda:99"),
        (["DATA", *NETWORK, "WEIGHTS", "--no-such-flag"], "--no-such-flag"),
    ],
)
def test_bad_input_is_refused_in_one_line(run, weights, data, arguments, message):
    places = {"DATA": data, "WEIGHTS": weights}
    status, out, err = run(*(places.get(word, word) for word in arguments))
    assert status == 2 and "Error rate" not in out
    assert message in err and err.startswith("error: ") and err.count("\n") == 1


@pytest.mark.parametrize("size", [32, 64])
def test_another_image_size_than_in_training_is_said(run, weights, data, tmp_path, size):
    content = {"model": torch.load(weights), "options": {"image_size": size}}
    status, out, _ = run(*NETWORK, save(tmp_path / "a.pth", content), data)
    assert status == 0 and ("--image-size 64 matches training" in out) == (size == 64)


def test_images_of_a_size_that_the_network_cannot_take(run, data, tmp_path):
    path = save(tmp_path / "a.pth", torchvision.models.squeezenet1_1().state_dict())
    status, _, err = run("-a", "squeezenet1_1", "--model_path", path, data, "--image-size", "8")
    assert status == 2 and "--image-size 8" in err


class Faulty(torch.nn.Module):
    """Answers with an exception or with constant logits."""

    def __init__(self, answer):
        super().__init__()
        self.answer = answer

    def forward(self, images):
        if isinstance(self.answer, Exception):
            raise self.answer
        return (torch.full((len(images), 10), self.answer),)


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        (torch.OutOfMemoryError("CUDA out of memory"), "-b"),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory"), "-b"),
        (float("nan"), "not finite on 4 image"),
    ],
)
def test_full_memory_and_broken_outputs_are_refused(imagenet, answer, message):
    loader = torch.utils.data.DataLoader([(torch.zeros(3, 8, 8), 0)] * 4, batch_size=2)
    with pytest.raises(imagenet.command_line.UserError, match=message):
        imagenet.evaluate.evaluate(Faulty(answer), loader, torch.device("cpu"))


def test_other_errors_are_not_taken_for_full_memory(imagenet):
    loader = torch.utils.data.DataLoader([(torch.zeros(3, 8, 8), 0)] * 4, batch_size=2)
    with pytest.raises(RuntimeError, match="a mistake"):
        imagenet.evaluate.evaluate(Faulty(RuntimeError("a mistake")), loader, torch.device("cpu"))


def test_every_flag_has_help_and_is_read(imagenet):
    parser = imagenet.options.build_parser()
    code = "".join(
        (imagenet.path / f"{name}.py").read_text() for name in ("main", "options", "results")
    )
    for action in parser._actions:
        assert action.help
        assert action.dest == "help" or f"config.{action.dest}" in code, action.dest
