"""Data folders of imagenet/: files, classes and labels; what is left out and what is refused."""

import os
import time
import unicodedata

import numpy as np
import pytest
import torchvision
from small_imagenet import refusal
from synthetic import write_folders
from torchvision.datasets import ImageFolder


@pytest.fixture
def listed(imagenet):
    """Return the images of a folder, as pairs of path and label."""
    find = imagenet.images.list_images
    return lambda folder: [
        (str(path), label) for path, label in zip(*find(folder)[1:3], strict=True)
    ]


@pytest.fixture
def find_sets(imagenet):
    parse, find = imagenet.flags.parse_training, imagenet.data.find_image_sets
    return lambda data: find(parse([str(data), "--augmentation", "crop"]))


def touch(path):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.touch()
    return path


def test_images_are_listed_as_by_torchvision(imagenet, listed, tmp_path):
    """In folders at several depths and behind links, in one order on all file systems."""
    for name in ("b", "a", "B", "a b", "aa", "z", "ü", os.fsdecode(b"caf\xe9")):
        for folder in (name, f"{name}/x", f"{name}/x/y", f"{name}/w"):
            touch(tmp_path / "data" / "one" / folder / "1.png")
            touch(tmp_path / "data" / "two" / folder / "2.JPEG")
            touch(tmp_path / "other disk" / folder / "3.webp")
    (tmp_path / "data" / "three").symlink_to(tmp_path / "other disk")
    (tmp_path / "data" / "one" / "more").symlink_to(tmp_path / "other disk")
    (tmp_path / "data" / "two" / "link.jpg").symlink_to(tmp_path / "other disk" / "b" / "3.webp")
    expected = ImageFolder(tmp_path / "data")
    assert imagenet.images.list_images(tmp_path / "data").classes == expected.classes
    assert listed(tmp_path / "data") == expected.samples and len(expected.samples) == 32 * 4 + 1


def test_debris_is_skipped_with_one_line_and_loops_are_not_followed(listed, tmp_path, capsys):
    paths = [touch(tmp_path / name) for name in ("cat/a/1.png", "cat/b.jfif", "dog/1.JFIF")]
    (tmp_path / "cat" / "a" / "back").symlink_to(tmp_path / "cat")
    for name in (
        "Thumbs.db", "__MACOSX/cat/._b.png", ".ipynb_checkpoints/a.png", "cat/Thumbs.db",
        "cat/._b.png", "cat/.ipynb_checkpoints/b-checkpoint.png", "dog/notes.txt", "list.txt",
    ):  # fmt: skip
        touch(tmp_path / name)
    found = [path for path, _ in listed(tmp_path)]
    assert sorted(found) == [str(path) for path in paths]
    out, err = capsys.readouterr()
    assert out.count("\n") == 1 and "skipped 8 other items" in out and not err


def test_other_images_have_another_identity(imagenet, tmp_path):
    """Also if two classes swap whose images have the same names."""
    for name, content in (("cat", b"a"), ("dog", b"b"), ("eel", b"c")):
        touch(tmp_path / "data" / name / "1.png").write_bytes(content)
    first = imagenet.images.list_images(tmp_path / "data")
    (tmp_path / "data").rename(tmp_path / "moved")
    assert imagenet.images.list_images(tmp_path / "moved").identity == first.identity
    (tmp_path / "moved" / "cat").rename(tmp_path / "x")
    (tmp_path / "moved" / "dog").rename(tmp_path / "moved" / "cat")
    (tmp_path / "x").rename(tmp_path / "moved" / "dog")
    swapped = imagenet.images.list_images(tmp_path / "moved")
    assert swapped.classes == first.classes and swapped.identity != first.identity
    touch(tmp_path / "moved" / "eel" / "2.png")
    more = imagenet.images.list_images(tmp_path / "moved")
    assert len({first.identity, swapped.identity, more.identity}) == 3


def test_folders_that_can_t_be_read_are_refused(imagenet, listed, tmp_path, monkeypatch):
    val = write_folders(tmp_path, {"cat": 1, "dog": 1}) / "val"
    (val / "eel").symlink_to(tmp_path / "not mounted")
    assert f"{val}/eel: can't be read (No such file" in refusal(imagenet, listed, val)
    (val / "eel").unlink()
    scandir = os.scandir

    def deny(path):  # as root, who runs tests in containers, one can read everything
        if os.fspath(path).endswith("dog"):
            raise PermissionError(13, "Permission denied", os.fspath(path))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", deny)
    assert f"{val}/dog: can't be read (Permission denied" in refusal(imagenet, listed, val)


def test_malformed_folders_are_refused(imagenet, listed, find_sets, tmp_path):
    val, train = tmp_path / "val", tmp_path / "train"
    assert "nowhere: no such folder" in refusal(imagenet, listed, tmp_path / "nowhere")
    assert "no subfolders" in refusal(imagenet, listed, tmp_path)
    write_folders(tmp_path, {"cat": 1, "dog": 1})
    touch(val / "a list.txt")
    (val / "stray.png").symlink_to(touch(tmp_path / "a.png"))
    assert "stray.png is in no class;" in refusal(imagenet, listed, val)
    (val / "stray.png").unlink()
    assert "train: no such folder" in refusal(imagenet, find_sets, tmp_path)
    touch(train / "cat" / "a.png")
    assert "only one class, 'cat'" in refusal(imagenet, find_sets, tmp_path)
    touch(train / "fox" / "a.png")
    message = refusal(imagenet, find_sets, tmp_path)
    assert "have a class 'dog' that is not one of the 2" in message
    touch(val / "eel" / "notes.txt")
    assert "val/eel: no image in this class" in refusal(imagenet, listed, val)
    for part, form in (("train", "NFC"), ("val", "NFD")):  # a Mac separates accents from letters
        for name in ("été", "hiver"):
            touch(tmp_path / "a" / part / unicodedata.normalize(form, name) / "a.png")
    assert "look the same, but their accents" in refusal(imagenet, find_sets, tmp_path / "a")


def test_test_images_are_in_val_or_valid_or_test_and_may_lack_classes(
    imagenet, find_sets, tmp_path
):
    find = imagenet.data.list_test_images
    assert "none of val, valid, test in it" in refusal(imagenet, find, tmp_path, None)
    write_folders(tmp_path, {"cat": 2, "dog": 1, "eel": 2}, "train")
    for name in ("test", "valid", "val"):
        write_folders(tmp_path, {"eel": 1, "cat": 1}, name)
        sets = find_sets(tmp_path)
        assert sets.classes == ["cat", "dog", "eel"] and [each for _, each in sets.test] == [0, 2]
        assert {path.parts[-3] for path in sets.test.paths} == {name}
    for name in ("val", "train"):
        message = refusal(imagenet, find_sets, tmp_path / name)
        assert f"; give its parent, {tmp_path}, as --dataroot" in message


def test_many_files_are_listed_as_fast_as_by_torchvision(imagenet, tmp_path):
    """With a wide margin for busy machines."""
    for index in range(20_000):
        name = tmp_path / f"class{index // 1000}" / f"{index}.png"
        if index % 1000 == 0:
            name.parent.mkdir()
        os.close(os.open(name, os.O_CREAT))
    times = {imagenet.images.list_images: [], ImageFolder: []}
    for list_images in 3 * [*times]:
        start = time.process_time()
        list_images(tmp_path)
        times[list_images].append(time.process_time() - start)
    ours, theirs = map(min, times.values())
    assert ours < 2 * theirs + 0.02


LABELS = {
    "kaggle": "ImageId,PredictionString\nb,n01443537 1 2 3 4 n01443537 5 6 \na,n01440764 1 2 \n",
    "spaces": "b.png n01443537\n\na.png n01440764\n",
    "tabs": "\ufeffa.png\tn01440764\r\nb.png\tn01443537\r\n",
    "more images": "a.png,n01440764\nb.png,n01443537\nc.png,n01443537\n",
}


@pytest.fixture
def flat(tmp_path):
    """A data folder whose val/ has no class folders, but debris."""
    for name in ("a.png", "b.png", ".ipynb_checkpoints/a.png", "._a.png"):
        touch(tmp_path / "val" / name)
    return tmp_path


@pytest.mark.parametrize("form", LABELS)
def test_a_flat_folder_is_labeled_from_a_file(imagenet, flat, form):
    labels = flat / "labels.txt"
    labels.write_text(LABELS[form], encoding="utf-8")
    images = imagenet.data.list_test_images(flat, labels)
    assert [path.name for path in images.paths] == ["a.png", "b.png"]
    assert [images.classes[i] for i in images.labels] == ["n01440764", "n01443537"]


def test_bad_label_files_and_folders_for_them_are_refused(imagenet, flat):
    find, labels = imagenet.data.list_test_images, flat / "labels.txt"
    message = refusal(imagenet, find, flat, None)
    assert "2 images in no class; " in message and "--val-labels" in message
    for content, message in (
        (b"490\n361\n", "line 1: expected 'filename wnid', got '490'"),  # of the devkit
        (b"a.png n01440764\n", "no label for b.png"),
        (b"a.png tench\n", "line 1: expected 'filename wnid'"),
        (b"\xff\xfe\x00", "line 1: expected"),
    ):
        labels.write_bytes(content)
        assert message in refusal(imagenet, find, flat, labels)
    for name in ("a.png", "b.png"):
        (flat / "val" / name).unlink()
    write_folders(flat, {"cat": 1})
    labels.write_text("a.png n01440764")
    assert "no images for it; complete the file or leave" in refusal(imagenet, find, flat, labels)


def test_synsets_are_those_of_torchvision_s_categories(imagenet):
    synsets, titles = imagenet.data.imagenet_synsets(), imagenet.data.class_titles
    titles = titles(synsets)
    assert len(set(synsets)) == 1000 and synsets == sorted(synsets)
    assert titles[0] == "tench (n01440764)" and titles[999] == "toilet tissue (n15075141)"
    categories = torchvision.models.ResNet18_Weights.IMAGENET1K_V1.meta["categories"]
    assert [title.split(" (n")[0] for title in titles] == categories
    assert imagenet.data.class_titles(["n01440764", "cat"]) == [titles[0], "cat"]


def test_class_indices_follow_from_the_names(imagenet):
    def indices(names, *arguments):
        classes, labels = np.unique(names, return_inverse=True)
        images = imagenet.images.Listing(classes.tolist(), None, labels, "")
        return imagenet.data.class_indices(images, *arguments)

    synsets = imagenet.data.imagenet_synsets()
    images = [synsets[999], synsets[7], synsets[7]]
    assert indices(images, synsets, 1000).tolist() == [999, 7, 7]  # some of ImageNet's classes
    assert indices(["cat", "ant"], ["dog", "cat", "ant"], 3).tolist() == [1, 2]
    assert indices(["class3"], [f"class{i}" for i in range(1000)], 1000).tolist() == [3]
    assert indices(["b", "a", "b"], None, 2).tolist() == [1, 0, 1]  # no names known: sorted
    for arguments, message in (
        (([synsets[0], "cats"], synsets, 1000), "not know 1 class of the images, such as cats"),
        ((["a", "b"], None, 3), "2 classes for a network of 3 classes"),
        ((["a"], ["b", "c"], 2), "does not know 1 class of the images, such as a;"),
    ):
        assert message in refusal(imagenet, indices, *arguments)
