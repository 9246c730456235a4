"""Train a ResNet with deeply-supervised knowledge synergy on ImageNet, or any folder of images.

    python train.py -a resnet18 --save runs/r18 IMAGENET                        one GPU, or the CPU
    torchrun --nproc_per_node 8 train.py -a resnet18 --save runs/r18 IMAGENET   eight GPUs

IMAGENET holds train/<class>/ and val/<class>/. With `--resume auto` the same command starts a run
or goes on with it. The defaults are the paper's: 100 epochs of SGD with batches of 256, which it
reports to end at a top-1 error of 28.68 % for ResNet-18.
"""

import sys
from collections.abc import Sequence
from contextlib import nullcontext
from functools import partial

import torch

import train_state
import weights
from command_line import DTYPES, exit_status
from distributed import barrier, print_once, processes, rank
from ema import Average
from engine import Trainer, fastest_layout
from epoch_log import LOG
from epochs import run_epochs
from evaluate import refuse_too_large_batches
from image_sets import find_image_sets
from metrics import cost
from resnet import build
from run_folder import held, refuse_own_file
from sgd import make_sgd
from synergy import SynergyLoss
from train_data import Order
from train_options import Config, parse


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit status."""
    return exit_status(lambda: run(parse(argv)))


def run(config: Config) -> None:
    if config.export:
        refuse_own_file("--export", config.export, config.save, LOG)
    with (
        processes(config.device) as device,
        held(config.save) if rank() == 0 else nullcontext(),
        refuse_too_large_batches(),
    ):
        barrier()  # the others go on once the folder is held
        torch.backends.cudnn.benchmark = True  # the shapes of an epoch stay the same
        train(config, device)


def train(config: Config, device: torch.device) -> None:
    """Train to the last epoch, from the start or from a checkpoint."""
    source = train_state.checkpoint_to_resume(config)
    sets = find_image_sets(config.data, config.val_labels, config.image_size, config.augmentation)
    order = Order(len(sets.train), config.batch_size, config.seed)
    trainer = make_trainer(config, len(sets.class_names), device)
    print_once(
        f"{len(sets.train)} images of {len(sets.class_names)} classes to train on, "
        f"{len(sets.validation)} to validate; {order.steps} steps an epoch, on {device}"
    )
    if source:
        train_state.resume(source, trainer, config, sets, order.steps)
    train_state.check_all_resumed(trainer)
    if trainer.epoch >= config.epochs:
        print_once(f"all of the {config.epochs} epochs are done")
    run_epochs(config, trainer, sets, order)
    if config.export and rank() == 0:
        best = trainer.ema.model if trainer.ema else trainer.model
        weights.export_backbone(best, config.export)
        print(f"backbone: {config.export}")


def make_trainer(config: Config, classes: int, device: torch.device) -> Trainer:
    """The network that the options ask for, and what trains it; prints what it costs."""
    network = partial(build, config.arch, num_classes=classes)
    branches = config.method != "baseline"
    if rank() == 0:
        print(f"{config.arch} to use: {cost(partial(network, False), config.image_size)}")
        print(f"to train: {cost(partial(network, branches), config.image_size)}")
    torch.manual_seed(config.seed)
    model = network(branches).to(device, memory_format=fastest_layout(config.image_size, device))
    trainer = Trainer(
        model,
        SynergyLoss(
            config.method,
            config.direction,
            config.aux_weight,
            config.synergy_weight,
            config.label_smoothing,
        ),
        make_sgd(model, config.lr, config.momentum, config.weight_decay),
        Average(model, config.ema) if config.ema else None,
        DTYPES[config.dtype],
        config.grad_accumulation,
    )
    if config.compile:
        trainer.parallel.compile()
    return trainer


if __name__ == "__main__":
    sys.exit(main())
