"""Train a ResNet with deeply-supervised knowledge synergy on ImageNet or any folder of images.

    python train.py -a resnet18 --save runs/r18 IMAGENET                        one GPU, or the CPU
    torchrun --nproc_per_node 8 train.py -a resnet18 --save runs/r18 IMAGENET   eight GPUs

IMAGENET holds train/<class>/ and val/<class>/. With `--resume auto`, the same command starts
or resumes the run. The defaults are the paper's: 100 epochs of SGD with batches of 256, for which
it reports a top-1 error of 28.68 % with ResNet-18.
"""

import os
from collections.abc import Sequence
from pathlib import Path

os.environ.setdefault("OMP_WAIT_POLICY", "passive")  # before torch: idle threads spin only
os.environ.setdefault("GOMP_SPINCOUNT", "10000")  # as long as pays even beside other programs

import torch
from torch import nn

from augmentation import cached
from batches import TestBatches, TrainingBatches, worker_errors
from common import checkpoint
from common.command_line import UserError, exit_status, plural, run_script
from common.distributed import Compute, print_once, process_group, rank
from common.engine import Trainer, print_costs
from common.evaluation import print_scores
from common.options import warn_of_few_images
from common.run import fit
from common.run_folder import CHECKPOINT, open_run
from common.schedule import Mixing, make_schedule
from data import ImageSets, find_image_sets, imagenet_synsets
from export import export
from flags import Config, parse_training, with_recipe
from resnet import NETWORKS, build
from synergy import SynergyLoss
from weights import PROGRAM, choose_compute, read_weights, torchvision_weights


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line and return the exit status."""
    return exit_status(lambda: run(parse_training(argv)))


def run(config: Config) -> None:
    with process_group(config.device) as device:
        # Tries all algorithms for each new shape: that of full batches and of a partial last one.
        torch.backends.cudnn.benchmark = True
        train(config, device)


def train(config: Config, device: torch.device) -> None:
    """Train to the last epoch, from the start or from a checkpoint."""
    name = f"{config.arch}-{config.method}-seed{config.seed}"
    with open_run(config, name, with_recipe) as run:
        config = run.config
        if run.is_finished:
            print_once(f"the run of {plural(config.epochs, 'epoch')} is already finished")
        else:
            if config.export and config.export.exists():
                raise UserError(f"--export {config.export}: exists already; choose another name")
            sets = load_sets(config)
            compute = choose_compute(config.image_size, device, config.dtype)
            batches = make_training_batches(config, sets, compute)
            trainer = make_trainer(config, sets, batches.steps, compute, initialize=not run.saved)
            print_once(f"{trainer.schedule}\n{compute}, output folder {run.folder}")
            warn_of_few_images(config)
            tests = TestBatches(sets.test, config.batch_size, config.workers, compute)
            network = describe_network(config, sets)
            print_scores(fit(run, trainer, batches, tests, network, sets.describe()))
        if config.export and rank() == 0:
            weights = read_weights(run.folder / CHECKPOINT)
            export(weights, config.arch, config.image_size, config.export)


def load_sets(config: Config) -> ImageSets:
    """List the images and, with --cache, decode them unless the cache has them."""
    sets = find_image_sets(
        config.data, config.val_labels, config.image_size, config.augmentation, config.seed
    )
    if not config.cache:
        return sets
    identity = f"{sets.identity} {config.image_size} 1"
    folder, workers = config.cache, config.workers
    with worker_errors():
        train = cached(sets.train, folder / "train.npy", identity, workers)
        test = cached(sets.test, folder / "test.npy", identity, workers)
    print_once(f"the images are read from --cache {folder}")
    return sets._replace(train=train, test=test)


def make_training_batches(config: Config, sets: ImageSets, compute: Compute) -> TrainingBatches:
    mixing = Mixing(config.mixup, config.cutmix, len(sets.classes), config.seed)
    return TrainingBatches(sets, config.batch_size, config.seed, mixing, config.workers, compute)


def make_trainer(
    config: Config, sets: ImageSets, steps: int, compute: Compute, initialize: bool
) -> Trainer:
    """Build the network, the loss and the schedule; print what the network costs."""
    num_classes, branches = len(sets.classes), config.method != "baseline"
    print_costs(
        config.arch,
        lambda with_branches: build(config.arch, with_branches, num_classes),
        branches,
        config.image_size,
    )
    torch.manual_seed(config.seed)
    network = build(config.arch, branches, num_classes)
    if config.init and initialize:
        initialize_backbone(network, config.arch, config.init, sets.classes)
    criterion = SynergyLoss(**config.loss_options())
    return Trainer(network, criterion, make_schedule(config, steps), config, compute)


def initialize_backbone(model: nn.Module, arch: str, source: str, classes: Sequence[str]) -> None:
    """Load weights into the backbone, strictly except for a classifier of other classes.

    Args:
        model: a network with random weights; changed in place. Its branches stay random.
        arch: a key of `resnet.NETWORKS`.
        source: a checkpoint, an export, the folder of either, or the name of torchvision's weights.
        classes: of the model, in the order of its outputs.

    Raises:
        UserError: there are no such weights, or they belong to another network.
    """
    if Path(source).exists():
        weights = read_weights(Path(source))
    else:
        weights = torchvision_weights(arch, source, "--init")
    named = weights.metadata.get("arch", arch)
    if named != arch:
        raise UserError(f"--init {source}: weights of {named}, not {arch}; use -a {named}")
    own, known = model.state_dict(), weights.metadata.get("classes")
    if known is None and weights.num_classes == 1000:
        known = imagenet_synsets()
    same = weights.num_classes == len(classes) and known in (None, list(classes))
    random = [name for name in own if name.startswith("branches.")]
    random += [] if same else ("fc.weight", "fc.bias")
    state = weights.backbone | {name: own[name] for name in random}
    checkpoint.load_weights(model, state, Path(weights.source))
    loaded = "the averaged weights of the backbone" if weights.averaged else "the backbone"
    print_once(
        f"--init {source}: loaded {loaded}; random: the branches"
        f"{'' if same else ', and the classifier, which is of other classes'}"
    )


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
    run_script(lambda: run(parse_training()))
