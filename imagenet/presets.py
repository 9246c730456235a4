"""Preprocessing of images: the evaluation and the training transform, side by side."""

from collections.abc import Callable

import torch
from PIL import Image
from torch import Tensor
from torchvision import transforms

from augmentation import BICUBIC, ResizedCrop, SquareCrop

# Channel means and standard deviations of ImageNet's training images, in [0, 1].
IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


class Normalization:
    """Normalizes images on the device, because uint8 needs a quarter of the transfer.

    The results are those of torchvision's `ToTensor` and `Normalize` to the last bit, on a GPU too:
    the divisors are tensors because a GPU multiplies by the reciprocal of a number.

    Args:
        device: of the images.
    """

    def __init__(self, device: torch.device):
        self._white = torch.tensor(255.0, device=device)
        self._mean = torch.tensor(IMAGENET_MEAN, device=device).view(3, 1, 1)
        self._std = torch.tensor(IMAGENET_STD, device=device).view(3, 1, 1)

    def __call__(self, images: Tensor) -> Tensor:
        """Return images (B, 3, S, S), uint8, as float32 in the same memory format."""
        return images.float().div_(self._white).sub_(self._mean).div_(self._std)


def evaluation_transform(
    image_size: int = 224, resize: str = "square"
) -> Callable[[Image.Image], Tensor]:
    """Build the evaluation transform: resize and center crop. `Normalization` comes after it.

    Args:
        image_size: side S of the crop in pixels. The image is resized to S * 256 / 224 first.
        resize: `square` resizes both sides to that size and ignores the aspect ratio, as the
            released code does. `shorter-side` keeps the aspect ratio.

    Returns:
        A function from an RGB image to a uint8 tensor (3, S, S).
    """
    side = resized_side(image_size)
    return transforms.Compose(
        [
            transforms.Resize((side, side) if resize == "square" else side, BICUBIC),
            transforms.CenterCrop(image_size),
            transforms.PILToTensor(),
        ]
    )


def training_transform(augmentation: str, image_size: int = 224) -> SquareCrop | ResizedCrop:
    """Build the training transform. Both augmentations end with a random horizontal flip.

    Args:
        augmentation: `crop` resizes to a square of side S * 256 / 224, ignoring the aspect
            ratio, and takes a random crop: the paper's augmentation for ResNet-18 and ResNet-50.
            `resized-crop` crops 8 to 100 % of the area at an aspect ratio of 3/4 to 4/3 and
            resizes the crop: our reading of the "stronger augmentation" that the paper uses for
            ResNet-152 and does not describe.
        image_size: side S of the result in pixels.

    Returns:
        A transform with a random part, which gives a uint8 tensor (3, S, S).
    """
    if augmentation == "crop":
        return SquareCrop(image_size, resized_side(image_size))
    return ResizedCrop(image_size)


def resized_side(image_size: int) -> int:
    """Return the side to which images are resized before a crop of `image_size`: 256 for 224."""
    return round(image_size * 256 / 224)
