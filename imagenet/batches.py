"""Batches of this process, loaded by workers and normalized on the device."""

import contextlib
import tempfile
import weakref
from collections.abc import Iterable, Iterator, Sequence

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Subset, default_collate, get_worker_info

from augmentation import RandomArea, RandomCrop, ignore_signals
from common.command_line import UserError
from common.distributed import Compute, shard, steps_per_epoch, world_size
from common.evaluation import Batch
from common.schedule import Mixing, derived_seed
from data import ImageSets
from flags import Config

# Channel means and standard deviations of ImageNet's training images, in [0, 1].
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


class Augmented(Dataset):
    """The images of `ImageSets.train`, augmented; the keys are pairs (epoch, index)."""

    def __init__(self, images: Dataset, augmentation: RandomCrop | RandomArea):
        self._images, self._augmentation = images, augmentation

    def __getitem__(self, key: tuple[int, int]) -> tuple[Tensor, int]:
        epoch, index = key
        image, label = self._images[index]
        return self._augmentation.random(image, epoch, index), label


class TrainingBatches:
    """Augmented batches of this process, on the device. They can start at any step of any epoch.

    A batch holds the same images for any number of processes, each of which takes a contiguous
    part of it. The last batch may be partial.

    Args:
        config: batch size and seed, and the number of workers; 0 loads in the main process.
        sets: the images.
        mixing: mixes pairs of images of a batch, if it is not empty.
        compute: where the batches are needed.
    """

    def __init__(self, config: Config, sets: ImageSets, mixing: Mixing, compute: Compute):
        self._count, self._batch_size = len(sets.train), config.batch_size
        self._seed, self._mixing, self._compute = config.seed, mixing, compute
        self.steps = steps_per_epoch(self._count, config.batch_size)
        self._next = (0, 0)  # epoch and step
        self._loader = make_loader(
            Augmented(sets.train, sets.augmentation),
            config.workers,
            compute.device,
            batch_sampler=weakref.proxy(self),  # in a cycle, the workers would outlive it
            prefetch_factor=4 if config.workers else None,
        )

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        """Yield the keys of this process's part of each batch, for DataLoader."""
        epoch, first_step = self._next
        generator = torch.Generator().manual_seed(derived_seed(self._seed, epoch))
        order = torch.randperm(self._count, generator=generator)
        for step in range(first_step, self.steps):
            batch = order[step * self._batch_size : (step + 1) * self._batch_size]
            own = shard(len(batch))
            positions = list(range(own.start, own.stop))
            if self._mixing:  # with the image before
                positions.insert(0, own.start - 1)
            yield [(epoch, index) for index in batch[positions].tolist()]

    def epoch(self, epoch: int, first_step: int = 0) -> Iterator[Batch]:
        """Yield the batches of an epoch (0-based) from `first_step` on.

        Raises:
            UserError: an image can't be read.
        """
        self._next = (epoch, first_step)
        batches = device_batches(self._loader, self._compute)
        for step, (images, labels) in enumerate(batches, first_step):
            if self._mixing:
                images, labels = self._mixing(images, labels, epoch, step)
            total = min(self._batch_size, self._count - step * self._batch_size)
            yield Batch(images, labels, total)


class TestBatches:
    """This process's part of a data set, each image once and in order.

    Args:
        dataset: uint8 images (3, S, S) and labels.
        batch_size: total batch size over all processes.
        workers: DataLoader workers; 0 loads in the main process.
        compute: where the batches are needed.
    """

    def __init__(self, dataset: Dataset, batch_size: int, workers: int, compute: Compute):
        part = Subset(dataset, range(*shard(len(dataset)).indices(len(dataset))))
        size = -(-batch_size // world_size())
        self._compute = compute
        self._loader = make_loader(part, workers, compute.device, batch_size=size)

    def __len__(self) -> int:
        return len(self._loader)

    def __iter__(self) -> Iterator[Batch]:
        for images, labels in device_batches(self._loader, self._compute):
            yield Batch(images, labels, len(labels) * world_size())


def make_loader(dataset: Dataset, workers: int, device: torch.device, **options) -> DataLoader:
    if workers and len(tempfile.gettempdir()) > 60:  # the path of a socket has 107 bytes at most
        raise UserError(f"TMPDIR {tempfile.gettempdir()}: too long for workers; set a shorter one")
    return DataLoader(
        dataset,
        num_workers=workers,
        collate_fn=collate,
        worker_init_fn=ignore_signals,
        persistent_workers=workers > 0,
        pin_memory=device.type == "cuda",
        generator=torch.Generator(),  # leaves torch's default generator untouched
        **options,
    )


def collate(samples: Sequence[tuple[Tensor, int]]) -> list[Tensor]:
    """Stack images, channels last in memory as they are decoded, and labels."""
    images, labels = zip(*samples, strict=True)
    nhwc = torch.stack([image.permute(1, 2, 0) for image in images])
    batch = [nhwc.permute(0, 3, 1, 2), default_collate(labels)]
    if get_worker_info():  # here an error, such as a full /dev/shm, ends the run; later it hangs
        batch = [each.share_memory_() for each in batch]
    return batch


def device_batches(loader: Iterable, compute: Compute) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield batches on the device: images (B, 3, S, S), float32 and normalized, and labels (B,).

    They are normalized on the device, because uint8 needs a quarter of the transfer. The results
    are those of torchvision's `ToTensor` and `Normalize` to the last bit, on a GPU too: it would
    multiply by the reciprocal of a divisor that is a number.
    """
    device = compute.device
    constants = ((255.0,), IMAGENET_MEAN, IMAGENET_STD)
    white, mean, std = (torch.tensor(each, device=device).view(-1, 1, 1) for each in constants)
    with worker_errors():
        for images, labels in loader:
            images = images.to(device, non_blocking=True).float()
            images.div_(white).sub_(mean).div_(std)
            yield images, labels.to(device, non_blocking=True)


@contextlib.contextmanager
def worker_errors() -> Iterator[None]:
    """Raise one line, as `UserError`, for an error of a worker in the block, or of its death."""
    try:
        yield
    except UserError as error:
        # DataLoader puts the worker's traceback before the message. The traceback of this process
        # is dropped because it forms a reference cycle that would keep the workers alive.
        message = str(error).rpartition("UserError: ")[2].strip()
        raise UserError(message) from error.with_traceback(None)
    except RuntimeError as error:
        if "DataLoader worker" not in str(error):
            raise
        raise UserError(
            f"{str(error).splitlines()[-1].strip()}; memory may have run out: use a smaller -j or "
            "-b, and in Docker a larger --shm-size"
        ) from error.with_traceback(None)
