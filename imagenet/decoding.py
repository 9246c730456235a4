"""Decode training images to tensors: JPEGs with torchvision's decoder, everything else with PIL.

For JPEGs both give the same pixels if both use libjpeg-turbo, as the packages on PyPI do.
torchvision's decoder takes three quarters of the time.
"""

import contextlib
import io
import os
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
import torchvision
from PIL import Image
from torch import Tensor
from torch.utils.data import get_worker_info
from torchvision.transforms.v2 import functional

from common.command_line import one_line
from common.distributed import print_once
from common.images import decode_rgb, image_errors, open_image, read_file, read_rgb

DECODING = 2  # of training images; 1: PIL alone, and a random generator for each image


def read_pixels(path: Path) -> Tensor:
    """Decode an image to RGB: the pixels of `common.images.read_rgb`.

    Returns:
        (3, H, W) uint8, channels last in memory.

    Raises:
        UserError: the file can't be read or decoded; the message begins with its path.
    """
    with image_errors(path):
        data = read_file(path)
        with open_image(data) as image:
            is_plain_jpeg = image.format == "JPEG" and image.mode in ("RGB", "L")
        if is_plain_jpeg:
            # PIL reads some damaged files that torchvision refuses, and says what is wrong with
            # the others.
            with contextlib.suppress(RuntimeError), silent_worker():
                return decode_plain_jpeg(data)
        return functional.pil_to_tensor(decode_rgb(data))


def decode_plain_jpeg(data: bytes) -> Tensor:
    """Decode a JPEG of RGB or gray pixels. Raise `RuntimeError` if it is damaged."""
    # A copy, because PyTorch warns of memory that can't be written.
    content = torch.frombuffer(bytearray(data), dtype=torch.uint8)
    return torchvision.io.decode_jpeg(content, torchvision.io.ImageReadMode.RGB)


@contextlib.contextmanager
def silent_worker() -> Iterator[None]:
    """In a worker, discard what the block prints to file descriptor 2: libjpeg's warnings.

    PIL does not print them either. The descriptor belongs to the whole process. In the main process
    (`-j 0`) the line of another thread would be lost, so libjpeg's warnings are shown there. PIL
    would be silent, but its pixels may differ where it is built with another libjpeg.
    """
    if get_worker_info() is None:
        yield
        return
    try:
        kept = os.dup(2)
    except OSError:  # the process has no standard error
        yield
        return
    null = os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(null, 2)
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
        os.close(null)


def choose_decoder() -> Callable[[Path], Image.Image | Tensor]:
    """Return `read_pixels` or, if torchvision can't decode JPEGs, PIL's `read_rgb`; print which.

    The pixels are the same. torchvision can be built without its decoder, and has announced that
    it will be removed (deprecated since torchvision 0.29).
    """
    buffer = io.BytesIO()
    Image.new("RGB", (8, 8)).save(buffer, "JPEG")
    try:
        decode_plain_jpeg(buffer.getvalue())
    except (RuntimeError, AttributeError) as error:
        print_once(
            f"note: PIL decodes the training images, which takes longer, because torchvision can't "
            f"({one_line(error, 150)})"
        )
        return read_rgb
    return read_pixels
