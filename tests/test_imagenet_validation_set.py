"""Images of a validation folder and their class indices."""

import pytest
from synthetic import write_folders, write_image


def test_synsets_match_torchvisions_categories(imagenet):
    import torchvision

    synsets = imagenet.validation_set.imagenet_synsets()
    assert len(set(synsets)) == 1000 and synsets == sorted(synsets)
    titles = imagenet.validation_set.class_titles(None, 1000)
    assert titles[0] == "tench (n01440764)" and titles[999] == "toilet tissue (n15075141)"
    categories = torchvision.models.ResNet18_Weights.IMAGENET1K_V1.meta["categories"]
    assert [title.split(" (n")[0] for title in titles] == categories


def test_a_subset_of_classes_keeps_its_indices(imagenet, tmp_path):
    synsets = imagenet.validation_set.imagenet_synsets()
    write_folders(tmp_path, {synsets[999]: 1, synsets[7]: 2})
    images = imagenet.validation_set.list_validation_images(tmp_path)
    assert imagenet.validation_set.class_indices(images.class_names, None, 1000) == [7, 7, 999]
    assert images.paths[0].parent.name == synsets[7]


def test_class_names_of_the_checkpoint_take_precedence(imagenet):
    indices = imagenet.validation_set.class_indices
    assert indices(["cat", "ant"], ["dog", "cat", "ant"], 3) == [1, 2]
    names = [f"class{i}" for i in range(1000)]
    assert indices(["class3"], names, 1000) == [3]
    assert indices(["b", "a", "b"], None, 2) == [1, 0, 1]  # no names known: sorted order


@pytest.mark.parametrize(
    ("names", "classes", "num_classes", "message"),
    [
        (["n01440764", "cats"], None, 1000, "cats"),
        (["a", "b"], None, 3, "2 classes for a network of 3"),
        (["a"], ["b", "c"], 2, "does not know 1 class of the images, such as a;"),
    ],
)
def test_unknown_classes_are_refused(imagenet, names, classes, num_classes, message):
    with pytest.raises(imagenet.command_line.UserError, match=message):
        imagenet.validation_set.class_indices(names, classes, num_classes)


LABELS = {
    "kaggle": "ImageId,PredictionString\nb,n01443537 1 2 3 4 n01443537 5 6 \na,n01440764 1 2 \n",
    "spaces": "b.png n01443537\n\na.png n01440764\n",
    "tabs": "\ufeffa.png\tn01440764\r\nb.png\tn01443537\r\n",
    "with missing images": "a.png,n01440764\nb.png,n01443537\nc.png,n01443537\n",
}


@pytest.fixture
def flat(tmp_path):
    """A data folder whose val/ has no class folders."""
    for seed, name in enumerate("ab"):
        write_image(tmp_path / "val" / f"{name}.png", seed)
    return tmp_path


@pytest.mark.parametrize("form", LABELS)
def test_flat_folder_is_labeled_from_a_file(imagenet, flat, form):
    labels = flat / "labels.txt"
    labels.write_text(LABELS[form], encoding="utf-8")
    images = imagenet.validation_set.list_validation_images(flat, labels)
    assert [path.name for path in images.paths] == ["a.png", "b.png"]
    assert images.class_names == ["n01440764", "n01443537"]
    assert bool(images.notes) == (form == "with missing images")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("490\n361\n", "devkit"),
        ("a.png n01440764\n", "no label for 1 image"),
        ("a.png tench\n", "line 1: expected 'filename wnid'"),
        ("a.png n01440764\na.png n01443537\n", "line 2: a second class for a.png"),
        ("", "no label for 2 image"),
        (b"\xff\xfe\x00", "not a text file"),
        (None, "no such file"),
    ],
)
def test_bad_label_files_are_refused(imagenet, flat, content, message):
    labels = flat / "labels.txt"
    if content is not None:
        labels.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(imagenet.command_line.UserError, match=message):
        imagenet.validation_set.list_validation_images(flat, labels)


def test_flat_folder_without_labels_is_refused(imagenet, flat):
    with pytest.raises(imagenet.command_line.UserError, match="--val-labels"):
        imagenet.validation_set.list_validation_images(flat)


def test_missing_empty_and_mixed_folders_are_refused(imagenet, tmp_path):
    find = imagenet.validation_set.list_validation_images
    refused = imagenet.command_line.UserError
    with pytest.raises(refused, match="no such folder"):
        find(tmp_path / "nowhere")
    with pytest.raises(refused, match="contains val/"):
        find(tmp_path)
    (tmp_path / "val").mkdir()
    with pytest.raises(refused, match="empty"):
        find(tmp_path)
    (tmp_path / "val" / "n01440764").mkdir()
    with pytest.raises(refused, match="n01440764: no image"):
        find(tmp_path)
    write_folders(tmp_path, {"n01440764": 1})
    with pytest.raises(refused, match="leave out --val-labels"):
        find(tmp_path, tmp_path / "labels.txt")
    write_image(tmp_path / "val" / "stray.png")
    with pytest.raises(refused, match="stray.png"):
        find(tmp_path)
