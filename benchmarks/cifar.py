"""Compare training steps of wrn_DKS/ with the released configuration, on this machine.

python benchmarks/cifar.py
python benchmarks/cifar.py --row wrn-16-2
"""

import sys
from collections.abc import Iterator
from functools import partial
from pathlib import Path

sys.path.insert(1, str(Path(__file__).parents[1] / "wrn_DKS"))  # after the folder of this file

import torch

import main
import timing
from common.command_line import run_script
from common.engine import Trainer
from common.evaluation import Batch
from data import CIFAR_MEAN, CIFAR_STD, Dataset, Split
from flags import parse, with_recipe
from timing import random_images, training_steps


def make_run(words: str, device: torch.device, count: float) -> tuple[Trainer, Iterator[Batch]]:
    """Return what `main.py` trains with, and batches of random images.

    `words` are options of `main.py`. A `count` of 1.5 batches means that the second is half empty.
    """
    config = with_recipe(parse(f"--dataset folder --epochs 99 --lr 0.01 {words}".split()))
    images = random_images(int(count * config.batch_size), config.image_size)
    split, names = Split(images, torch.arange(len(images)) % 100), [*map(str, range(100))]
    data = Dataset(split, split, names, CIFAR_MEAN, CIFAR_STD, flip=True, identity="")
    trainer, batches = main.make_trainer(config, data, device, initialize=False)
    trainer.model.train()
    return trainer, batches.epoch(0)


ROWS = {
    "wrn-28-10": partial(training_steps, make_run, "WRN-28-10 DKS", "--depth 28 --width 10 -b 32"),
    "wrn-16-2": partial(training_steps, make_run, "WRN-16-2 DKS", "--depth 16 --width 2"),
}

if __name__ == "__main__":
    run_script(partial(timing.main, ROWS))
