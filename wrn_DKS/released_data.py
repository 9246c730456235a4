"""The data path of the released code, for `benchmark.py` to compare with: PIL in a DataLoader."""

from collections.abc import Callable
from pathlib import Path

from PIL import Image
from torch import Tensor
from torch.utils import data as torch_data
from torchvision import datasets, transforms

from data import Dataset, Split


class PilImages(torch_data.Dataset):
    """A split, image by image, transformed as a PIL image: as torchvision's CIFAR100 gives it."""

    def __init__(self, split: Split, transform: Callable[[Image.Image], Tensor]):
        self._pixels = split.images.permute(0, 2, 3, 1).numpy()
        self._labels = split.labels.tolist()
        self._transform = transform

    def __len__(self) -> int:
        return len(self._labels)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return self._transform(Image.fromarray(self._pixels[index])), self._labels[index]


def transform(data: Dataset, train: bool) -> transforms.Compose:
    """To train: reflected padding, mirroring and crop; then normalisation."""
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
            transforms.Normalize(data.facts.mean, data.facts.std),
        ]
    )


def folder_images(
    folder: Path, size: int, after: Callable[[Image.Image], Tensor]
) -> torch_data.Dataset:
    """Images below `folder`/<class>, read and resized each time."""
    resize = transforms.Resize((size, size), transforms.InterpolationMode.BICUBIC)
    return datasets.ImageFolder(folder, transforms.Compose([resize, after]))


def loader(
    dataset: torch_data.Dataset, batch_size: int, workers: int, train: bool
) -> torch_data.DataLoader:
    """Its worker processes start anew at each epoch, as in the released code."""
    return torch_data.DataLoader(dataset, batch_size, shuffle=train, num_workers=workers)
