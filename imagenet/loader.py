"""Batches of images: the resumable sampler, the training loader and the evaluation loader."""

from collections.abc import Callable, Iterable, Iterator
from typing import NamedTuple

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Subset

from common.command_line import UserError, plural
from common.distributed import shard, world_size
from common.mixing import Mixing
from common.seeds import derived_seed
from data import AugmentedDataset
from presets import Normalization
from skipping import SkippedImages
from workers import collate, worker_failure


class ResumableBatchSampler:
    """Batch sampler of this process that can start at any step of any epoch.

    The order is a function of (seed, epoch). A batch holds the same images for any number of
    processes, each of which takes a contiguous part of it. The last batch may be partial.

    Args:
        num_images: size of the data set.
        batch_size: total batch size over all processes.
        seed: of the order.
        with_previous: put the image before those of this process in front of them, or the last
            one of the batch before its first; for `Mixing`.
    """

    def __init__(self, num_images: int, batch_size: int, seed: int, with_previous: bool = False):
        self.steps = -(-num_images // batch_size)  # in an epoch
        self._num_images = num_images
        self._batch_size = batch_size
        self._seed = seed
        self._with_previous = with_previous
        self._epoch = self._first_step = 0

    def start_at(self, epoch: int, first_step: int) -> None:
        """Make the next iteration yield the batches of `epoch` from `first_step` on."""
        self._epoch, self._first_step = epoch, first_step

    def batch_fraction(self, step: int) -> float:
        """Return this process's fraction of the batch, from 0 to 1."""
        batch = self._batch(step)
        return len(batch[shard(len(batch))]) / len(batch)

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        generator = torch.Generator().manual_seed(derived_seed(self._seed, self._epoch))
        order = torch.randperm(self._num_images, generator=generator)
        for step in range(self._first_step, self.steps):
            batch = self._batch(step)
            # A process without images in the batch gets a placeholder, which has weight 0.
            own = batch[shard(len(batch))] or batch[:1]
            positions = list(own)
            if self._with_previous:
                positions.insert(0, own.start - 1 if own.start > batch.start else batch[-1])
            yield [(self._epoch, index) for index in order[positions].tolist()]

    def _batch(self, step: int) -> range:
        """Positions of a batch in the order of the epoch."""
        start = step * self._batch_size
        return range(start, min(start + self._batch_size, self._num_images))


class Batch(NamedTuple):
    """This process's part of a batch. Without any image: none of the whole batch can be read."""

    images: Tensor  # (B, 3, S, S) float32, normalized, channels last
    labels: Tensor  # (B,) int64, or (B, K) float32 if images are mixed
    batch_fraction: float  # of the whole batch's images; 0 for a placeholder that does not count
    unreadable: int = 0  # images of this part that are left out


class TrainingLoader:
    """Augmented batches of this process, on the device.

    Args:
        dataset: yields uint8 images (3, S, S) and labels.
        sampler: of the batches.
        workers: DataLoader workers per process; 0 loads in the main process.
        prefetch: batches prefetched per worker.
        device: of the batches.
        worker_init: sets up a worker.
        mixing: mixes pairs of images of a batch, if given; the sampler must be `with_previous`.
    """

    def __init__(
        self,
        dataset: AugmentedDataset,
        sampler: ResumableBatchSampler,
        workers: int,
        prefetch: int,
        device: torch.device,
        worker_init: Callable[[int], None],
        mixing: Mixing | None = None,
    ):
        self.files = dataset.files
        self.sampler = sampler
        self._device = device
        self._mixing = mixing
        self._skipping = SkippedImages(mixing is not None) if self.files.skip_unreadable else None
        self._loader = DataLoader(
            dataset,
            batch_sampler=sampler,
            num_workers=workers,
            collate_fn=collate,
            worker_init_fn=worker_init,
            persistent_workers=workers > 0,
            prefetch_factor=prefetch if workers else None,
            pin_memory=device.type == "cuda",
            generator=torch.Generator(),  # leaves torch's default generator untouched
        )

    def epoch(self, epoch: int, first_step: int = 0) -> Iterator[Batch]:
        """Yield the batches of an epoch (0-based) from `first_step` on.

        Raises:
            UserError: an image cannot be read.
        """
        self.sampler.start_at(epoch, first_step)
        batches = device_batches(self._readable(first_step), self._device)
        for step, (images, labels, *counts) in enumerate(batches, first_step):
            if self._mixing and len(labels):
                images, labels = self._mixing(images, labels, epoch, step)
            yield Batch(images, labels, *counts)

    def _readable(self, first_step: int) -> Iterator[tuple]:
        """Yield the fields of `Batch`, on the CPU and without the unreadable images."""
        for step, (images, labels) in enumerate(self._loader, first_step):
            batch = images, labels, self.sampler.batch_fraction(step)
            yield self._skipping(*batch) if self._skipping else batch


def evaluation_loader(
    dataset: Dataset,
    batch_size: int,
    workers: int,
    device: torch.device,
    worker_init: Callable[[int], None],
) -> DataLoader:
    """Build a loader of this process's part of a data set, each image once and in order.

    Args:
        dataset: has a length; usually `ImageFiles`.
        batch_size: total batch size over all processes.
        workers: DataLoader workers per process; 0 loads in the main process.
        device: of the batches.
        worker_init: sets up a worker; a `WorkerSignalGuard`.

    Raises:
        UserError: there are fewer images than processes.
    """
    count = len(dataset)
    if count < world_size():
        raise UserError(
            f"{plural(count, 'image')} for {world_size()} processes; start at most one process per "
            "image"
        )
    return DataLoader(
        Subset(dataset, range(*shard(count).indices(count))),
        batch_size=-(-batch_size // world_size()),
        num_workers=workers,
        collate_fn=collate,
        worker_init_fn=worker_init,
        persistent_workers=workers > 0,
        pin_memory=device.type == "cuda",
    )


def device_batches(loader: Iterable, device: torch.device) -> Iterator[tuple]:
    """Yield the loader's batches on `device`: images (B, 3, S, S), float32, and labels (B,).

    The images of the loader are uint8. Those that are yielded are normalized, channels last. What
    else is in a batch is passed through.

    Raises:
        UserError: an image cannot be read, or a worker died.
    """
    normalize = Normalization(device)
    try:
        for images, labels, *others in loader:
            images = images.to(device, non_blocking=True, memory_format=torch.channels_last)
            yield normalize(images), labels.to(device, non_blocking=True), *others
    except UserError as error:
        # DataLoader puts the worker's traceback before the message. The traceback of this process
        # is dropped because it forms a reference cycle that would keep the workers alive.
        reason = str(error).rsplit("UserError: ", 1)[-1]
        raise UserError(reason) from error.with_traceback(None)
    except RuntimeError as error:
        if reason := worker_failure(error):
            raise UserError(reason) from error.with_traceback(None)
        raise
