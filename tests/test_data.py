"""Datasets of wrn_DKS: digits, image folders, and CIFAR's official files and their download."""

import hashlib
import tarfile
import threading
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.datasets import load_digits


def test_digits_equal_scikit_learn_s(wrn):
    expected = load_digits()
    with np.load(wrn.data.DIGITS) as file:
        assert np.array_equal(file["images"], expected.images)
        assert np.array_equal(file["labels"], expected.target)
    assert wrn.data.DIGITS.stat().st_size < 100_000


def test_digits_are_split_scaled_and_normalized(wrn):
    data = wrn.data.load_dataset("digits", None, 8, 1)
    assert (len(data.train.labels), len(data.test.labels)) == (1437, 360)
    assert data.train.images.shape == (1437, 3, 8, 8) and not data.flip
    assert int(data.train.images.max()) == 255
    assert torch.equal(data.train.images[:, 0], data.train.images[:, 2])
    assert data.test.labels[-1] == load_digits().target[-1]
    pixels = data.train.images.double() / 255
    assert data.info.mean == pytest.approx(pixels.mean((0, 2, 3)).tolist())
    assert data.info.std == pytest.approx(pixels.std((0, 2, 3), correction=0).tolist())


def write(path, size=(20, 10), color=(200, 30, 90), mode="RGB"):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new(mode, size, color if mode == "RGB" else color[0]).save(path)
    return path


@pytest.fixture
def folders(tmp_path):
    """Write an image folder with a nested image, a grayscale image and a text file."""
    write(tmp_path / "train" / "a" / "1.png", mode="L")
    write(tmp_path / "train" / "b" / "deep" / "er" / "2.jpg")
    write(tmp_path / "train" / "b" / "3.png", color=(0, 255, 0))
    (tmp_path / "train" / "b" / "notes.txt").write_text("not an image")
    write(tmp_path / "test" / "b" / "4.png")
    return tmp_path


def test_folder_is_loaded_in_the_order_of_image_folder(wrn, folders, capsys):
    data = wrn.data.load_dataset("folder", folders, 8, 2)
    assert data.info.classes == ["a", "b"]
    assert data.train.labels.tolist() == [0, 1, 1] and data.test.labels.tolist() == [1]
    assert data.train.images.shape == (3, 3, 8, 8)
    assert (data.train.images[0] == 200).all()
    assert data.train.images[1, :, 4, 4].tolist() == [0, 255, 0]  # 3.png before deep/er/2.jpg
    assert "train/: skipped 1 file without an image extension" in capsys.readouterr().out


def test_folder_is_resized_with_pil_bicubic(wrn, folders):
    noise = np.random.default_rng(0).integers(0, 256, (31, 57, 3), dtype=np.uint8)
    Image.fromarray(noise).save(folders / "test" / "b" / "4.png")
    data = wrn.data.load_dataset("folder", folders, 16, 1)
    expected = np.array(Image.fromarray(noise).resize((16, 16), Image.Resampling.BICUBIC))
    assert np.array_equal(data.test.images[0].permute(1, 2, 0), expected)


def test_evaluation_uses_the_class_indices_of_training(wrn, folders):
    info = wrn.data.DatasetInfo(["0", "a", "b"], [0.5] * 3, [0.1] * 3)
    data = wrn.data.load_dataset("folder", folders, 8, 1, info)
    assert data.train is None and data.test.labels.tolist() == [2] and data.info == info


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda root: (root / "test").rename(root / "elsewhere"), "found neither"),
        (lambda root: write(root / "val" / "a" / "5.png"), "found both"),
        (lambda root: write(root / "test" / "c" / "5.png"), "class 'c'"),
        (lambda root: (root / "train" / "empty").mkdir(), "no image in this class"),
        (lambda root: (root / "train" / "a" / "1.png").write_bytes(b"no png"), "1.png"),
        (lambda root: (root / "train" / "b" / "3.png").write_bytes(b""), "3.png"),
        (lambda root: (root / "train").rename(root / "other"), "train"),
    ],
)
def test_wrong_folders_are_errors(wrn, folders, damage, message):
    damage(folders)
    with pytest.raises(wrn.command_line.UserError, match=message):
        wrn.data.load_dataset("folder", folders, 8, 2)


def test_single_class_and_missing_folder_are_errors(wrn, tmp_path):
    write(tmp_path / "train" / "a" / "1.png")
    write(tmp_path / "test" / "a" / "1.png")
    with pytest.raises(wrn.command_line.UserError, match="at least two"):
        wrn.data.load_dataset("folder", tmp_path, 8, 1)
    with pytest.raises(wrn.command_line.UserError, match="no such folder"):
        wrn.data.load_dataset("folder", tmp_path / "nowhere", 8, 1)


def test_cifar100_is_loaded_from_its_official_files(wrn, cifar100, tmp_path):
    data = wrn.data.load_dataset("CIFAR100", tmp_path / "root", 32, 1)
    assert np.array_equal(data.train.images.numpy(), cifar100["train"].reshape(-1, 3, 32, 32))
    assert data.test.labels.tolist() == [(7 * i + 1) % 100 for i in range(12)]
    assert data.info.classes[99] == "class 099" and data.flip
    assert data.info.mean == pytest.approx([125.3 / 255, 123.0 / 255, 113.9 / 255])
    assert data.info.std == pytest.approx([63.0 / 255, 62.1 / 255, 66.7 / 255])


def test_cifar100_is_found_in_its_inner_folder(wrn, cifar100, tmp_path):
    inner = tmp_path / "root" / "cifar-100-python"
    data = wrn.data.load_dataset("CIFAR100", inner, 32, 1)
    assert len(data.train.labels) == 12 and sorted(inner.iterdir()) == [
        inner / name for name in ("meta", "test", "train")
    ]


@pytest.mark.parametrize("name", ["train", "test", "meta"])
def test_damaged_cifar_files_are_named(wrn, cifar100, tmp_path, name):
    path = tmp_path / "root" / "cifar-100-python" / name
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(wrn.command_line.UserError, match=f"{name} is damaged: expected the MD5"):
        wrn.data.load_dataset("CIFAR100", tmp_path / "root", 32, 1)
    assert path.exists()


def test_folders_of_images_are_not_taken_for_cifar(wrn, folders):
    with pytest.raises(wrn.command_line.UserError, match="use --dataset folder"):
        wrn.data.load_dataset("CIFAR10", folders, 32, 1)


@pytest.fixture
def server(tmp_path):
    """Serve the folder `tmp_path`/served on localhost; return its URL."""
    (tmp_path / "served").mkdir()

    class Quiet(SimpleHTTPRequestHandler):
        def log_message(self, *args):
            pass

    handler = partial(Quiet, directory=tmp_path / "served")
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as http:
        threading.Thread(target=http.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{http.server_port}"
        http.shutdown()


def test_cifar100_is_downloaded_and_verified(wrn, monkeypatch, cifar100, server, tmp_path, capsys):
    cls = wrn.data.CIFAR["CIFAR100"]
    archive = tmp_path / "served" / cls.filename
    with tarfile.open(archive, "w:gz") as tar:
        tar.add(tmp_path / "root" / cls.base_folder, cls.base_folder)
    monkeypatch.setattr(cls, "url", f"{server}/{cls.filename}")
    monkeypatch.setattr(cls, "tgz_md5", hashlib.md5(archive.read_bytes()).hexdigest())
    data = wrn.data.load_dataset("CIFAR100", tmp_path / "new", 32, 1)
    assert np.array_equal(data.train.images.numpy(), cifar100["train"].reshape(-1, 3, 32, 32))

    assert capsys.readouterr() == ("", "")  # no progress bar in redirected output

    archive.write_bytes(archive.read_bytes()[:500])  # truncated download
    with pytest.raises(wrn.command_line.UserError, match="unpack it in"):
        wrn.data.load_dataset("CIFAR100", tmp_path / "cut" / "off", 32, 1)
    assert not (tmp_path / "cut").exists()


def test_failed_download_suggests_an_alternative(wrn, monkeypatch, tmp_path):
    monkeypatch.setattr(wrn.data.CIFAR["CIFAR10"], "url", "http://127.0.0.1:9/x.tar.gz")
    with pytest.raises(wrn.command_line.UserError, match="refused.*--dataset digits"):
        wrn.data.load_dataset("CIFAR10", tmp_path / "new", 32, 1)
    assert not (tmp_path / "new").exists()
