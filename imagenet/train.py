"""Train a ResNet with deeply-supervised knowledge synergy on ImageNet or any folder of images.

    python train.py -a resnet18 --save runs/r18 IMAGENET                        one GPU, or the CPU
    torchrun --nproc_per_node 8 train.py -a resnet18 --save runs/r18 IMAGENET   eight GPUs

IMAGENET holds train/<class>/ and val/<class>/. With `--resume auto`, the same command starts
or resumes the run. The defaults are the paper's: 100 epochs of SGD with batches of 256, for which
it reports a top-1 error of 28.68 % with ResNet-18.
"""

import os
from collections.abc import Sequence
from functools import partial
from pathlib import Path

os.environ.setdefault("OMP_WAIT_POLICY", "passive")  # before torch: idle threads spin only
os.environ.setdefault("GOMP_SPINCOUNT", "10000")  # as long as pays even beside other programs

import torch

from augmentation import cached
from batches import TestBatches, TrainingBatches, worker_errors
from common import checkpoint
from common.command_line import run_script
from common.distributed import Compute, print_once, process_group
from common.engine import Trainer, print_costs
from common.run import fit
from common.run_folder import describe_data, open_run
from common.schedule import Mixing, Schedule
from data import ImageSets, find_image_sets
from flags import Config, parse_training, with_recipe
from resnet import NETWORKS, DKSResNet, build
from synergy import SynergyLoss
from weights import PROGRAM, choose_compute, read_weights, torchvision_weights


def main(argv: Sequence[str] | None = None) -> None:
    """Train to the last epoch, from the start or from a checkpoint."""
    config = parse_training(argv)
    with process_group(config.device) as device, open_run(config, with_recipe, PROGRAM) as run:
        config = run.config
        if not run.is_finished:
            sets = load_sets(config)
            compute = choose_compute(config.image_size, device, config.dtype)
            batches = make_training_batches(config, sets, compute)
            trainer = make_trainer(config, sets, batches.steps, compute, initialize=not run.saved)
            tests = TestBatches(sets.test, config.batch_size, config.workers, compute)
            about = describe_data(sets.classes, sets.train, sets.test, sets.identity)
            fit(run, trainer, batches, tests, describe_network(config, sets), about)


def load_sets(config: Config) -> ImageSets:
    """List the images and, with --cache, decode them unless the cache has them."""
    sets = find_image_sets(config)
    if not config.cache:
        return sets
    identity = f"{sets.identity} {config.image_size} 1"
    with worker_errors():
        train, test = (
            cached(images, config.cache / name, identity, config.workers)
            for images, name in ((sets.train, "train.npy"), (sets.test, "test.npy"))
        )
    print_once(f"the images are read from --cache {config.cache}")
    return sets._replace(train=train, test=test)


def make_training_batches(config: Config, sets: ImageSets, compute: Compute) -> TrainingBatches:
    mixing = Mixing(config.mixup, config.cutmix, len(sets.classes), config.seed)
    return TrainingBatches(config, sets, mixing, compute)


def make_trainer(
    config: Config, sets: ImageSets, steps: int, compute: Compute, initialize: bool
) -> Trainer:
    """Build the network, the loss and the schedule; print what the network costs."""
    num_classes, branches = len(sets.classes), config.method != "baseline"
    costs_of = partial(build, config.arch, num_classes=num_classes)
    print_costs(config.arch, costs_of, branches, config.image_size)
    torch.manual_seed(config.seed)
    network = build(config.arch, branches, num_classes)
    if config.init and initialize:
        initialize_backbone(network, config.arch, config.init, sets.classes)
    criterion = SynergyLoss(**config.loss_options())
    return Trainer(network, criterion, Schedule(config, steps), config, compute)


def initialize_backbone(model: DKSResNet, arch: str, source: str, classes: Sequence[str]) -> None:
    """Load the backbone's weights; a classifier of other classes and the branches stay random.

    `source` is what `read_weights` reads, or the name of torchvision's weights for `arch`.
    """
    path = Path(source).expanduser()
    weights = read_weights(path) if path.exists() else torchvision_weights(arch, source)
    weights.check_arch(arch)
    same = weights.num_classes == len(classes) and weights.classes in (None, list(classes))
    random = ("branches.",) if same else ("branches.", "fc.")
    checkpoint.load_backbone(model, weights.backbone, random, source)


def describe_network(config: Config, sets: ImageSets) -> dict:
    """Return the metadata of the network, for checkpoints and exports."""
    return {
        "program": PROGRAM,
        "name": config.arch,
        "arch": config.arch,
        "image_size": config.image_size,
        "dtype": config.dtype,  # in training
        "branches": "" if config.method == "baseline" else str(NETWORKS[config.arch].branches),
        "classes": sets.classes,
    }


if __name__ == "__main__":
    run_script(main)
