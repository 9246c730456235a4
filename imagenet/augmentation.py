"""What happens to an image: the same in every epoch, which a cache can hold, then at random.

Augmentation is a function of (seed, epoch, image): it depends neither on the worker or process nor
on whether the run was resumed.
"""

import fcntl
import math
import os
import shutil
import signal
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from torchvision import transforms
from torchvision.transforms import InterpolationMode, RandomResizedCrop
from torchvision.transforms.v2 import functional
from tqdm import tqdm

from common.command_line import UserError, one_line
from common.distributed import first_on_node
from common.schedule import derived_seed

BICUBIC = InterpolationMode.BICUBIC


def evaluation_transform(image_size: int, resize: str = "square") -> Callable[..., Tensor]:
    """Return the evaluation transform, from an RGB image of PIL to a uint8 tensor (3, S, S).

    Args:
        image_size: side S of the center crop. The image is resized to S * 256 / 224 first.
        resize: `square` resizes both sides to that size and ignores the aspect ratio, as the
            released code does. `shorter-side` keeps the aspect ratio.
    """
    side = resized_side(image_size)
    return transforms.Compose(
        [
            transforms.Resize((side, side) if resize == "square" else side, BICUBIC),
            transforms.CenterCrop(image_size),
            transforms.PILToTensor(),
        ]
    )


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
        self._latest: tuple[int, Tensor] = (-1, torch.empty(0))

    def fixed(self, image: Tensor) -> Tensor:
        """Return what is the same in every epoch, and what a cache holds: the resized image."""
        return functional.resize(image, [self.side, self.side], BICUBIC, antialias=True)

    def random(self, square: Tensor, epoch: int, index: int) -> Tensor:
        """Return the crop (3, S, S) of image `index`."""
        top, left, flip = self._draws(epoch)[index].tolist()
        crop = square[:, top : top + self.image_size, left : left + self.image_size]
        return crop.flip(-1) if flip else crop

    def _draws(self, epoch: int) -> Tensor:
        """Return the random numbers of all images: (count, 3) top, left, 1 for a flip.

        They are drawn together, because a generator for each image takes longer than its crop.
        """
        if self._latest[0] != epoch:
            # A key of another length than those of the order, of the other crop and of `Mixing`.
            generator = torch.Generator().manual_seed(derived_seed(self._seed, epoch, 0, 0, 0))
            margin = self.side - self.image_size
            corners = torch.randint(margin + 1, (self._count, 2), generator=generator)
            flips = torch.randint(2, (self._count, 1), generator=generator)
            self._latest = epoch, torch.cat([corners, flips], 1).to(torch.int16)
        return self._latest[1]


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
    """Images whose fixed part is in a file.

    Args:
        pixels: (N, H, W, 3) uint8, mapped into memory.
        labels: N class indices.
    """

    def __init__(self, pixels: np.ndarray, labels: Sequence[int]):
        self._pixels, self._labels = pixels, labels

    def __len__(self) -> int:
        return len(self._pixels)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        image = torch.from_numpy(np.array(self._pixels[index]))
        return image.permute(2, 0, 1), int(self._labels[index])


def cached(dataset: Dataset, path: Path, identity: str, workers: int) -> CachedImages:
    """Return the images of a data set, read from a file, which is made if it is not there.

    All processes must call it together; one of each node makes the file.

    Args:
        dataset: uint8 images (3, H, W) of one size, and their labels.
        path: of the file, which ends in .npy.
        identity: of the data set and what was done to it; the file is bound to it.
        workers: processes that decode the images.

    Raises:
        UserError: the file is of other images, or can't be written.
    """
    about = path.with_suffix(".txt")
    try:
        with first_on_node() as first:
            if first and not path.exists():
                build_cache(dataset, path, identity, workers)
        if about.read_text() != identity:
            raise UserError(
                f"--cache {path.parent}: made from other images, or for another --image-size; "
                f"choose another folder, or delete {path}"
            )
        pixels = np.load(path, mmap_mode="r")
    except (OSError, ValueError) as error:
        raise UserError(f"--cache {path.parent}: {one_line(error, 150)}") from error
    return CachedImages(pixels, dataset.labels)


def build_cache(dataset: Dataset, path: Path, identity: str, workers: int) -> None:
    """Make the file of a data set, unless another run does; in that case, wait for it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path.with_suffix(".lock"), "w") as lock:
        fcntl.lockf(lock, fcntl.LOCK_EX)
        if not path.exists():
            path.with_suffix(".txt").write_text(identity)
            write_pixels(dataset, path, workers)


def write_pixels(dataset: Dataset, path: Path, workers: int) -> None:
    """Write the images of a data set to a file, which appears when it is complete."""
    side, partial = dataset[0][0].shape[-1], path.with_suffix(".partial")
    shape = (len(dataset), side, side, 3)
    needed, free = math.prod(shape), shutil.disk_usage(path.parent).free
    if needed > free:
        sizes = f"{needed / 1e9:.1f} GB needed, {free / 1e9:.1f} GB free"
        raise UserError(f"--cache {path.parent}: {sizes}; choose a folder on a larger disk")
    loader = DataLoader(dataset, 64, num_workers=workers, worker_init_fn=ignore_signals)
    header = {"descr": "|u1", "fortran_order": False, "shape": shape}
    try:
        with open(partial, "wb") as file:
            np.lib.format.write_array_header_1_0(file, header)
            for images, _ in tqdm(loader, f"caching {path.stem} images", disable=None, leave=False):
                file.write(images.permute(0, 2, 3, 1).contiguous().numpy())
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


def ignore_signals(worker: int) -> None:
    """Keep a worker alive on termination signals, which schedulers send to every process.

    The main process needs its workers to finish the current step.
    """
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
