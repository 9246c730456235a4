"""The images to train and evaluate on: the files of a data folder as data sets."""

import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset

from common.command_line import UserError
from common.distributed import print_once
from common.images import list_images, read_rgb
from presets import evaluation_transform, training_transform
from validation_set import class_indices, find_images

UNREADABLE = -1  # label of an image that was skipped; no class has it


class ImageFiles(Dataset):
    """Image files as pairs of a transformed image and its label.

    Args:
        paths: N image files.
        labels: N class indices.
        transform: from an RGB image to a tensor.
        skip_unreadable: return a blank image labelled `UNREADABLE` for a file that cannot be
            decoded, instead of raising `UserError`.
    """

    def __init__(
        self,
        paths: Sequence[Path],
        labels: Sequence[int],
        transform: Callable[[Image.Image], Tensor],
        skip_unreadable: bool = False,
    ):
        self.paths = paths
        self.labels = labels
        self.transform = transform
        self.skip_unreadable = skip_unreadable

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        try:
            image, label = read_rgb(self.paths[index]), self.labels[index]
        except UserError as error:
            if not self.skip_unreadable:
                raise
            print(f"skipped: {error}", file=sys.stderr)
            image, label = Image.new("RGB", (1, 1)), UNREADABLE
        return self.transform(image), label


class AugmentedDataset(Dataset):
    """Image files whose augmentation is a function of (seed, epoch, index).

    An image therefore looks the same in every worker and process, and in a resumed run.
    """

    def __init__(self, files: ImageFiles, seed: int):
        self._files = files
        self._seed = seed

    def __getitem__(self, key: tuple[int, int]) -> tuple[Tensor, int]:
        """Return the image and label of a key (epoch, index)."""
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(derived_seed(self._seed, *key))
            return self._files[key[1]]


def derived_seed(seed: int, *key: int) -> int:
    """Return a seed that is a function of these numbers alone and differs between keys."""
    return int(np.random.SeedSequence(seed, spawn_key=key).generate_state(1, np.uint64)[0])


class ImageSets(NamedTuple):
    """The training and the validation images, of the same classes."""

    class_names: list[str]  # in the order of the labels
    train: ImageFiles  # uint8 images, randomly augmented
    validation: ImageFiles  # float32 images, normalized


def find_image_sets(
    data: Path, val_labels: Path | None, image_size: int, augmentation: str
) -> ImageSets:
    """List the images of `data/train` and `data/val` without reading them.

    The classes are the folders of `train` in alphabetical order. Validation images are labelled
    by the names of their classes, some of which may be missing.

    Raises:
        UserError: a folder is missing or empty, there is only one class, or a class of `val` is
            not one of `train`.
    """
    found = list_images(data / "train")
    if found.others:
        print_once(f"{data / 'train'}: skipped {found.others} file(s) that are not images")
    if len(found.classes) < 2:
        raise UserError(
            f"{data / 'train'}: only one class, {found.classes[0]}; expected two or more"
        )
    validation = find_images(data, val_labels)
    for remark in validation.remarks:
        print_once(f"{data / 'val'}: {remark}")
    labels = class_indices(validation.names, found.classes, len(found.classes))
    return ImageSets(
        found.classes,
        ImageFiles(
            PathArray(found.paths),
            np.array(found.labels),
            training_transform(augmentation, image_size),
        ),
        ImageFiles(validation.paths, labels, evaluation_transform(image_size)),
    )


class PathArray(Sequence):
    """File names in one block of memory.

    A list of a million Python objects would be copied page by page into each worker, because
    reading them changes their reference counts.
    """

    def __init__(self, paths: Sequence[Path]):
        self._names = np.array([os.fsencode(path) for path in paths])

    def __len__(self) -> int:
        return len(self._names)

    def __getitem__(self, index: int) -> Path:
        return Path(os.fsdecode(self._names[index]))
