"""Data of wrn_DKS: CIFAR's files, digits, folders of images; batches and their augmentation."""

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.datasets import load_digits
from synthetic import write_image

CPU = torch.device("cpu")


@pytest.fixture
def load(wrn):
    """Return a function that loads a data set, and the error in its place."""

    def load(name, root=None, image_size=8, workers=2, trained=None):
        try:
            return wrn.data.load_dataset(name, root, image_size, workers, trained)
        except wrn.command_line.UserError as error:
            assert "\n" not in str(error)
            return str(error)

    return load


def test_cifar100_is_loaded_from_its_files(load, cifar100, tmp_path):
    data = load("CIFAR100", tmp_path / "root")
    for part, split in (("train", data.train), ("test", data.test)):
        assert np.array_equal(split.images.numpy(), cifar100[part].reshape(-1, 3, 32, 32))
    assert data.test.labels.tolist() == [(7 * i + 1) % 100 for i in range(12)]
    assert data.classes[99] == "class 099" and data.flip
    released = ([125.3, 123.0, 113.9], [63.0, 62.1, 66.7])
    np.testing.assert_allclose((data.mean, data.std), np.divide(released, 255))


@pytest.mark.parametrize("name", ["train", "test", "meta"])
def test_missing_and_damaged_cifar_files(wrn, load, cifar100, tmp_path, monkeypatch, name):
    monkeypatch.setattr(wrn.data.CIFAR["CIFAR100"], "url", "http://127.0.0.1:9/x.tar.gz")
    path = tmp_path / "root" / "cifar-100-python" / name
    for damage in (lambda: path.write_bytes(path.read_bytes()[:-1]), path.unlink):
        damage()
        error = load("CIFAR100", tmp_path / "root")
        assert "CIFAR100 is not in" in error and "--dataset digits" in error
    write_image(tmp_path / "train" / "a" / "1.png")
    assert "a folder of images; add --dataset folder" in load("CIFAR100", tmp_path)


def test_digits_are_scikit_learns(load):
    data, expected = load("digits"), load_digits()
    images, labels = (torch.cat(pair) for pair in zip(data.train, data.test, strict=True))
    assert np.array_equal(labels, expected.target)
    assert all(np.array_equal(x, (expected.images * 255 / 16).round()) for x in images.unbind(1))
    assert (len(data.train.labels), len(data.test.labels)) == (1437, 360) and not data.flip
    pixels = data.train.images.double() / 255
    assert data.mean == pytest.approx(pixels.mean((0, 2, 3)).tolist())
    assert data.std == pytest.approx(pixels.std((0, 2, 3), correction=0).tolist())


@pytest.fixture
def folders(tmp_path):
    """Two classes for training, with debris, and one of them for the test."""
    root = tmp_path / "images"
    for seed, name in enumerate(("train/a/1", "train/b/deep/er/2", "train/b/3", "val/b/4")):
        write_image(root / f"{name}.png", seed)
    Image.new("L", (20, 10), 200).save(root / "train" / "a" / "1.png")
    for debris in ("train/.DS_Store", "train/b/Thumbs.db", "train/b/._3.png", "val/b/notes.txt"):
        (root / debris).write_text("not an image")
    (root / "train" / "__MACOSX").mkdir()
    return root


def test_folders_are_loaded_in_the_order_of_image_folder(load, folders, capsys):
    data = load("folder", folders, 16)
    assert data.classes == ["a", "b"] and data.flip
    assert data.train.labels.tolist() == [0, 1, 1] and data.test.labels.tolist() == [1]
    assert (data.train.images[0] == 200).all()
    for part, index, path in (("train", 1, "train/b/3.png"), ("test", 0, "val/b/4.png")):
        image = Image.open(folders / path).resize((16, 16), Image.Resampling.BICUBIC)
        actual = getattr(data, part).images[index].permute(1, 2, 0)
        assert np.array_equal(actual, image)
    out = capsys.readouterr().out
    assert "train: 3 images of 2 classes" in out and "val: 1 image of 1 class, skipped 1" in out


@pytest.mark.parametrize("name", ["val", "valid", "test"])
def test_a_trained_network_fixes_classes_and_statistics(load, folders, name):
    """Only the test images are loaded, from any of these folders."""
    (folders / "train").rename(folders / "elsewhere")
    (folders / "val").rename(folders / name)
    trained = {"classes": ["0", "a", "b"], "mean": [0.5] * 3, "std": [0.1] * 3}
    data = load("folder", folders, trained=trained)
    assert data.train is None and data.test.labels.tolist() == [2]
    assert (data.classes, data.mean) == (trained["classes"], trained["mean"])
    trained["classes"] = ["0", "a"]
    assert "class 'b' that is not one of the 2" in load("folder", folders, trained=trained)
    assert "trained on 2 classes such as '0', not on these 10 such as '0'" in load(
        "digits", trained=trained
    )


@pytest.mark.parametrize(
    ("damage", "says"),
    [
        (lambda root: (root / "val").rename(root / "elsewhere"), "none of val, valid, test"),
        (lambda root: (root / "train").rename(root / "other"), "train: no such folder"),
        (lambda root: write_image(root / "val" / "c" / "5.png"), "a class 'c' that is not one"),
        (lambda root: (root / "train" / "empty").mkdir(), "empty: no image in this class"),
        (lambda root: (root / "train" / "x").symlink_to("/nowhere"), "is its disk mounted?"),
        (lambda root: (root / "train" / "a" / "1.png").write_bytes(b"no"), "a/1.png: not an image"),
        (
            lambda root: write_image(root / "train" / "6.png"),
            "6.png is in no class; give each class a folder",
        ),
        (lambda root: (root / "train" / "b").rename(root / "b"), "only one class, 'a'"),
    ],
)
def test_wrong_folders_are_refused(load, folders, damage, says):
    damage(folders)
    assert says in load("folder", folders)


@pytest.fixture
def batches(wrn):
    """Return a factory of training batches of ten random images."""
    pixels = torch.randint(0, 256, (10, 3, 32, 32), dtype=torch.uint8)

    def make(seed=1, flip=True, batch_size=4, mixup=0.0, size=8):
        split = wrn.data.Split(pixels[:, :, :size, :size], torch.arange(10))
        data = wrn.data.Dataset(split, split, [""] * 10, [0.5] * 3, [0.25] * 3, flip, "")
        mixing = wrn.data.Mixing(mixup, 0.0, 10, seed)
        return wrn.data.AugmentedBatches(data, batch_size, CPU, seed, mixing)

    return make


@pytest.mark.parametrize("mixup", [0.0, 1.0])
def test_order_is_a_function_of_seed_and_epoch(batches, mixup):
    first = list(batches(mixup=mixup).epoch(3))
    assert [len(batch.labels) for batch in first] == [4, 4, 2]
    order = torch.cat([batch.labels for batch in batches().epoch(3)]).tolist()
    assert sorted(order) == list(range(10)) != order
    torch.rand(5)  # the global generator is not used
    for step in range(3):
        assert_same_images([*batches(mixup=mixup).epoch(3, step)], first[step:])
    for other in (batches(mixup=mixup).epoch(4), batches(2, mixup=mixup).epoch(3)):
        assert not torch.equal(next(other).labels, first[0].labels)


@pytest.mark.parametrize("flip", [True, False])
@pytest.mark.parametrize(("size", "padding"), [(8, 1), (32, 4)])
def test_all_crops_and_flips_of_the_reflected_image_occur(batches, size, padding, flip):
    """Each image of a batch has its own."""
    loader, seen = batches(flip=flip, batch_size=10, size=size), []
    for number in range(10):
        ((images, labels, _),) = loader.epoch(number)
        pairs = zip(images, loader.images[labels], strict=True)
        found = [crop_of(image, source, padding) for image, source in pairs]
        assert len(set(found)) > 2
        seen += found
    offsets = set(range(2 * padding + 1))
    assert [set(each) for each in zip(*seen, strict=True)] == [offsets, offsets, {False, flip}]
    assert len(set(seen)) > 2 * len(offsets)  # independent of each other


def crop_of(image, source, padding):
    """Return (top, left, flipped) of the crop of the padded source that equals the image."""
    size, offsets = source.shape[-1], range(2 * padding + 1)
    padded = np.pad(source.numpy(), ((0, 0), (padding, padding), (padding, padding)), "reflect")
    pixels = (255 * (image * 0.25 + 0.5)).round().numpy()  # without the normalization
    (found,) = (
        (y, x, flipped)
        for y in offsets
        for x in offsets
        for flipped, crop in ((False, pixels), (True, pixels[:, :, ::-1]))
        if np.array_equal(padded[:, y : y + size, x : x + size], crop)
    )
    return found


def test_a_constant_channel_stays_finite(wrn):
    images = torch.randint(0, 256, (5, 3, 8, 8), dtype=torch.uint8)
    images[:, 1] = 77
    split = wrn.data.Split(images, torch.arange(5))
    data = wrn.data.Dataset(None, split, [], *wrn.data.channel_statistics(images), False, "")
    (batch,) = wrn.data.Batches(split, data, 5, CPU)
    assert batch.images[:, 1].abs().max() < 1e-3
    assert batch.images[:, ::2].std() == pytest.approx(1, rel=0.01)


@pytest.mark.parametrize("mixup", [0.0, 1.0])
@pytest.mark.parametrize("count", [1, 2, 3, 4])
def test_processes_divide_each_batch(wrn, batches, monkeypatch, capsys, count, mixup):
    """Those of more than two processes leave out the last batch of two images."""
    loader = batches(mixup=mixup)
    whole, tested = list(loader.epoch(2))[: 2 if count > 2 else 3], list(loader)
    parts, tests = [], []
    for rank in range(count):
        for module in (wrn.data, wrn.distributed):
            monkeypatch.setattr(module, "world_size", lambda: count)
            monkeypatch.setattr(module, "rank", lambda rank=rank: rank, raising=False)
        loader = batches(mixup=mixup)
        parts.append(list(loader.epoch(2)))
        tests += loader
    assert loader.steps == len(whole)
    assert ("the last 2 images of an epoch are left out" in capsys.readouterr().out) == (count > 2)
    for expected, *shares in zip(whole, *parts, strict=True):
        assert all(len(batch.labels) and batch.total == expected.total for batch in shares)
        assert_same_images(shares, [expected])
    assert_same_images(tests, tested)


def assert_same_images(batches, expected):
    for index in (0, 1):
        actual, whole = (torch.cat([batch[index] for batch in x]) for x in (batches, expected))
        assert torch.equal(actual, whole)
