"""Validation images and their class indices, which follow from class names, not folder order."""

import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import torchvision
from torchvision.datasets.folder import IMG_EXTENSIONS

from common.command_line import UserError, plural
from common.images import list_images

SYNSETS = Path(__file__).with_name("imagenet_synsets.txt")


class LabeledImages(NamedTuple):
    """Image files and the class name of each."""

    paths: list[Path]
    class_names: list[str]  # one for each image
    notes: list[str]  # to print, such as the number of skipped files in a folder


def imagenet_synsets() -> list[str]:
    """Return the WordNet IDs of the 1,000 ImageNet classes (ILSVRC 2012) in label order."""
    return SYNSETS.read_text().split()


def list_validation_images(data: Path, val_labels: Path | None = None) -> LabeledImages:
    """List the images of `data/val`, or else of `data/test`, without reading them.

    They are in one folder per class or, with `val_labels`, all in `val` itself.

    Raises:
        UserError: a folder is missing or empty, `val` mixes both layouts, or an image has no
            label.
    """
    val = find_validation_folder(data)
    entries = list(os.scandir(val))
    has_folders = any(entry.is_dir() for entry in entries)
    images = sorted(Path(e.path) for e in entries if e.name.lower().endswith(IMG_EXTENSIONS))
    if not images and not has_folders:
        raise UserError(
            f"{val}: empty folder; expected one folder per class, or images and --val-labels"
        )
    if images and has_folders:
        raise UserError(
            f"{val}: {plural(len(images), 'image')}, such as {images[0].name}, beside class "
            "folders; move images into the class folders"
        )
    if has_folders:
        if val_labels:
            raise UserError(
                f"--val-labels {val_labels}: {val} has class folders; leave out --val-labels"
            )
        listing = list_images(val)
        class_names = [listing.classes[label] for label in listing.labels]
        return LabeledImages(listing.paths, class_names, skipped_files(val, listing.num_skipped))
    if not val_labels:
        raise UserError(
            f"{val}: {plural(len(images), 'image')} without class folders; give their classes as "
            "--val-labels LOC_val_solution.csv (from Kaggle) or a file of lines 'filename wnid'"
        )
    return label_from_file(images, val_labels)


def find_validation_folder(data: Path) -> Path:
    """Return `data/val` or, if there is no such folder, `data/test`.

    ImageNet and others have a `test` without labels beside `val`.
    """
    for folder in (data / "val", data / "test"):
        if folder.is_dir():
            return folder
    problem = "no folder val/ or test/ in it" if data.is_dir() else "no such folder"
    raise UserError(f"{data}: {problem}; give the folder that contains val/ or test/")


def skipped_files(folder: Path, count: int) -> list[str]:
    """Return a note about files that are not images, if there are any."""
    return [f"{folder}: skipped {plural(count, 'file')} without an image's extension"] * (count > 0)


def label_from_file(paths: Sequence[Path], val_labels: Path) -> LabeledImages:
    """Label images with the classes in a label file."""
    labels = read_labels(val_labels)
    # Kaggle's file has file names without extension.
    class_names = [labels.get(path.name, labels.get(path.stem)) for path in paths]
    missing = [path for path, name in zip(paths, class_names, strict=True) if name is None]
    if missing:
        raise UserError(
            f"--val-labels {val_labels}: no label for {plural(len(missing), 'image')}, such as "
            f"{missing[0].name}; complete the file or remove what has no label"
        )
    absent = len(labels) - len(paths)
    note = f"{val_labels}: lists {plural(absent, 'image')} that {paths[0].parent} does not have"
    return LabeledImages(list(paths), class_names, [note] if absent > 0 else [])


def read_labels(path: Path) -> dict[str, str]:
    """Read the class name of each file name.

    A line is `name wnid`, or `name,wnid x y x y …` as in Kaggle's file.

    Raises:
        UserError: the file is missing or malformed, or labels an image twice.
    """
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except FileNotFoundError as error:
        raise UserError(f"--val-labels {path}: no such file") from error
    except UnicodeDecodeError as error:
        raise UserError(f"--val-labels {path}: not a text file") from error
    if lines and all(line.strip().isdigit() for line in lines if line.strip()):
        raise UserError(
            f"--val-labels {path}: only numbers, as in the devkit's ground truth, which are not "
            "class indices; use lines 'filename wnid' or Kaggle's LOC_val_solution.csv"
        )
    labels: dict[str, str] = {}
    for number, line in enumerate(lines, 1):
        if not line.strip() or line.startswith("ImageId,"):  # header of Kaggle's file
            continue
        match = re.match(r"\s*(.+?)[,\s]\s*(n\d{8})\b", line)
        if not match:
            raise UserError(
                f"--val-labels {path}, line {number}: expected 'filename wnid', got {line[:60]!r}"
            )
        if labels.setdefault(match[1], match[2]) != match[2]:
            raise UserError(
                f"--val-labels {path}, line {number}: a second class for {match[1]}; keep one"
            )
    return labels


def class_indices(
    image_classes: Sequence[str], classes: Sequence[str] | None, num_classes: int
) -> list[int]:
    """Return the class index of each image.

    Args:
        image_classes: class name of each image.
        classes: the network's class names in label order, if known. If not, a network of 1,000
            classes is assumed to be trained on ImageNet; for any other, the sorted names of the
            images' classes are used, as by torchvision's ImageFolder.
        num_classes: number of classes of the network, K.

    Raises:
        UserError: the network has no such class, or the number of classes is not K.
    """
    present = sorted(set(image_classes))
    if classes is None:
        classes = imagenet_synsets() if num_classes == 1000 else present
    if len(classes) != num_classes:
        raise UserError(
            f"{plural(len(classes), 'class')} for a network of {plural(num_classes, 'class')}, "
            "whose checkpoint has no class names; use the validation set it was trained for"
        )
    index = {name: i for i, name in enumerate(classes)}
    unknown = [name for name in present if name not in index]
    if unknown:
        raise UserError(
            f"the network does not know {plural(len(unknown), 'class')} of the images, such as "
            f"{unknown[0]}; it has {plural(num_classes, 'class')}, such as {classes[0]}"
        )
    return [index[name] for name in image_classes]


def class_titles(classes: Sequence[str] | None, num_classes: int) -> list[str]:
    """Return a readable title for each class, such as `tabby (n02123045)`.

    Args:
        classes: the network's class names in label order, if known. If not, a network of 1,000
            classes is assumed to be trained on ImageNet.
        num_classes: number of classes of the network.
    """
    if classes is None and num_classes != 1000:
        return [f"class {index}" for index in range(num_classes)]
    synsets = imagenet_synsets()
    categories = torchvision.models.ResNet50_Weights.IMAGENET1K_V1.meta["categories"]
    words = dict(zip(synsets, categories, strict=True))
    return [f"{words[name]} ({name})" if name in words else name for name in classes or synsets]
