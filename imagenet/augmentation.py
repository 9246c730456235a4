"""Random augmentation of training images, as a function of (seed, epoch, image).

It does therefore not depend on the worker or process, or on whether the run was resumed. Each
augmentation is a transform, the part that is the same in every epoch, which has a random part.
"""

import torch
from PIL import Image
from torch import Tensor
from torchvision.transforms import InterpolationMode, RandomResizedCrop
from torchvision.transforms.v2 import functional

from common.seeds import derived_seed

BICUBIC = InterpolationMode.BICUBIC


def as_tensor(image: Image.Image | Tensor) -> Tensor:
    """Return an RGB image as a tensor (3, H, W), uint8."""
    return image if isinstance(image, Tensor) else functional.pil_to_tensor(image)


class SquareCrop:
    """The augmentation `crop`: resize to a square, then a random crop and flip.

    Calling it resizes an image to (3, side, side), uint8.

    Args:
        image_size: side S of the crop.
        side: of the square.
    """

    def __init__(self, image_size: int, side: int):
        self.image_size = image_size
        self.side = side

    def __call__(self, image: Image.Image | Tensor) -> Tensor:
        return functional.resize(as_tensor(image), [self.side, self.side], BICUBIC, antialias=True)

    def random_part(self, count: int, seed: int) -> "RandomCrop":
        """Return the random part for `count` images."""
        return RandomCrop(self.image_size, self.side, count, seed)


class RandomCrop:
    """A random crop, flipped with probability 1/2.

    Args:
        image_size: side S of the crop.
        side: of the square images that are cropped.
        count: number of images.
        seed: of the run.
    """

    def __init__(self, image_size: int, side: int, count: int, seed: int):
        self._size = image_size
        self._margin = side - image_size
        self._count = count
        self._seed = seed
        self._latest: tuple[int, Tensor] = (-1, torch.empty(0))

    def __call__(self, square: Tensor, epoch: int, index: int) -> Tensor:
        """Return the crop (3, S, S) of image `index`."""
        top, left, flip = self.draws(epoch)[index].tolist()
        crop = square[:, top : top + self._size, left : left + self._size]
        return crop.flip(-1) if flip else crop

    def draws(self, epoch: int) -> Tensor:
        """Return the random numbers of all images, (count, 3) int16: top, left, 1 for a flip.

        They are drawn together, because a generator for each image takes longer than its crop.
        """
        if self._latest[0] != epoch:
            # A key of another length than those of the order, of `RandomArea` and of `Mixing`.
            generator = torch.Generator().manual_seed(derived_seed(self._seed, epoch, 0, 0, 0))
            corners = torch.randint(self._margin + 1, (self._count, 2), generator=generator)
            flips = torch.randint(2, (self._count, 1), generator=generator)
            self._latest = epoch, torch.cat([corners, flips], 1).to(torch.int16)
        return self._latest[1]


class ResizedCrop:
    """The augmentation `resized-crop`: a random crop, which is resized and flipped.

    Args:
        image_size: side S of the result.
    """

    def __init__(self, image_size: int):
        self.image_size = image_size

    def __call__(self, image: Image.Image | Tensor) -> Tensor:
        return as_tensor(image)

    def random_part(self, count: int, seed: int) -> "RandomArea":
        """Return the random part, for any number of images."""
        return RandomArea(self.image_size, seed)


class RandomArea:
    """A crop of 8 to 100 % of the area, resized, and flipped with probability 1/2.

    Args:
        image_size: side S of the result.
        seed: of the run.
    """

    def __init__(self, image_size: int, seed: int):
        self._size = [image_size, image_size]
        self._seed = seed

    def __call__(self, image: Tensor, epoch: int, index: int) -> Tensor:
        """Return the result (3, S, S) for image `index`."""
        with torch.random.fork_rng(devices=[]):  # torchvision draws from the default generator
            torch.default_generator.manual_seed(derived_seed(self._seed, epoch, index))
            box = RandomResizedCrop.get_params(image, (0.08, 1.0), (3 / 4, 4 / 3))
            flip = bool(torch.rand(1) < 0.5)
        crop = functional.resized_crop(image, *box, self._size, BICUBIC, antialias=True)
        return crop.flip(-1) if flip else crop
