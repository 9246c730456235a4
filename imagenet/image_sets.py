"""The images to train on and to validate with, found in the data folder."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from command_line import Refused
from data import ImageFiles, evaluation_transform
from distributed import print_once
from images import list_images
from train_data import training_transform
from validation_set import class_indices, find_images


class ImageSets(NamedTuple):
    """Two sets of images of the same classes."""

    class_names: list[str]  # in the order of the labels
    train: ImageFiles  # uint8 images, augmented at random
    validation: ImageFiles  # float32 images


def find_image_sets(
    data: Path, val_labels: Path | None, image_size: int, augmentation: str
) -> ImageSets:
    """List the images of `data/train` and `data/val`; none is read yet.

    Classes are the folders of `train`, in alphabetical order. Validation images go by the names
    of their classes, of which some may be missing there.

    Raises:
        Refused: a folder is missing or empty, there is only one class, or a class of `val` is
            none of `train`'s.
    """
    found = list_images(data / "train")
    if found.others:
        print_once(f"{data / 'train'}: {found.others} files of other kinds left out")
    if len(found.classes) < 2:
        raise Refused(
            f"{data / 'train'}: {found.classes[0]} is its only class; expected two or more"
        )
    validation = find_images(data, val_labels)
    for remark in validation.remarks:
        print_once(f"{data / 'val'}: {remark}")
    labels = class_indices(validation.names, found.classes, len(found.classes))
    return ImageSets(
        found.classes,
        ImageFiles(
            Paths(found.paths), np.array(found.labels), training_transform(augmentation, image_size)
        ),
        ImageFiles(validation.paths, labels, evaluation_transform(image_size)),
    )


class Paths(Sequence):
    """File names in one block of memory.

    A million Python objects would be copied, page by page, into each worker that counts
    references to them.
    """

    def __init__(self, paths: Sequence[Path]):
        self._names = np.array([os.fsencode(path) for path in paths])

    def __len__(self) -> int:
        return len(self._names)

    def __getitem__(self, index: int) -> Path:
        return Path(os.fsdecode(self._names[index]))
