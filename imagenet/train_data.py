"""From image files to batches for training: augmentation, order, loader."""

import multiprocessing
import os
import signal
from collections.abc import Callable, Iterator
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from torchvision import transforms
from torchvision.transforms import InterpolationMode

from data import IMAGENET_MEAN, IMAGENET_STD, ImageFiles, batches
from distributed import shard

AUGMENTATIONS = ("crop", "resized-crop")
BICUBIC = InterpolationMode.BICUBIC  # as in the released evaluation


def training_transform(augmentation: str, image_size: int = 224) -> Callable[[Image.Image], Tensor]:
    """The training preprocessing; each image is mirrored half of the time.

    Args:
        augmentation: `crop` resizes to a square of S * 256 / 224 pixels, aspect ratio given up,
            and crops at random: the paper's for ResNet-18 and 50. `resized-crop` crops 8 to 100 %
            of the area at an aspect ratio of 3/4 to 4/3 and resizes that: our reading of the
            "stronger augmentation" that the paper has for ResNet-152 and does not describe.
        image_size: pixels on each side of the result, S.

    Returns:
        A function from an RGB image to a uint8 tensor (3, S, S), with torch's random numbers.
    """
    before = round(image_size * 256 / 224)
    if augmentation == "crop":
        cut = [
            transforms.Resize((before, before), BICUBIC),
            transforms.RandomCrop(image_size),
        ]
    else:
        cut = [transforms.RandomResizedCrop(image_size, interpolation=BICUBIC)]
    flip = transforms.RandomHorizontalFlip()
    # Bytes: a quarter of what floats take on the way to a GPU, where they are normalised.
    return transforms.Compose([*cut, flip, transforms.PILToTensor()])


def derived_seed(seed: int, *key: int) -> int:
    """A seed that is a function of these numbers alone, and unlike that of any other key."""
    return int(np.random.SeedSequence(seed, spawn_key=key).generate_state(1, np.uint64)[0])


class Augmented(Dataset):
    """Image files whose augmentation is a function of (seed, epoch, index) and nothing else.

    So an image looks the same whichever process or worker reads it, resumed or not.
    """

    def __init__(self, files: ImageFiles, seed: int):
        self._files = files
        self._seed = seed

    def __getitem__(self, key: tuple[int, int]) -> tuple[Tensor, int]:
        """The image and label of a key (epoch, index)."""
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(derived_seed(self._seed, *key))
            return self._files[key[1]]


class Order:
    """Which images this process takes at each step: a batch sampler that starts anywhere.

    The order is a function of (seed, epoch). A batch holds the same images for any number of
    processes, which take contiguous shares of it; the last of an epoch may be partial.

    Args:
        images: how many there are, N.
        batch_size: images in a batch, over all processes.
        seed: of the order.
    """

    def __init__(self, images: int, batch_size: int, seed: int):
        self.steps = -(-images // batch_size)  # in an epoch
        self._images = images
        self._batch_size = batch_size
        self._seed = seed
        self._epoch = self._first = 0

    def start(self, epoch: int, first: int) -> None:
        """What the next iteration gives: the batches of `epoch` from number `first` on."""
        self._epoch, self._first = epoch, first

    def whole(self, step: int) -> range:
        """The places in an epoch's order that batch number `step` takes."""
        start = step * self._batch_size
        return range(start, min(start + self._batch_size, self._images))

    def share(self, step: int) -> float:
        """This process's part of that batch, from 0 to 1."""
        whole = self.whole(step)
        return len(whole[shard(len(whole))]) / len(whole)

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        generator = torch.Generator().manual_seed(derived_seed(self._seed, self._epoch))
        order = torch.randperm(self._images, generator=generator)
        for step in range(self._first, self.steps):
            whole = self.whole(step)
            # One image all the same for a process that has no share; its weight will be 0.
            own = whole[shard(len(whole))] or whole[:1]
            yield [(self._epoch, index) for index in order[own.start : own.stop].tolist()]


class Batch(NamedTuple):
    """This process's part of a batch, at least one image."""

    images: Tensor  # (B, 3, S, S) float32, normalised, channels last
    labels: Tensor  # (B,) int64
    share: float  # of the whole batch's images; 0: they are there for the form and don't count


class Readers:
    """Prepares the processes that read images to outlive a signal that every process gets.

    A terminal or a scheduler signals them too, while the run still needs them to end its step and
    save. Only when the block has ended, do they obey SIGTERM, the last resort to end them.
    """

    def __init__(self):
        self._over = multiprocessing.Event()

    def __enter__(self) -> "Readers":
        return self

    def __exit__(self, *exception) -> None:
        self._over.set()

    def __call__(self, worker: int) -> None:
        """Called in each of them as it starts."""
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        signal.signal(signal.SIGHUP, signal.SIG_IGN)
        signal.signal(signal.SIGTERM, self._end_if_over)

    def _end_if_over(self, signum, frame) -> None:
        if self._over.is_set():
            os._exit(0)


class TrainingData:
    """The training images of this process, batch by batch, on the device.

    Args:
        files: gives uint8 images (3, S, S) and labels; what `training_transform` is for.
        order: of the images.
        seed: of the augmentation.
        workers: processes that read images, for each process of the run; 0 reads in this one.
        prefetch: batches that each worker prepares ahead.
        device: where the batches go.
        readers: prepares the workers.
    """

    def __init__(
        self,
        files: ImageFiles,
        order: Order,
        seed: int,
        workers: int,
        prefetch: int,
        device: torch.device,
        readers: Readers,
    ):
        self.order = order
        self._device = device
        self._mean = 255 * torch.tensor(IMAGENET_MEAN, device=device).view(3, 1, 1)
        self._std = 255 * torch.tensor(IMAGENET_STD, device=device).view(3, 1, 1)
        self._loader = DataLoader(
            Augmented(files, seed),
            batch_sampler=order,
            num_workers=workers,
            worker_init_fn=readers,
            persistent_workers=workers > 0,
            prefetch_factor=prefetch if workers else None,
            pin_memory=device.type == "cuda",
            generator=torch.Generator(),  # its own, so that the global one is left alone
        )

    def epoch(self, epoch: int, first: int = 0) -> Iterator[Batch]:
        """The batches of an epoch (0-based) from number `first` on.

        Raises:
            Refused: an image can't be read.
        """
        self.order.start(epoch, first)
        for step, (images, labels) in enumerate(batches(self._loader, self._device), first):
            images = images.float().sub_(self._mean).div_(self._std)
            yield Batch(images, labels, self.order.share(step))
