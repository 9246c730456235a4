"""The images to train and test on: the files of a data folder, and their classes.

The class index of a test image follows from the name of its class, not from the folder order.
"""

import contextlib
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
import torchvision
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset
from torchvision.io import ImageReadMode, decode_jpeg
from torchvision.transforms.v2.functional import pil_to_tensor

from augmentation import RandomArea, RandomCrop, evaluation_transform
from common.command_line import UserError, plural
from common.images import (
    Listing,
    check_classes,
    find_test_folder,
    hash_lines,
    is_image,
    list_images,
    read_rgb,
)
from flags import Config

SYNSETS = Path(__file__).with_name("imagenet_synsets.txt")


class ImageFiles(Dataset):
    """Image files as pairs of a transformed image and its label.

    Args:
        paths: N image files.
        labels: N class indices.
        transform: from what `decode` returns to a uint8 tensor (3, S, S).
        decode: reads a file.
    """

    def __init__(
        self,
        paths: Sequence[Path],
        labels: Sequence[int],
        transform: Callable,
        decode: Callable[[Path], Image.Image | Tensor] = read_rgb,
    ):
        self.paths, self.labels = paths, labels
        self.transform, self.decode = transform, decode

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return self.transform(self.decode(self.paths[index])), int(self.labels[index])


def read_pixels(path: Path) -> Tensor:
    """Decode an image to RGB: the pixels of `read_rgb`, as (3, H, W) uint8, channels last.

    torchvision decodes JPEGs in three quarters of PIL's time, to the same pixels. It may not be
    able to: its decoder is deprecated. PIL also reads some damaged files that it refuses.
    """
    if path.suffix.lower() in (".jpg", ".jpeg") and path.is_file():  # not a pipe
        with contextlib.suppress(Exception):
            data = torch.from_numpy(np.fromfile(path, np.uint8))
            with Image.open(path) as image:
                small = image.width * image.height <= Image.MAX_IMAGE_PIXELS
                if image.mode in ("RGB", "L") and image.format == "JPEG" and small:
                    return decode_jpeg(data, ImageReadMode.RGB)
    return pil_to_tensor(read_rgb(path))


class ImageSets(NamedTuple):
    """The training and the test images, of the same classes."""

    classes: list[str]  # names, in the order of the labels
    train: Dataset  # what is the same in every epoch, uint8
    test: Dataset  # uint8 images (3, S, S)
    augmentation: RandomCrop | RandomArea
    identity: str  # differs between data sets


def find_image_sets(config: Config) -> ImageSets:
    """List the images of `data/train` and the test images, and print how many there are.

    The classes are the folders of `train` in alphabetical order. A test image is labeled by the
    name of its class; some classes may have no test images.

    Raises:
        UserError: a folder is missing or empty, there is only one class, or a class of the test
            images is not one of `train`.
    """
    test = list_test_images(config.data, config.val_labels)
    train = list_images(config.data / "train")
    check_classes(train.classes, test.classes, config.data)
    labels, size = class_indices(test, train.classes, len(train.classes)), config.image_size
    if config.augmentation == "crop":
        augmentation = RandomCrop(size, len(train.paths), config.seed)
    else:
        augmentation = RandomArea(size, config.seed)
    return ImageSets(
        train.classes,
        ImageFiles(train.paths, train.labels, augmentation.fixed, read_pixels),
        ImageFiles(test.paths, labels, evaluation_transform(size)),
        augmentation,
        hash_lines([train.identity, test.identity]),
    )


def imagenet_synsets() -> list[str]:
    """Return the WordNet IDs of the 1,000 ImageNet classes (ILSVRC 2012) in label order."""
    return SYNSETS.read_text().split()


def list_test_images(data: Path, val_labels: Path | None) -> Listing:
    """List the test images of a data folder; see `find_test_folder`.

    They are in one folder per class or, with `val_labels`, all in the folder itself.

    Raises:
        UserError: a folder is missing or empty, or an image has no label.
    """
    folder = find_test_folder(data)
    images = sorted(path for path in folder.iterdir() if is_image(path.name) and path.is_file())
    if val_labels:
        return label_from_file(images, val_labels)
    if images:
        raise UserError(
            f"{folder}: {plural(len(images), 'image')} in no class; give each class a folder of "
            "its own or, for ImageNet, --val-labels LOC_val_solution.csv (from Kaggle) or a file "
            "of lines 'filename wnid'"
        )
    return list_images(folder)


def label_from_file(paths: Sequence[Path], val_labels: Path) -> Listing:
    """Label images with the classes in a file.

    A line is `name wnid`, or `name,wnid x y x y …` as in Kaggle's file.

    Raises:
        UserError: a line is malformed, or an image has no label.
    """
    class_of: dict[str, str] = {}
    for number, line in enumerate(val_labels.read_text("utf-8-sig", "replace").splitlines(), 1):
        if not line.strip() or line.startswith("ImageId,"):  # header of Kaggle's file
            continue
        match = re.match(r"\s*(.+?)[,\s]\s*(n\d{8})\b", line)
        if not match:  # such as the numbers of the devkit, which are not class indices
            raise UserError(
                f"--val-labels {val_labels}, line {number}: expected 'filename wnid', got "
                f"{line[:60]!r}"
            )
        class_of[match[1]] = match[2]
    # Kaggle's file has file names without extension.
    names = [class_of.get(path.name, class_of.get(path.stem)) for path in paths]
    if not names or None in names:
        problem = f"no label for {paths[names.index(None)].name}" if names else "no images for it"
        raise UserError(f"--val-labels {val_labels}: {problem}; complete the file or leave it out")
    identity = hash_lines(f"{name}/{path.name}" for path, name in zip(paths, names, strict=True))
    classes, labels = np.unique(names, return_inverse=True)
    return Listing(classes.tolist(), paths, labels, identity)


def class_indices(images: Listing, classes: Sequence[str] | None, num_classes: int) -> np.ndarray:
    """Return the class index of each image: (N,) int64.

    Args:
        images: labeled with their own classes.
        classes: the network's class names in label order, if known. If not, those of the images
            are used, in the order of torchvision's ImageFolder.
        num_classes: number of classes of the network, K.

    Raises:
        UserError: the network has no such class, or the number of classes is not K.
    """
    classes = classes or images.classes
    if len(classes) != num_classes:
        raise UserError(
            f"{plural(len(classes), 'class')} for a network of {plural(num_classes, 'class')}, "
            "whose checkpoint has no class names; use the images that it was trained for"
        )
    index = {name: i for i, name in enumerate(classes)}
    if unknown := [name for name in images.classes if name not in index]:
        raise UserError(
            f"the network does not know {plural(len(unknown), 'class')} of the images, such as "
            f"{unknown[0]}; it has {plural(num_classes, 'class')}, such as {classes[0]}"
        )
    return np.array([index[name] for name in images.classes])[images.labels]


def class_titles(classes: Sequence[str]) -> list[str]:
    """Return a readable title for each class, such as `tabby (n02123045)`."""
    categories = torchvision.models.ResNet50_Weights.IMAGENET1K_V1.meta["categories"]
    words = dict(zip(imagenet_synsets(), categories, strict=True))
    return [f"{words[name]} ({name})" if name in words else name for name in classes]
