"""Compare imagenet/ with the released configuration, side by side on this machine.

    python benchmarks/imagenet.py --row resnet18       a training step, which needs no images
    python benchmarks/imagenet.py --data IMAGENET      IMAGENET contains val/<class>/

The input pipelines are compared in one process, with torchvision's as the reference: PIL, ToTensor,
Normalize and a DataLoader. Ours ends with uint8 batches, because the device normalizes them.
"""

import sys
import tempfile
from collections import deque
from collections.abc import Iterator
from functools import partial
from pathlib import Path

sys.path.insert(1, str(Path(__file__).parents[1] / "imagenet"))  # after the folder of this file

import torch
from torch.utils.data import DataLoader
from torchvision import datasets, transforms

import timing
import train
from augmentation import RandomCrop, cached, resized_side
from batches import IMAGENET_MEAN, IMAGENET_STD, Augmented, make_loader
from common.command_line import run_script
from common.engine import Trainer
from common.evaluation import Batch
from data import ImageFiles, ImageSets, read_pixels
from flags import parse_training, with_recipe
from timing import Setup, compare, random_images, training_steps
from weights import choose_compute

IMAGES = 512  # of which 224-pixel squares take 100 MB, more than a CPU's cache


def make_run(words: str, device: torch.device, count: float) -> tuple[Trainer, Iterator[Batch]]:
    """Return what `train.py` trains with, and batches of random images, as in `cifar.py`."""
    config = with_recipe(parse_training(f"--data . -j 0 --epochs 99 --lr 0.01 {words}".split()))
    number, names = int(count * config.batch_size), [str(label) for label in range(1000)]
    crop = RandomCrop(config.image_size, number, config.seed)
    samples = [(image, i % 1000) for i, image in enumerate(random_images(number, crop.side))]
    sets = ImageSets(names, samples, samples, crop, "")
    compute = choose_compute(config.image_size, device, config.dtype)
    batches = train.make_training_batches(config, sets, compute)
    trainer = train.make_trainer(config, sets, batches.steps, compute, initialize=False)
    trainer.model.train()
    return trainer, batches.epoch(0)


def pipeline(setup: Setup) -> None:
    """Compare the input pipelines of training, without and from the cache."""
    torch.set_num_threads(1)
    order = {"batch_size": 128, "sampler": [(0, index) for index in range(IMAGES)]}
    for size in (224, 64):
        crop, side = RandomCrop(size, IMAGES, seed=1), resized_side(size)
        released = [
            transforms.Resize((side, side), transforms.InterpolationMode.BICUBIC),
            transforms.RandomCrop(size),
            transforms.RandomHorizontalFlip(),
            transforms.ToTensor(),
            transforms.Normalize(IMAGENET_MEAN, IMAGENET_STD),
        ]
        images = datasets.ImageFolder(setup.data / "val", transforms.Compose(released))
        images.samples = (images.samples * -(-IMAGES // len(images)))[:IMAGES]  # in turns
        reference = partial(deque, DataLoader(images, 128), 0)
        paths, labels = zip(*images.samples, strict=True)
        files = ImageFiles([*map(Path, paths)], labels, crop.fixed, read_pixels)
        with tempfile.TemporaryDirectory() as folder:
            cache = cached(files, Path(folder) / "train.npy", "", 0)
            for what, ours in (("files", files), ("the cache", cache)):
                loader = make_loader(Augmented(ours, crop), 0, setup.device, **order)
                sides = partial(deque, loader, 0), reference
                compare(f"training images from {what}, {size}×{size}", IMAGES, *sides, setup)


STEP = "-a resnet18 --image-size 64 -b 128"
ROWS = {
    "resnet18": partial(training_steps, make_run, "ResNet-18 DKS, 64×64", STEP),
    "pipeline": pipeline,
}

if __name__ == "__main__":
    run_script(partial(timing.main, ROWS))
