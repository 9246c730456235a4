"""imagenet/train.py and main.py from the command line: results, model cards, errors of use."""

import json
import re

import pytest
import torch
import torchvision
from halves import load, records, write_data
from safetensors.torch import load_file
from small_imagenet import shrink
from synthetic import save_weights, set_constant_ranking, write_folders, write_image

NETWORK = ("-a", "resnet18", "--image-size", "32", "--model_path")


@pytest.fixture(scope="module", autouse=True)
def small(imagenet):
    with pytest.MonkeyPatch.context() as patch:
        shrink(imagenet, patch)
        yield


@pytest.fixture(scope="module")
def run(imagenet, module_path):
    """The folder of a run with averaged weights. Beside it are its images and its export."""
    data, run = write_data(module_path / "data"), module_path / "run"
    flags = "-a resnet50 --image-size 40 -b 4 --epochs 2 --lr 0.02 -j 0 --device cpu --ema 0.7"
    flags += " --label-smoothing 0.1 --grad-accumulation 2 --test-every 2"
    assert imagenet.status("train", [str(data), *flags.split(), "--save", str(run)]) == 0
    words = ["--model_path", str(run), "--export", str(module_path / "r50"), "--device", "cpu"]
    assert imagenet.status("main", words) == 0
    return run


@pytest.fixture(scope="module")
def weights(module_path):
    """A checkpoint of `NETWORK` that ranks classes 2, 5, 0, 1 and 3 first for every image."""
    model = torchvision.models.resnet18()
    set_constant_ranking(model.fc, [2, 5, 0, 1, 3])
    return save_weights(module_path / "weights.pth", model.state_dict())


@pytest.fixture(scope="module")
def val(imagenet, module_path):
    """Seven images: one of class 2, four of class 5, two of class 900."""
    synsets = imagenet.data.imagenet_synsets()
    return write_folders(module_path / "val-only", {synsets[2]: 1, synsets[5]: 4, synsets[900]: 2})


@pytest.fixture
def main(imagenet, capsys):
    """Run main.py; return its exit status, output and errors."""

    def main(*words):
        status = imagenet.status(
            "main", ["--device", "cpu", *"-j 0 -b 3".split(), *map(str, words)]
        )
        return status, *capsys.readouterr()

    return main


def last_line(top1, top5):
    return f"[Error rate] Top-1: {top1:.4f}%, Top-5: {top5:.4f}%"


@pytest.mark.parametrize("source", ["run", "run/checkpoint.pt", "r50", "r50/model.safetensors"])
def test_the_errors_are_those_that_the_run_has_logged(run, main, tmp_path, source):
    words = ("--model_path", run.parent / source, run.parent / "data", "--json", tmp_path / "a")
    status, out, err = main(*words, *(["--branches"] if "run" in source else []))
    scores, content = records(run)[-1]["ema"], json.loads((tmp_path / "a").read_text())
    top1 = scores["top1_errors"]
    assert (status, err) == (0, "") and "images of 40 pixels" in out
    assert out.splitlines()[-1] == last_line(top1[0], 0)  # of three classes
    assert (content["top1_error"], content["top5_error"], content["images"]) == (top1[0], 0, 5)
    if "run" in source:
        assert [*content["classifiers"]][1:] == ["shallow branch", "deep branch", "ensemble"]
        errors = [each["top1_error"] for each in content["classifiers"].values()]
        assert errors == [*top1, scores["ensemble_top1_error"]]
        assert f"[deep branch] top-1 error {top1[2]:.2f} %, top-5 error 0.00 %" in out


def test_a_test_of_some_of_the_classes_uses_their_indices(imagenet, main, tmp_path):
    """The network always predicts the class dog; only two of its classes have test images."""
    model = imagenet.resnet.build("resnet50", branches=False, num_classes=3)
    set_constant_ranking(model.fc, [0])
    metadata = {"arch": "resnet50", "classes": ["dog", "eel", "cat"], "image_size": 64}
    path = save_weights(tmp_path / "a.pt", model.state_dict(), metadata=metadata)
    write_folders(tmp_path, {"dog": 1, "cat": 3})
    flags = (
        "--model_path",
        path,
        "--image-size",
        40,
        "--dtype",
        "bfloat16",
        "--per-class",
        "--json",
    )
    status, out, _ = main(tmp_path, *flags, tmp_path / "a.json")
    assert status == 0 and out.splitlines()[-1] == last_line(75, 0)
    found = json.loads((tmp_path / "a.json").read_text())
    assert found["class_errors"] == {"dog": 0, "cat": 100}
    assert re.findall(r"^ +([\d.]+) %  (\w+)$", out, re.M) == [("0.00", "dog"), ("100.00", "cat")]
    assert "images of 40 pixels" in out


def test_imagenet_s_classes_are_found_by_their_names(imagenet, main, weights, val, tmp_path):
    status, out, err = main(*NETWORK, weights, val, "--json", tmp_path / "a.json")
    assert (status, err) == (0, "") and out.splitlines()[-1] == last_line(600 / 7, 200 / 7)
    found = json.loads((tmp_path / "a.json").read_text())
    assert [each["images"] for each in found["confused"]] == [4, 2]
    found = found["class_errors"]
    assert [*found.values()] == [0, 100, 100] and "great white shark (n01484850)" in found
    for seed, name in enumerate("ab"):
        write_image(tmp_path / "val" / f"{name}.png", seed)
    synsets = imagenet.data.imagenet_synsets()
    (tmp_path / "labels").write_text(f"a.png {synsets[2]}\nb.png {synsets[5]}\n")
    status, out, _ = main(*NETWORK, weights, tmp_path, "--val-labels", tmp_path / "labels")
    assert status == 0 and out.splitlines()[-1] == last_line(50, 0)


def test_released_weights_are_those_of_resnet18_by_default(main, val, tmp_path, monkeypatch):
    model = torchvision.models.resnet18()
    set_constant_ranking(model.fc, [5, 2, 0, 1, 3])
    monkeypatch.setattr(torch.hub, "_hub_dir", str(tmp_path))
    (tmp_path / "checkpoints").mkdir()
    path = save_weights(tmp_path / "checkpoints" / "dks_resnet18.pth", model.state_dict())
    status, out, _ = main("--pretrained", val, "--image-size", 40)
    assert status == 0 and out.splitlines()[-1] == last_line(300 / 7, 200 / 7)
    status, out, _ = main("--pretrained", "--export", tmp_path / "a.pth")
    assert status == 0 and f"weights: {path}\n" in out and "Error" not in out


def test_predictions_have_names_and_probabilities(run, main, weights, tmp_path):
    image, result = write_image(tmp_path / "cat.png"), tmp_path / "a.json"
    (tmp_path / "broken.png").write_bytes(b"no image")
    status, out, err = main(*NETWORK, weights, "--predict", tmp_path, "--json", result)
    assert status == 1 and err.startswith("error: ") and "broken.png: not an image" in err
    (found,) = json.loads(result.read_text())
    probabilities = torch.tensor([5.0, 4, 3, 2, 1]).softmax(0).tolist()  # the others have -30
    assert found["image"] == str(image) and str(image) in out
    assert [each["index"] for each in found["classes"]] == [2, 5, 0, 1, 3]
    assert [each["probability"] for each in found["classes"]] == pytest.approx(probabilities)
    assert f"{100 * probabilities[0]:6.2f}%  great white shark (n01484850)" in out
    status, out, _ = main("--model_path", run, "--predict", image)
    assert status == 0
    assert sorted(line.split()[1] for line in out.splitlines()[-3:]) == ["cat", "dog", "eel"]


def test_the_card_states_what_the_run_did(run):
    header, text = (run.parent / "r50" / "README.md").read_text().split("---\n", 2)[1:]
    assert "library_name: timm\n" in header
    scores = records(run)[-1]["ema"]
    top1, top5 = scores["top1_errors"][0], scores["top5_errors"][0]
    errors = f"**top-1 error {top1:.2f} %, top-5 error {top5:.2f} %**"
    assert f"averaged weights, on 5 test images after epoch 2 of 2: {errors}" in text
    assert "13 training images of 3 classes, 5 test images" in text and "(CVPR 2019)" in text
    rows = dict(re.findall(r"^\| `--([\w-]+)` \| (.+) \|$", text, re.MULTILINE))
    expected = {"ema": "0.7", "label-smoothing": "0.1", "lr": "0.02", "grad-accumulation": "2"}
    assert expected.items() <= rows.items() and rows["init"] == "none: random weights"
    assert rows["method"] == "dks" and not {"data", "save", "workers", "device"} & rows.keys()
    assert str(run.parent) not in text  # paths are private
    state = load_file(run.parent / "r50" / "model.safetensors")
    assert torch.equal(state["fc.weight"], load(run)["ema"]["fc.weight"])


def test_the_card_has_errors_of_exactly_these_weights(run, main, tmp_path):
    content = load(run) | {"ema": {}}
    (tmp_path / "log.jsonl").write_bytes((run / "log.jsonl").read_bytes())
    for number, (changes, says) in enumerate((
        ({}, "last weights, on 5 test images after epoch 2 of 2"),
        ({"step": 7}, "no record for exactly these weights"),
        ({"options": content["options"] | {"seed": 5}}, "no record for exactly these weights"),
        ({"options": None}, "Not known: the weights are not from a checkpoint of `train.py`."),
    )):  # fmt: skip
        torch.save(content | changes, tmp_path / "checkpoint.pt")
        assert main("--model_path", tmp_path, "--export", tmp_path / str(number))[0] == 0
        assert says in (tmp_path / str(number) / "README.md").read_text()


def test_a_damaged_image_in_a_worker_is_named_in_one_line(python, imagenet, weights, tmp_path):
    broken = write_image(tmp_path / "val" / "n01440764" / "broken.jpg")
    broken.write_bytes(b"not an image")
    words = [*NETWORK, weights, tmp_path, "-j", "1", "--device", "cpu"]
    done = python.run(imagenet.path / "main.py", *words, path=[imagenet.path])
    assert done.returncode == 2 and done.stderr.startswith(f"error: {broken}: not an image")
    assert done.stderr.count("\n") == 1


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("VAL", "give one source of weights: --model_path"),
        (
            "VAL --pretrained --model_path WEIGHTS",
            "give one source of weights: --model_path",
        ),
        ("VAL --model_path nowhere.pth", "nowhere.pth: no such file"),
        ("VAL --model_path VAL", "no checkpoint.pt in it yet"),
        ("VAL -a resnet19 --model_path WEIGHTS", "expected resnet18"),
        ("VAL -a resnet18 --model_path RUN", "weights of resnet50, not resnet18; use -a resnet50"),
        ("VAL -a resnet34 --model_path WEIGHTS", "taken for a resnet34: give its network with -a"),
        ("VAL --model_path RUN", "does not know 3 classes of the images, such as n01"),
        ("nowhere NETWORK", "nowhere: no such folder"),
        ("NETWORK", "give one of these: the folder that contains val/, --export PATH"),
        ("VAL NETWORK --branches", "no auxiliary branches; leave out --branches"),
        ("VAL NETWORK --json nowhere/a.json", "create it first"),
        ("VAL NETWORK --predict a.png", "give one of these: the folder"),
        ("NETWORK --predict nowhere.png", "nowhere.png: can't be read"),
        ("NETWORK --predict a.png --branches", "--branches has no effect with --predict"),
        ("--model_path RUN --export a.pth --json a.json", "--json has no effect with --export"),
        ("VAL NETWORK --export new.pth", "give one of these: the folder"),
        ("--model_path RUN --export WEIGHTS", "exists already"),
        ("--model_path RUN --export nowhere/a.pt", "no such folder"),
        ("--model_path RUN --export a.onnx", "ONNX is not written"),
        ("--model_path RUN --export a.ckpt", "expected a file that ends in .pth, .pt, .bin"),
        ("VAL --dataroot elsewhere --pretrained", "give one of them"),
        ("VAL --pretrained -a resnet34", "weights were released only for"),
        ("VAL NETWORK --val-labels nowhere", "No such file or directory: 'nowhere'"),
    ],
)
def test_errors_of_use_of_main_py(main, run, weights, val, tmp_path, monkeypatch, words, message):
    monkeypatch.chdir(tmp_path)
    names = {"VAL": [val], "WEIGHTS": [weights], "NETWORK": [*NETWORK, weights], "RUN": [run]}
    status, out, err = main(*(each for word in words.split() for each in names.get(word, [word])))
    assert status == 2 and "Error rate" not in out and not list(tmp_path.iterdir())
    assert message in err and err.startswith("error: ") and err.count("\n") == 1


def test_errors_of_use_of_train_py(imagenet, run, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    data = str(run.parent / "data")
    for words, message in (
        ("", "no data"),
        (f"{data} --image-size 32", "--image-size: expected a whole number from 33"),
        (f"{data} -a resnet152 --cache cache", "use --augmentation crop, or no cache"),
        (f"{data} --init {run} -b 4", "weights of resnet50, not resnet18"),
    ):
        capsys.readouterr()
        assert imagenet.status("train", [*words.split(), "--device", "cpu"]) == 2
        err = capsys.readouterr().err
        assert message in err and err.startswith("error: ") and err.count("\n") == 1
        assert not list(tmp_path.iterdir())
