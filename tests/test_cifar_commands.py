"""wrn_DKS/main.py with a trained network: test, export, predict, start from it; errors of use."""

import json
import shutil

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from sklearn.datasets import load_digits
from synthetic import write_folders

NETWORKS = {
    "wrn": "--dataset digits --depth 10 --width 0.25 --batch-size 256",
    "resnet": "--dataset folder --image-size 9 --arch resnet --depth 8 -b 4 --method baseline",
}


@pytest.fixture(scope="module")
def main(wrn):
    """Call wrn_DKS/main.py with these words."""
    split = lambda words: [word for each in words for word in str(each).split()]  # noqa: E731
    return lambda *words: wrn.status("main", split(words))


@pytest.fixture(scope="module")
def images(module_path):
    """A folder of images of two classes."""
    write_folders(module_path / "images", {"cat": 6, "dog": 6}, "train")
    return write_folders(module_path / "images", {"cat": 3, "dog": 2}, "val")


@pytest.fixture(scope="module")
def runs(main, images, module_path):
    """DKS on the digits; a ResNet without branches on images, with an average of its weights."""
    folders = {name: module_path / name for name in NETWORKS}
    more = {"resnet": f"--dataroot {images} --ema 0.8 --dtype bfloat16"}
    for name, words in NETWORKS.items():
        assert main(words, "--epochs 2 --save", folders[name], more.get(name, "")) == 0
    return folders


@pytest.fixture(scope="module", params=NETWORKS)
def run(request, runs):
    return runs[request.param]


def last_scores(run):
    """Return the scores that the log has for the weights that are tested and exported."""
    record = json.loads((run / "log.jsonl").read_text().splitlines()[-1])
    return record.get("ema") or record["test"]


@pytest.mark.parametrize("form", ["folder", "checkpoint", ".pt", ".safetensors"])
def test_the_logged_errors_are_evaluated(main, run, images, tmp_path, capsys, form):
    """Of all classifiers of a run, and of the backbone alone in an export."""
    words = {"folder": f"--resume {run}", "checkpoint": f"--model_path {run}/checkpoint.pt -b 3"}
    if form not in words:
        words[form] = f"--resume {tmp_path}/x{form}"
        assert main("--resume", run, "--export", f"{tmp_path}/x{form}") == 0
        averaged = "backbone (averaged weights) to " in capsys.readouterr().out
        assert averaged == (run.name == "resnet")  # which has --ema
    assert main("--evaluate --dataroot", images, words[form]) == 0
    scores = last_scores(run)
    pairs = [*zip(scores["top1_errors"], scores["top5_errors"], strict=True)]
    if len(pairs) > 1:
        pairs.append((scores["ensemble_top1_error"], scores["ensemble_top5_error"]))
    names = ["backbone", "shallow branch", "deep branch", "ensemble"][: len(pairs)]
    texts = [f"top-1 error {top1:.2f} %, top-5 error {top5:.2f} %" for top1, top5 in pairs]
    lines = [f"[{name}] {text}" for name, text in zip(names, texts, strict=True)]
    out = [line for line in capsys.readouterr().out.splitlines() if line[0] == "["]
    assert out == (lines[:1] if form[0] == "." else lines)


@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
def test_a_finished_run_exports_a_plain_state_dict(main, wrn, run, suffix, tmp_path, monkeypatch):
    """At once, without the data; on the CPU, of the averaged weights; never over a file."""
    monkeypatch.setattr(wrn.main, "load_dataset", None)
    path = tmp_path / f"x{suffix}"
    words = f"{NETWORKS[run.name]} --save {run} --resume auto --export {path}"
    assert main(words) == 0
    state = load_file(path) if suffix == ".safetensors" else torch.load(path, weights_only=True)
    networks = {"resnet": wrn.resnet.PlainResNet(8, 2, False)}
    networks["wrn"] = wrn.wide_resnet.PlainWideResNet(10, 0.25, 10, branches=False)
    networks[run.name].load_state_dict(state)
    content = torch.load(run / "checkpoint.pt", weights_only=True)
    assert bool(content["ema"]) == (run.name == "resnet")
    trained = content["ema"] or content["model"]
    assert all(torch.equal(value, trained[name]) for name, value in state.items())
    assert {value.device.type for value in state.values()} == {"cpu"}
    before = path.read_bytes()
    assert main(words) == 2 and path.read_bytes() == before


def test_a_test_scores_the_last_digits_normalized_by_the_others(wrn, runs):
    """Computed again from the definitions, without the program."""
    pixels = (load_digits().images * (255 / 16)).round() / 255
    mean, std = pixels[:1437].mean(), pixels[:1437].std()
    images = torch.from_numpy((pixels[1437:] - mean) / std).float()[:, None].repeat(1, 3, 1, 1)
    labels = torch.from_numpy(load_digits().target[1437:])
    network = wrn.wide_resnet.WideResNet(10, 0.25, 10)
    content = torch.load(runs["wrn"] / "checkpoint.pt", weights_only=True)
    network.load_state_dict(content["model"])
    with torch.no_grad():
        log_p = torch.stack(network.eval()(images)).double().log_softmax(-1)
    scores = last_scores(runs["wrn"])
    together = torch.cat([log_p.exp(), log_p.exp().mean(0, keepdim=True)])
    errors = 100 * (together.argmax(-1) != labels).double().mean(-1)
    assert [*scores["top1_errors"], scores["ensemble_top1_error"]] == pytest.approx(errors.tolist())
    kl = [[(p.exp() * (p - q)).sum(-1).mean() for q in log_p] for p in log_p]
    np.testing.assert_allclose(scores["divergences"], kl, rtol=1e-3, atol=1e-6)
    cross_entropies = -log_p[:, range(360), labels].mean(-1)
    parts = (cross_entropies[0], cross_entropies[1:].sum(), np.sum(kl))
    expected = [float(part) for part in (sum(parts), *parts)]
    assert [*scores["losses"].values()] == pytest.approx(expected, rel=1e-4)


def test_json_and_errors_per_class(main, runs, tmp_path, capsys):
    path, scores = tmp_path / "x.json", last_scores(runs["wrn"])
    assert main("--evaluate --per-class --resume", runs["wrn"], "--json", path) == 0
    out, found = capsys.readouterr().out, json.loads(path.read_text())
    assert found["images"] == 360 and found["options"]["depth"] == 10
    errors = [each["top1_error"] for each in found["classifiers"].values()]
    assert errors == [*scores["top1_errors"], scores["ensemble_top1_error"]]
    assert found["top1_error"] == found["classifiers"]["backbone"]["top1_error"]
    counts = np.bincount(load_digits().target[1437:])
    wrong = [found["class_errors"][str(i)] / 100 * counts[i] for i in range(10)]
    assert 100 * sum(wrong) / 360 == pytest.approx(scores["top1_errors"][0])
    for name, error in found["class_errors"].items():
        assert f"{error:.2f} %  {name}\n" in out
    for pair in found["confused"]:
        assert "{images} ×  {class} taken for {predicted}\n".format(**pair) in out
    pairs = [(each["images"], each["class"], each["predicted"]) for each in found["confused"]]
    assert pairs == sorted(pairs, key=lambda pair: -pair[0])
    assert all(count <= wrong[int(name)] + 1e-6 for count, name, _ in pairs)
    assert len(pairs) == 10 and all(name != predicted for _, name, predicted in pairs)


def test_predictions(main, images, runs, tmp_path, capsys):
    """Of files and a folder, without a damaged one; they are wrong as often as the test says."""
    paths, wrong = sorted(images.glob("val/*/*")), 0
    bad = tmp_path / "bad.png"
    bad.write_bytes(paths[0].read_bytes()[:300])
    words = ("--dtype bfloat16 --resume", runs["resnet"], "--json", tmp_path / "x.json")
    assert main("--predict", bad, images / "val" / "cat", *paths[3:], *words) == 1
    out, error = capsys.readouterr()
    assert error.startswith(f"error: {bad}: not an image") and error.count("\n") == 1
    predictions = json.loads((tmp_path / "x.json").read_text())
    for image, prediction in zip(paths, predictions, strict=True):
        assert prediction["image"] == str(image)
        names, indices, p = zip(*(each.values() for each in prediction["classes"]), strict=True)
        assert names == tuple(("cat", "dog")[i] for i in indices)
        assert p[0] >= p[1] and sum(p) == pytest.approx(1)
        assert f"{image}\n  {100 * p[0]:6.2f}%  {names[0]}\n" in out
        wrong += names[0] != image.parent.name
    assert 100 * wrong / 5 == pytest.approx(last_scores(runs["resnet"])["top1_errors"][0])
    assert main("--predict", bad, *words) == 2


def test_init_starts_from_the_backbone(main, runs, images, tmp_path, capsys):
    """With the learning rate 0, it stays. A classifier of other classes is not taken."""
    trained = torch.load(runs["resnet"] / "checkpoint.pt", weights_only=True)["ema"]
    shutil.copytree(images, tmp_path / "other")
    for part in ("train", "val"):
        (tmp_path / "other" / part / "dog").rename(tmp_path / "other" / part / "eel")
    random = {
        images: "random: branches\n",
        tmp_path / "other": "random: classifier, branches\n",
    }
    for root, message in random.items():
        words = (NETWORKS["resnet"], "--method dks --epochs 1 --lr 0 --dataroot", root)
        assert main(*words, "--init", runs["resnet"], "--save", tmp_path / root.name) == 0
        assert f"loaded the backbone; {message}" in capsys.readouterr().out
        weights = torch.load(tmp_path / root.name / "checkpoint.pt", weights_only=True)["model"]
        for name in ("stem.weight", "groups.2.0.conv1.weight", "groups.0.0.bn0.weight"):
            assert torch.equal(weights[name], trained[name])
        same = torch.equal(weights["classifier.fc.weight"], trained["classifier.fc.weight"])
        assert same == (root == images)


@pytest.mark.parametrize(
    ("words", "says"),
    [
        ("--depth 12", "--depth 12: expected 6n + 4"),
        ("--arch resnet --depth 16", "--depth 16: expected 6n + 2"),
        ("--arch resnet --width 2", "--width 2: only for --arch wrn"),
        ("--arch resnt", "did you mean resnet?"),
        ("--ngpu 4", "torchrun --nproc_per_node 4"),
        ("--epoch_step 0,3", "expected epochs counted from 1"),
        ("--evaluate", "--evaluate requires --resume PATH"),
        ("--predict x.png --evaluate --resume RUN", "can't be combined with"),
        ("--predict nowhere.png --resume RUN", "nowhere.png: can't be read"),
        ("--evaluate --resume RUN --lr 0.2", "--lr has no effect with --evaluate"),
        ("--predict x.png --resume RUN --epochs 5", "--epochs has no effect with --predict"),
        ("--evaluate --resume RUN --depth 16", "--depth 16 (was 10)"),
        (
            "--evaluate --resume .",
            "error: .: no checkpoint.pt in it yet; give a run or an export, or a file",
        ),
        ("--evaluate --resume EXPORT --arch resnet", "--arch resnet (was wrn)"),
        ("--evaluate --resume IMAGENET", "weights of imagenet/; use its main.py"),
        ("--evaluate --resume OTHER", "no weights of this program; it has the keys a"),
        ("--evaluate --resume RELEASED", "released.pt: damaged ('groups.2.0.conv0.weight')"),
        ("--json x.json", "--json has no effect with training"),
        ("--device cpu --gpu_id 0", "--gpu_id is another name of --device"),
        ("--per-class", "--per-class has no effect with training"),
        ("--resume EXPORT", "not the checkpoint of a run"),
        ("--save RUN --resume auto --depth 16 --lr 1", "--depth 16 (was 10); --lr 1.0 (was 0.1)"),
        ("--width 0.1 --init OTHER --save x", "no weights of this program"),
        ("--evaluate --resume RUN --json RUN", "wrn: exists already"),
        ("--evaluate --resume RUN --json RUN/log.jsonl", "log.jsonl: exists already"),
        ("--export EXPORT", "exists already; choose another name"),
        ("--export a.onnx", "--export a.onnx: ONNX is not written; use torch.onnx on an export"),
    ],
)
def test_errors_of_use(main, runs, words, says, tmp_path, monkeypatch, capsys):
    """One line and status 2; nothing is written."""
    monkeypatch.chdir(tmp_path)
    others = runs["wrn"].parent / "others"
    if not others.exists():
        others.mkdir()
        torch.save({"metadata": {"program": "imagenet"}, "model": {}}, others / "imagenet.pt")
        torch.save({"a": 1}, others / "other.pt")
        torch.save({"params": {"group9.conv": torch.zeros(1)}}, others / "released.pt")
        assert main("--resume", runs["wrn"], "--export", others / "export.pt") == 0
    if "--resume" not in words and "--dataset" not in words:
        words = f"--dataset digits --depth 10 --epochs 1 {words}"
    for name in ("imagenet", "other", "released", "export"):
        words = words.replace(name.upper(), str(others / f"{name}.pt"))
    before = (runs["wrn"] / "checkpoint.pt").read_bytes()
    assert main(words.replace("RUN", str(runs["wrn"]))) == 2
    error = capsys.readouterr().err
    assert says in error and error.startswith("error: ") and error.count("\n") == 1
    assert not list(tmp_path.iterdir())
    assert (runs["wrn"] / "checkpoint.pt").read_bytes() == before
