"""The fingerprint of the data in the logs."""

import shutil

import pytest
from cifar_runs import records
from synthetic import write_folders
from training import command_line, log_records, run_train, write_data


@pytest.fixture
def data(tmp_path):
    return write_data(tmp_path / "images")


def wrn_fingerprint(wrn, data):
    return wrn.epoch_log.data_fingerprint("folder", data)


def imagenet_fingerprint(imagenet, data):
    return imagenet.data.find_image_sets(data, None, 40, "crop").fingerprint()


def test_a_class_may_be_in_the_training_images_alone(wrn, imagenet, tmp_path):
    write_folders(tmp_path, {"cat": 2, "dog": 1, "eel": 2}, "train")
    write_folders(tmp_path, {"dog": 1}, "val")
    assert wrn_fingerprint(wrn, tmp_path) == imagenet_fingerprint(imagenet, tmp_path)


def test_both_folders_give_the_same_data_the_same_fingerprint(wrn, imagenet, data, tmp_path):
    fingerprint = wrn_fingerprint(wrn, data)
    assert imagenet_fingerprint(imagenet, data) == fingerprint
    copy = shutil.copytree(data, tmp_path / "copy")
    (copy / "val").rename(copy / "test")
    assert wrn_fingerprint(wrn, copy) == imagenet_fingerprint(imagenet, copy) == fingerprint


def remove_image(data):
    (data / "train" / "cat" / "cat_1.png").unlink()


def remove_test_image(data):
    (data / "val" / "cat" / "cat_1.png").unlink()


def rename_image(data):
    (data / "train" / "cat" / "cat_1.png").rename(data / "train" / "cat" / "x.png")


def rename_class(data):
    for part in ("train", "val"):
        (data / part / "cat").rename(data / part / "bat")


def change_image(data):
    with open(data / "train" / "eel" / "eel_1.png", "ab") as file:
        file.write(b"x")


def exchange_parts(data):
    (data / "train").rename(data / "x")
    (data / "val").rename(data / "train")
    (data / "x").rename(data / "val")


@pytest.mark.parametrize(
    "change",
    [remove_image, remove_test_image, rename_image, rename_class, change_image, exchange_parts],
)
def test_other_data_has_another_fingerprint(wrn, imagenet, data, change):
    before = wrn_fingerprint(wrn, data)
    change(data)
    assert wrn_fingerprint(wrn, data) == imagenet_fingerprint(imagenet, data) != before


def test_neither_the_order_nor_the_subfolders_of_a_class_matter(wrn, data):
    """Validation images may be in class folders or, with --val-labels, in one folder."""
    files = [("b", data / "x" / "1.png"), ("a", data / "2.png")]
    moved = [("a", data / "y" / "2.png"), ("b", data / "1.png")]
    fingerprint = wrn.fingerprint.fingerprint_files
    assert fingerprint(files, []) == fingerprint(moved, []) != fingerprint([], files)


def test_few_sizes_are_read_of_many_files(wrn, data, monkeypatch):
    """Broken links, which have none, are no error."""
    monkeypatch.setattr(wrn.fingerprint, "MAX_SIZES", 3)
    read = []
    monkeypatch.setattr(wrn.fingerprint, "file_size", read.append)
    list(wrn.fingerprint.describe_files("", [("a", data / f"{i}.png") for i in range(8)]))
    assert [path.name for path in read] == ["0.png", "3.png", "6.png"]
    monkeypatch.undo()
    assert wrn.fingerprint.file_size(data / "missing") is None


def test_each_data_set_has_its_own_fingerprint(wrn, cifar_run, data):
    names = ["CIFAR10", "CIFAR100", "digits", "folder"]
    prints = [wrn.epoch_log.data_fingerprint(name, data) for name in names]
    assert len(set(prints)) == 4
    assert {record["data_fingerprint"] for record in records(cifar_run)} == {prints[2]}


def test_the_log_of_a_run_holds_it(wrn, imagenet, data, tmp_path):
    assert run_train(imagenet, command_line(data, tmp_path / "run", "--epochs", "1")) == 0
    (record,) = log_records(tmp_path / "run")
    assert record["data_fingerprint"] == wrn_fingerprint(wrn, data)
    (run,) = imagenet.run_logs.read_runs([tmp_path / "run"])
    assert run.options["data_fingerprint"] == record["data_fingerprint"]
