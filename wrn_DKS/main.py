"""Train a network for small images with deeply-supervised knowledge synergy, or use a trained one.

    python main.py --save ./logs/wrn-28-10 --depth 28 --width 10 --dataroot PATH

trains the paper's WRN-28-10 on CIFAR-100 for 200 epochs, for which the paper reports a top-1 error
of 17.24 ± 0.22 % over 5 runs (18.72 % without branches).
"""

import os
from collections.abc import Sequence
from functools import partial
from pathlib import Path

os.environ.setdefault("OMP_WAIT_POLICY", "passive")  # before torch: idle threads spin only
os.environ.setdefault("GOMP_SPINCOUNT", "10000")  # as long as pays even beside other programs

import torch

from common import checkpoint
from common.command_line import Incomplete, UserError, run_script
from common.distributed import print_once, process_group, rank
from common.engine import Trainer, print_costs
from common.evaluation import evaluate, predict, report_scores
from common.images import find_readable, read_squares
from common.logs import print_predictions
from common.options import from_checkpoint
from common.run import fit
from common.run_folder import CHECKPOINT, describe_data, open_run
from common.schedule import Mixing, Schedule
from data import AugmentedBatches, Batches, Dataset, Split, load_dataset
from flags import Config, parse, with_recipe
from synergy import SynergyLoss
from weights import PROGRAM, Weights, build_network, choose_compute, describe_network, load


def main(argv: Sequence[str] | None = None) -> None:
    """Run the command line."""
    config = parse(argv)
    with process_group(config.device) as device:
        task = classify if config.predict else test if config.evaluate else train
        task(config, device)


def train(config: Config, device: torch.device) -> None:
    """Train to the last epoch, from the start or from a checkpoint."""
    with open_run(config, with_recipe, PROGRAM) as run:
        config = run.config
        if not run.is_finished:
            data = load_dataset(config.dataset, config.dataroot, config.image_size, config.workers)
            trainer, batches = make_trainer(config, data, device, initialize=not run.saved)
            tests = Batches(data.test, data, config.batch_size, device)
            about = describe_data(data.classes, data.train.labels, data.test.labels, data.identity)
            fit(run, trainer, batches, tests, describe_network(config, data), about)
        if config.export and rank() == 0:
            export(config.export, load(run.source if run.is_finished else run.folder / CHECKPOINT))


def make_trainer(
    config: Config, data: Dataset, device: torch.device, initialize: bool
) -> tuple[Trainer, AugmentedBatches]:
    """Build the network, the loss and the training batches; print what the network costs."""
    num_classes, branches = len(data.classes), config.method != "baseline"
    build = partial(build_network, config, num_classes)
    print_costs(config.network_name, build, branches, config.image_size)
    torch.manual_seed(config.seed)
    network = build(branches)
    if config.init and initialize:
        load(Path(config.init).expanduser()).initialize_backbone(network, data.classes)
    mixing = Mixing(config.mixup, config.cutmix, num_classes, config.seed)
    batches = AugmentedBatches(data, config.batch_size, device, config.seed, mixing)
    criterion = SynergyLoss(**config.loss_options())
    schedule = Schedule(
        config,
        batches.steps,
        clears_momentum=config.arch == "wrn",
        # He et al. (2016) train ResNet-110 with 0.01 at first.
        first_epoch_factor=0.1 if config.arch == "resnet" and config.depth >= 110 else 1.0,
    )
    compute = choose_compute(config, network, device)
    return Trainer(network, criterion, schedule, config, compute), batches


def export(path: Path, weights: Weights) -> None:
    """Write the backbone's weights and the metadata of the network to a new file."""
    checkpoint.save_weights(path, weights.backbone, weights.metadata)
    print(f"exported the backbone{' (averaged weights)' * weights.averaged} to {path}")


def load_trained(config: Config) -> tuple[Config, Weights]:
    """Load --resume; return the options with those of the network and its data filled in."""
    weights = load(config.checkpoint)
    other = ("dtype", "batch_size", "dataset")  # than in training
    config = with_recipe(from_checkpoint(config, weights.options, weights.source, other))
    averaged = ", averaged weights" * weights.averaged
    print_once(f"{weights.source}: {config.network_name}{averaged}{weights.progress}")
    return config, weights


def test(config: Config, device: torch.device) -> None:
    """Print the errors of the network in --resume."""
    config, weights = load_trained(config)
    trained = weights.metadata if "classes" in weights.metadata else None
    data = load_dataset(config.dataset, config.dataroot, config.image_size, config.workers, trained)
    branches = len(weights.backbone) < len(weights.state)
    network = build_network(config, len(data.classes), branches)
    checkpoint.load_weights(network, weights.state, weights.source)
    compute = choose_compute(config, network, device)
    print_once(str(compute))
    batches = Batches(data.test, data, config.batch_size, device)
    scores = evaluate({"test": compute.place(network)}, batches, compute, confusion=True)["test"]
    report_scores(scores, data.classes, config, weights.source)
    if config.export and rank() == 0:
        export(config.export, weights)


def classify(config: Config, device: torch.device) -> None:
    """Print the most likely classes of each image in --predict, by the backbone in --resume."""
    config, weights = load_trained(config)
    known = weights.metadata
    if "classes" not in known:
        raise UserError(f"{weights.source}: has no class names; --predict takes a run or an export")
    network = build_network(config, len(known["classes"]), branches=False)
    checkpoint.load_weights(network, weights.backbone, weights.source)
    compute = choose_compute(config, network, device)
    paths, errors = find_readable(config.predict)
    images = read_squares(paths, config.image_size, config.workers)
    split = Split(images, torch.zeros(len(images), dtype=torch.int64))  # unlabeled
    data = Dataset(None, split, known["classes"], known["mean"], known["std"], False, "")
    batches = Batches(split, data, config.batch_size, device)
    probabilities = predict(compute.place(network), batches, compute)
    print_predictions(paths, probabilities, known["classes"], config.json)
    if errors:
        raise Incomplete("; ".join(errors))


if __name__ == "__main__":
    run_script(main)
