"""The released code's data path, which cifar.py compares with: PIL in a DataLoader."""

from collections.abc import Callable
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor
from torch.utils import data as torch_data
from torchvision import datasets, transforms

from data import Dataset, Split


class PilImages(torch_data.Dataset):
    """A split whose images are transformed one by one as PIL images, as in torchvision's CIFAR."""

    def __init__(self, split: Split, transform: Callable[[Image.Image], Tensor]):
        self._pixels = split.images.permute(0, 2, 3, 1).numpy()
        self._labels = split.labels.tolist()
        self._transform = transform

    def __len__(self) -> int:
        return len(self._labels)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return self._transform(Image.fromarray(self._pixels[index])), self._labels[index]


def transform(data: Dataset, train: bool) -> transforms.Compose:
    """Build the transform: for training reflection padding, flip and crop; then normalization."""
    size = data.train.images.shape[-1]
    augmentation = [
        transforms.Pad(size // 8, padding_mode="reflect"),
        *([transforms.RandomHorizontalFlip()] if data.flip else []),
        transforms.RandomCrop(size),
    ]
    return transforms.Compose(
        [
            *(augmentation if train else []),
            transforms.ToTensor(),
            transforms.Normalize(data.info.mean, data.info.std),
        ]
    )


def folder_images(
    folder: Path, size: int, transform: Callable[[Image.Image], Tensor]
) -> torch_data.Dataset:
    """Return the images of `folder`/<class>, which are read and resized at each access."""
    resize = transforms.Resize((size, size), transforms.InterpolationMode.BICUBIC)
    return datasets.ImageFolder(folder, transforms.Compose([resize, transform]))


def loader(
    dataset: torch_data.Dataset, batch_size: int, workers: int, train: bool
) -> torch_data.DataLoader:
    """Build a loader whose workers start again at each epoch, as in the released code."""
    return torch_data.DataLoader(
        dataset,
        batch_size,
        shuffle=train,
        num_workers=workers,
        pin_memory=torch.cuda.is_available(),  # as released
    )
