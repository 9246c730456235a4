"""From image files to batches for evaluation: preprocessing, data set, loader."""

import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Subset
from torchvision import transforms
from torchvision.transforms import InterpolationMode

from command_line import Refused
from distributed import shard, world_size
from images import read_rgb

# Means and standard deviations of the channels of ImageNet's training images, in [0, 1].
IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)

RESIZES = ("square", "shorter-side")
UNREADABLE = -1  # the label of an image that was skipped; no class has it


def evaluation_transform(
    image_size: int = 224, resize: str = "square"
) -> Callable[[Image.Image], Tensor]:
    """The evaluation preprocessing: resize, centre crop, normalise.

    Args:
        image_size: pixels on each side of the crop, S. The size before it is S * 256 / 224.
        resize: `square` brings both sides to that size and so gives up the aspect ratio, as the
            released code does; `shorter-side` brings the shorter one there, the usual way.

    Returns:
        A function from an RGB image to a float32 tensor (3, S, S).
    """
    before = round(image_size * 256 / 224)
    return transforms.Compose(
        [
            transforms.Resize(
                (before, before) if resize == "square" else before, InterpolationMode.BICUBIC
            ),
            transforms.CenterCrop(image_size),
            transforms.ToTensor(),
            transforms.Normalize(IMAGENET_MEAN, IMAGENET_STD),
        ]
    )


class ImageFiles(Dataset):
    """Pairs of a transformed image and its label, read from files.

    Args:
        paths: N image files.
        labels: N class indices.
        transform: from a PIL image, RGB, to a tensor.
        skip_unreadable: give a file that can't be decoded the label `UNREADABLE`, and a blank
            image, where otherwise it raises `Refused`.
    """

    def __init__(
        self,
        paths: Sequence[Path],
        labels: Sequence[int],
        transform: Callable[[Image.Image], Tensor],
        skip_unreadable: bool = False,
    ):
        self.paths = paths
        self.labels = labels
        self.transform = transform
        self.skip_unreadable = skip_unreadable

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        try:
            image, label = read_rgb(self.paths[index]), self.labels[index]
        except Refused as refusal:
            if not self.skip_unreadable:
                raise
            print(f"skipped: {refusal}", file=sys.stderr)
            image, label = Image.new("RGB", (1, 1)), UNREADABLE
        return self.transform(image), label


def leave_signals_to_the_main_process(worker: int) -> None:
    """A terminal or a scheduler signals every process, but one answer to it is enough.

    The main process asks its workers to end by other means. Should that fail, SIGTERM is its
    last resort, and so is obeyed after a while.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, lambda *_: signal.alarm(30))


def evaluation_loader(
    dataset: Dataset,
    batch_size: int,
    workers: int,
    device: torch.device,
    prepare_worker: Callable[[int], None] = leave_signals_to_the_main_process,
) -> DataLoader:
    """Batches, in order, of this process's share of the data set; no image is given out twice.

    Args:
        dataset: anything with a length; `ImageFiles`, as a rule.
        batch_size: images in a batch, over all processes.
        workers: processes that read images, for each process of the run; 0 reads in this one.
        device: where the batches will go.
        prepare_worker: called with its number in each of these processes as it starts.

    Raises:
        Refused: there are fewer images than processes.
    """
    count = len(dataset)
    if count < world_size():
        raise Refused(
            f"{count} image(s) for {world_size()} processes: each needs one; start fewer processes"
        )
    return DataLoader(
        Subset(dataset, range(*shard(count).indices(count))),
        batch_size=-(-batch_size // world_size()),
        num_workers=workers,
        worker_init_fn=prepare_worker,
        persistent_workers=workers > 0,
        pin_memory=device.type == "cuda",
    )


def batches(loader: DataLoader, device: torch.device) -> Iterator[tuple[Tensor, Tensor]]:
    """The loader's batches on `device`: images (B, 3, S, S), channels last, and labels (B,).

    Raises:
        Refused: an image can't be read, or a process that reads them was killed.
    """
    try:
        for images, labels in loader:
            images = images.to(device, non_blocking=True, memory_format=torch.channels_last)
            yield images, labels.to(device, non_blocking=True)
    except Refused as refusal:
        # From a worker it comes with the worker's traceback before it. The traceback here is in a
        # cycle of references, which would keep the loader, and so its workers, from ending.
        reason = str(refusal).rsplit("Refused: ", 1)[-1]
        raise Refused(reason) from refusal.with_traceback(None)
    except RuntimeError as error:
        if "DataLoader worker" not in str(error):
            raise
        raise Refused(
            "a process that reads images was killed, for want of memory as a rule; "
            "use a smaller -j or -b"
        ) from error
