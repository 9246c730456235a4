"""The images to train and evaluate on: the files of a data folder as data sets."""

import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset

from common.command_line import UserError
from common.distributed import print_once
from common.fingerprint import fingerprint_files
from common.images import list_images, read_rgb
from decoding import choose_decoder
from presets import evaluation_transform, training_transform
from validation_set import class_indices, list_validation_images, skipped_files

UNREADABLE = -1  # label of a skipped image


class ImageFiles(Dataset):
    """Image files as pairs of a transformed image and its label.

    Args:
        paths: N image files.
        labels: N class indices.
        transform: from an RGB image to a tensor.
        skip_unreadable: return a blank image labeled `UNREADABLE` for a file that cannot be read,
            instead of raising `UserError`.
        decode: from a path to an RGB image, which may be a tensor (3, H, W) if the transform
            accepts it.
    """

    def __init__(
        self,
        paths: Sequence[Path],
        labels: Sequence[int],
        transform: Callable[[Image.Image | Tensor], Tensor],
        skip_unreadable: bool = False,
        decode: Callable[[Path], Image.Image | Tensor] = read_rgb,
    ):
        self.paths = paths
        self.labels = labels
        self.transform = transform
        self.skip_unreadable = skip_unreadable
        self._decode = decode

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        try:
            image, label = self._decode(self.paths[index]), self.labels[index]
        except UserError as error:
            if not self.skip_unreadable:
                raise
            print(f"skipped: {error}", file=sys.stderr)
            image, label = Image.new("RGB", (1, 1)), UNREADABLE
        return self.transform(image), label


class AugmentedDataset(Dataset):
    """Image files, augmented as a function of (seed, epoch, index).

    Args:
        files: their transform is that of an augmentation.
        seed: of the run.
    """

    def __init__(self, files: ImageFiles, seed: int):
        self.files = files
        self.random_part = files.transform.random_part(len(files), seed)

    def __getitem__(self, key: tuple[int, int]) -> tuple[Tensor, int]:
        """Return the image and label of a key (epoch, index)."""
        epoch, index = key
        image, label = self.files[index]
        return self.random_part(image, epoch, index), label


class ImageSets(NamedTuple):
    """The training and the validation images, of the same classes."""

    class_names: list[str]  # in the order of the labels
    train: ImageFiles  # uint8 images, for `AugmentedDataset`
    validation: ImageFiles  # uint8 images

    def fingerprint(self) -> str:
        """Return a hash of the files' names and sizes, without reading images."""
        train, validation = (
            ((self.class_names[label], path) for label, path in zip(f.labels, f.paths, strict=True))
            for f in (self.train, self.validation)
        )
        return fingerprint_files(train, validation)


def find_image_sets(
    data: Path,
    val_labels: Path | None,
    image_size: int,
    augmentation: str,
    skip_unreadable: bool = False,
) -> ImageSets:
    """List the images of `data/train` and of `data/val`, or `data/test`, without reading them.

    The classes are the folders of `train` in alphabetical order. A validation image is labeled by
    the name of its class; some classes may have no validation images. `skip_unreadable` applies to
    the training images only; see `ImageFiles`.

    Raises:
        UserError: a folder is missing or empty, there is only one class, or a class of `val` is
            not one of `train`.
    """
    train = list_images(data / "train")
    if len(train.classes) < 2:
        raise UserError(
            f"{data / 'train'}: only one class, {train.classes[0]}; expected at least two"
        )
    validation = list_validation_images(data, val_labels)
    for note in skipped_files(data / "train", train.num_skipped) + validation.notes:
        print_once(note)
    labels = class_indices(validation.class_names, train.classes, len(train.classes))
    return ImageSets(
        train.classes,
        ImageFiles(
            PathArray(train.paths),
            np.array(train.labels),
            training_transform(augmentation, image_size),
            skip_unreadable,
            choose_decoder(),
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
