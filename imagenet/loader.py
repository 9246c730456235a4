"""Batches of images: the training loader and the evaluation loader."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Subset

from cached import CachedCrops, CachedFiles
from common.command_line import UserError, plural
from common.distributed import shard, world_size
from common.mixing import Mixing, make_mixing
from data import AugmentedDataset, ImageSets
from presets import Normalization
from read_ahead import ReadAhead
from sampler import ResumableBatchSampler
from skipping import SkippedImages
from train_options import Config
from workers import collate, worker_errors

READ_AHEAD = 2  # batches of the evaluation, as many as DataLoader's workers prefetch


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
        self._loader = training_batches(dataset, sampler, workers, prefetch, device, worker_init)

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


def training_batches(
    dataset: AugmentedDataset,
    sampler: ResumableBatchSampler,
    workers: int,
    prefetch: int,
    device: torch.device,
    worker_init: Callable[[int], None],
) -> Iterable[Sequence[Tensor]]:
    """Return the images (uint8, on the CPU) and labels of each batch; see `TrainingLoader`."""
    if isinstance(dataset.files, CachedFiles):
        crops = CachedCrops(dataset.files, dataset.random_part)
        return crops.batches(sampler, prefetch, pinned=device.type == "cuda")
    return DataLoader(
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


def evaluation_loader(
    dataset: Dataset,
    batch_size: int,
    workers: int,
    device: torch.device,
    worker_init: Callable[[int], None],
) -> DataLoader | ReadAhead:
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
    if isinstance(dataset, CachedFiles):
        own, size = range(count)[shard(count)], -(-batch_size // world_size())
        parts = [own[start : start + size] for start in range(0, len(own), size)]
        return dataset.batches(parts, READ_AHEAD, pinned=device.type == "cuda")
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
    with worker_errors():
        for images, labels, *others in loader:
            images = images.to(device, non_blocking=True, memory_format=torch.channels_last)
            yield normalize(images), labels.to(device, non_blocking=True), *others


def make_loaders(
    config: Config,
    sets: ImageSets,
    sampler: ResumableBatchSampler,
    device: torch.device,
    worker_init: Callable[[int], None],
) -> tuple[TrainingLoader, DataLoader | ReadAhead]:
    """Build the training and the validation loader of this process for `train.py`."""
    mixing = make_mixing(config.mixup, config.cutmix, len(sets.class_names), config.seed)
    dataset = AugmentedDataset(sets.train, config.seed)
    train_loader = TrainingLoader(
        dataset, sampler, config.workers, config.prefetch, device, worker_init, mixing
    )
    validation_loader = evaluation_loader(
        sets.validation, config.batch_size, config.workers, device, worker_init
    )
    return train_loader, validation_loader
