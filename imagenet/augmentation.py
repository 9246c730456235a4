"""What happens to an image: the same in every epoch, which a cache can hold, then at random.

Augmentation is a function of (seed, epoch, image): it depends neither on the worker or process nor
on whether the run was resumed.
"""

import os
import signal
import uuid
from collections.abc import Callable, Sequence
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from torchvision import transforms
from torchvision.transforms import InterpolationMode, RandomResizedCrop
from torchvision.transforms.v2 import functional
from tqdm import tqdm

from common.checkpoint import flush_to_disk
from common.command_line import UserError, one_line
from common.distributed import first_on_node
from common.images import hash_lines
from common.schedule import derived_seed

BICUBIC = InterpolationMode.BICUBIC


def evaluation_transform(image_size: int) -> Callable[..., Tensor]:
    """Return the released code's transform, from an RGB image of PIL to a uint8 tensor (3, S, S).

    The image is resized to a square of side S * 256 / 224, ignoring the aspect ratio, of which the
    center (S, S) is cropped.
    """
    side = resized_side(image_size)
    crop = [transforms.Resize((side, side), BICUBIC), transforms.CenterCrop(image_size)]
    return transforms.Compose([*crop, transforms.PILToTensor()])


def resized_side(image_size: int) -> int:
    """Return the side to which images are resized before a crop of `image_size`: 256 for 224."""
    return round(image_size * 256 / 224)


class RandomCrop:
    """The paper's augmentation for ResNet-18 and ResNet-50: a random crop of a square, and a flip.

    Args:
        image_size: side S of the crop.
        count: number of images.
        seed: of the run.
    """

    def __init__(self, image_size: int, count: int, seed: int):
        self.image_size, self.side = image_size, resized_side(image_size)
        self._count, self._seed = count, seed

    def fixed(self, image: Tensor) -> Tensor:
        """Return what is the same in every epoch, and what a cache holds: the resized image."""
        return functional.resize(image, [self.side, self.side], BICUBIC, antialias=True)

    def random(self, square: Tensor, epoch: int, index: int) -> Tensor:
        """Return the crop (3, S, S) of image `index`."""
        draws = random_crops(self._seed, epoch, self._count, self.side - self.image_size)
        top, left, flip = draws[index].tolist()
        crop = square[:, top : top + self.image_size, left : left + self.image_size]
        return crop.flip(-1) if flip else crop


@lru_cache(maxsize=1)
def random_crops(seed: int, epoch: int, count: int, margin: int) -> Tensor:
    """Return the random numbers of all images: (count, 3) top, left, 1 for a flip.

    They are drawn together, because a generator for each image takes longer than its crop.
    """
    # A key of another length than those of the order, of the other crop and of `Mixing`.
    generator = torch.Generator().manual_seed(derived_seed(seed, epoch, 0, 0, 0))
    corners = torch.randint(margin + 1, (count, 2), generator=generator)
    flips = torch.randint(2, (count, 1), generator=generator)
    return torch.cat([corners, flips], 1).to(torch.int16)


class RandomArea:
    """A crop of 8 to 100 % of the area at an aspect ratio of 3/4 to 4/3, resized, and a flip.

    Our reading of the "stronger augmentation" that the paper uses for ResNet-152 and does not
    describe. `image_size` is the side S of the result, `seed` that of the run.
    """

    def __init__(self, image_size: int, seed: int):
        self.image_size, self._seed = image_size, seed

    def fixed(self, image: Tensor) -> Tensor:
        return image

    def random(self, image: Tensor, epoch: int, index: int) -> Tensor:
        """Return the result (3, S, S) for image `index`."""
        with torch.random.fork_rng(devices=[]):  # torchvision draws from the default generator
            torch.default_generator.manual_seed(derived_seed(self._seed, epoch, index))
            box = RandomResizedCrop.get_params(image, (0.08, 1.0), (3 / 4, 4 / 3))
            flip = bool(torch.rand(1) < 0.5)
        size = [self.image_size, self.image_size]
        crop = functional.resized_crop(image, *box, size, BICUBIC, antialias=True)
        return crop.flip(-1) if flip else crop


class CachedImages(Dataset):
    """Images in a file, mapped into memory: (N, H, W, 3) uint8; and N class indices."""

    def __init__(self, pixels: np.ndarray, labels: Sequence[int]):
        self._pixels, self._labels = pixels, labels

    def __len__(self) -> int:
        return len(self._pixels)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        image = torch.from_numpy(np.array(self._pixels[index]))
        return image.permute(2, 0, 1), int(self._labels[index])


def cached(dataset: Dataset, path: Path, identity: str, workers: int) -> CachedImages:
    """Return the images (3, H, W) of a data set, read from a file, which is made if necessary.

    All processes must call it together; one of each node makes the file. A hash of the identity, of
    the data set and what was done to it, is added to the name, which ends in .npy.
    """
    path = path.with_stem(f"{path.stem}-{hash_lines([identity])}")
    try:
        with first_on_node() as first:
            if first and not path.exists():
                write_pixels(dataset, path, workers)
        return CachedImages(np.load(path, mmap_mode="r"), dataset.labels)
    except (OSError, ValueError) as error:
        raise UserError(f"--cache {path.parent}: {one_line(error, 150)}") from error


def write_pixels(dataset: Dataset, path: Path, workers: int) -> None:
    """Write the images of a data set to a file, which appears when it is complete."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(f".{uuid.uuid4().hex}")  # another run may write the same images
    side = dataset[0][0].shape[-1]
    header = {"descr": "|u1", "fortran_order": False, "shape": (len(dataset), side, side, 3)}
    loader = DataLoader(dataset, 64, num_workers=workers, worker_init_fn=ignore_signals)
    try:
        with open(partial, "wb") as file:
            np.lib.format.write_array_header_1_0(file, header)
            for images, _ in tqdm(loader, f"caching {path.stem}", disable=None, leave=False):
                file.write(images.permute(0, 2, 3, 1).contiguous().numpy())
            file.flush()
            flush_to_disk(file.fileno())
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


def ignore_signals(worker: int) -> None:
    """Keep a worker alive on termination signals, which schedulers send to every process.

    The main process needs its workers to finish the current step.
    """
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
