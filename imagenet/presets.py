"""Preprocessing of images: the evaluation and the training transform, side by side."""

from collections.abc import Callable

from PIL import Image
from torch import Tensor
from torchvision import transforms

from augmentation import BICUBIC, ResizedCrop, SquareCrop

# Channel means and standard deviations of ImageNet's training images, in [0, 1].
IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


def evaluation_transform(
    image_size: int = 224, resize: str = "square"
) -> Callable[[Image.Image], Tensor]:
    """Build the evaluation transform: resize, center crop, normalize.

    Args:
        image_size: side S of the crop in pixels. The image is resized to S * 256 / 224 first.
        resize: `square` resizes both sides to that size and ignores the aspect ratio, as the
            released code does. `shorter-side` keeps the aspect ratio.

    Returns:
        A function from an RGB image to a float32 tensor (3, S, S).
    """
    side = resized_side(image_size)
    return transforms.Compose(
        [
            transforms.Resize((side, side) if resize == "square" else side, BICUBIC),
            transforms.CenterCrop(image_size),
            transforms.ToTensor(),
            transforms.Normalize(IMAGENET_MEAN, IMAGENET_STD),
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
        A transform with a random part, which gives a uint8 tensor (3, S, S). Images are normalized
        on the device, because uint8 needs a quarter of the transfer.
    """
    if augmentation == "crop":
        return SquareCrop(image_size, resized_side(image_size))
    return ResizedCrop(image_size)


def resized_side(image_size: int) -> int:
    """Return the side to which images are resized before a crop of `image_size`: 256 for 224."""
    return round(image_size * 256 / 224)
