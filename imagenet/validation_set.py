"""Which images `val/` holds, and the class index of each: by name, not by order of folders."""

import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import torchvision
from torchvision.datasets.folder import IMG_EXTENSIONS

from common.command_line import UserError
from common.images import list_images

SYNSETS = Path(__file__).with_name("imagenet_synsets.txt")


class NamedImages(NamedTuple):
    """Image files and the class name of each."""

    paths: list[Path]
    names: list[str]
    remarks: list[str]  # what a person should know of, such as files that are left out


def imagenet_synsets() -> list[str]:
    """The WordNet ids of ImageNet's 1,000 classes (ILSVRC 2012), in the order of their indices."""
    return SYNSETS.read_text().split()


def find_images(data: Path, val_labels: Path | None = None) -> NamedImages:
    """Find the images of `data/val`, in one folder a class or, with `val_labels`, all in one.

    Raises:
        UserError: a folder is missing or empty, both layouts are mixed, or no file of labels says
            which class an image has.
    """
    val = data / "val"
    if not val.is_dir():
        raise UserError(f"{val}: no such folder; give the folder that contains val/")
    entries = list(os.scandir(val))
    has_folders = any(entry.is_dir() for entry in entries)
    loose = sorted(Path(e.path) for e in entries if e.name.lower().endswith(IMG_EXTENSIONS))
    if not loose and not has_folders:
        raise UserError(f"{val}: empty; expected one folder a class, or images and --val-labels")
    if loose and has_folders:
        raise UserError(
            f"{val}: holds folders and {len(loose)} loose image(s), {loose[0].name} first; "
            "put every image in its class's folder, or all of them in val/ itself"
        )
    if has_folders:
        if val_labels:
            raise UserError(f"--val-labels {val_labels}: {val} has a folder a class; leave it out")
        found = list_images(val)
        remarks = [f"{found.others} files of other kinds left out"] if found.others else []
        return NamedImages(found.paths, [found.classes[i] for i in found.labels], remarks)
    if not val_labels:
        raise UserError(
            f"{val}: {len(loose)} images and no folders of classes; say their classes with "
            "--val-labels LOC_val_solution.csv (Kaggle's), or a file with lines 'filename wnid'"
        )
    return named_by_file(loose, val_labels)


def named_by_file(paths: Sequence[Path], val_labels: Path) -> NamedImages:
    """Give each image the class name that the file of labels has for it."""
    of_file = read_labels(val_labels)
    # Kaggle's file names the images without their extension.
    names = [of_file.get(path.name, of_file.get(path.stem)) for path in paths]
    unnamed = [path for path, name in zip(paths, names, strict=True) if name is None]
    if unnamed:
        raise UserError(
            f"--val-labels {val_labels}: no label for {len(unnamed)} image(s), "
            f"{unnamed[0].name} first; complete the file or move them away"
        )
    left = len(of_file) - len(paths)
    remarks = [f"{left} of the images that {val_labels} names are not there"] if left > 0 else []
    return NamedImages(list(paths), names, remarks)


def read_labels(path: Path) -> dict[str, str]:
    """The class name of each file name: from `name wnid` or Kaggle's `name,wnid x y x y …`.

    Raises:
        UserError: no such file, another format, or two classes for one name.
    """
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except FileNotFoundError as error:
        raise UserError(f"--val-labels {path}: no such file") from error
    except UnicodeDecodeError as error:
        raise UserError(f"--val-labels {path}: not a text file") from error
    if lines and all(line.strip().isdigit() for line in lines if line.strip()):
        raise UserError(
            f"--val-labels {path}: numbers alone, like the devkit's ground truth, whose numbers "
            "are not class indices; use lines 'filename wnid' or Kaggle's LOC_val_solution.csv"
        )
    labels: dict[str, str] = {}
    for number, line in enumerate(lines, 1):
        if not line.strip() or line.startswith("ImageId,"):  # Kaggle's heading
            continue
        match = re.match(r"\s*(.+?)[,\s]\s*(n\d{8})\b", line)
        if not match:
            raise UserError(
                f"--val-labels {path}, line {number}: expected 'filename wnid', got {line[:60]!r}"
            )
        if labels.setdefault(match[1], match[2]) != match[2]:
            raise UserError(f"--val-labels {path}, line {number}: a second class for {match[1]}")
    return labels


def class_indices(
    names: Sequence[str], classes: Sequence[str] | None, num_classes: int
) -> list[int]:
    """The class index of each image.

    Args:
        names: the class name of each image.
        classes: the network's class names in the order of its outputs, where it is known. A
            network of 1,000 outputs without any is taken for one of ImageNet's; with another
            one, sorted names count, as torchvision's ImageFolder has it.
        num_classes: outputs of the network, K.

    Raises:
        UserError: an image is of none of the classes, or the number of classes is not K.
    """
    present = sorted(set(names))
    if classes is None:
        classes = imagenet_synsets() if num_classes == 1000 else present
    if len(classes) != num_classes:
        raise UserError(
            f"{len(classes)} classes for a network of {num_classes} outputs, and no class names in "
            "its checkpoint; use the validation set that it was trained for"
        )
    index = {name: i for i, name in enumerate(classes)}
    unknown = [name for name in present if name not in index]
    if unknown:
        raise UserError(
            f"class {unknown[0]} ({len(unknown)} such) is none of the network's {num_classes}; "
            f"expected names such as {classes[0]}"
        )
    return [index[name] for name in names]


def class_titles(names: Sequence[str] | None, num_classes: int) -> list[str]:
    """Return a readable title of each class, such as `tabby (n02123045)`.

    Args:
        names: the class names in the order of the network's outputs, if known. A network with
            1,000 outputs and no names is taken for one trained on ImageNet.
        num_classes: outputs of the network.
    """
    if names is None and num_classes != 1000:
        return [f"class {index}" for index in range(num_classes)]
    synsets = imagenet_synsets()
    words = torchvision.models.ResNet50_Weights.IMAGENET1K_V1.meta["categories"]
    word_of = dict(zip(synsets, words, strict=True))
    return [f"{word_of[name]} ({name})" if name in word_of else name for name in names or synsets]
