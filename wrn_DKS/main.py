"""Train a wide residual network with deeply-supervised knowledge synergy, or evaluate one.

    python main.py --save ./logs/wrn-28-10 --depth 28 --width 10 --dataroot PATH

is the paper's main run: WRN-28-10 on CIFAR-100, 200 epochs. The paper reports a top-1 error of
17.24 +- 0.22 % over 5 runs (18.72 without branches).
"""

import sys
from collections.abc import Sequence
from contextlib import nullcontext
from functools import partial
from pathlib import Path

import torch

import checkpoint
from command_line import DTYPES, Refused, Stopped, exit_status
from data import Dataset, load_dataset
from distributed import barrier, print_once, processes, rank
from engine import Result, Trainer
from epoch_log import LOG, EpochLog, classifier_names
from loader import AugmentedBatches, Batches
from metrics import cost
from options import Config, parse
from progress import Progress
from run_folder import CHECKPOINT, LOCK, held, refuse_own_file
from run_state import network_content, read, resume, save_run
from schedule import StepSchedule
from synergy import SynergyLoss
from wide_resnet import DROPOUT, WideResNet


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit status."""
    return exit_status(lambda: run(parse(argv)))


def run(config: Config) -> None:
    with processes(config.device) as device:
        torch.backends.cudnn.benchmark = True  # the shapes of an epoch stay the same
        if config.evaluate:
            evaluate(config, device)
        else:
            train(config, device)


def evaluate(config: Config, device: torch.device) -> None:
    """Print the error of every classifier in --resume, and of their averaged probabilities."""
    saved = read(Path(config.resume), config)
    data = load_dataset(
        config.dataset, config.dataroot, config.image_size, config.nthread, saved.facts
    )
    trainer = build(config, data, device, branches=saved.has_branches)
    checkpoint.load_weights(trainer.model, saved.weights, saved.source)
    test = Batches(data.test, data.facts, config.batch_size, device)
    print_errors(trainer.evaluate(test))
    export(config, trainer, data)


def train(config: Config, device: torch.device) -> None:
    """Train to the last epoch, from the start or from a checkpoint."""
    folder = run_folder(config)
    if config.export is not None:
        refuse_own_file("--export", config.export, folder, LOG)
    with held(folder) if rank() == 0 else nullcontext():
        barrier()  # the others go on once the folder is held
        path = checkpoint_to_resume(config, folder)
        saved = path and read(path, config)
        data = load_dataset(config.dataset, config.dataroot, config.image_size, config.nthread)
        trainer = build(config, data, device, branches=config.method != "baseline")
        first = resume(saved, trainer, config, data.facts) if saved else 0
        if saved:
            print_once(f"resumed from {path}: {first} epochs done")
        if first >= config.epochs:
            print_once(f"all of the {config.epochs} epochs are done")
        print_once(f"on {device}, {config.dtype}, into {folder}")
        try:
            test = train_epochs(config, trainer, data, folder, first)
        except Stopped:
            saved_one = (folder / CHECKPOINT).exists()
            more = f" with --save {folder} --resume auto" if saved_one else ""
            print_once(f"to go on: the same command{more}")
            raise
        print_errors(test)
        export(config, trainer, data)


def run_folder(config: Config) -> Path:
    """--save; else the folder of the file to resume; else a new one below ./logs."""
    if config.save is not None:
        return config.save
    if config.resume:
        return Path(config.resume).parent
    name = f"{config.network}-{config.method}-seed{config.seed}".lower()
    folder, number = Path("logs", name), 1
    while taken(folder):
        number += 1
        folder = Path("logs", f"{name}-{number}")
    return folder


def taken(folder: Path) -> bool:
    """Whether there is anything in the folder but the lock that a refused run leaves."""
    return folder.exists() and any(path.name != LOCK for path in folder.iterdir())


def checkpoint_to_resume(config: Config, folder: Path) -> Path | None:
    """The checkpoint to start from, or None; refuses to write over another run."""
    own = folder / CHECKPOINT
    if config.resume == "auto":
        return own if own.exists() else None
    resumed = Path(config.resume) if config.resume else None
    holds_run = own.exists() or (folder / LOG).exists()
    if holds_run and (resumed is None or resumed.resolve().parent != folder.resolve()):
        raise Refused(
            f"--save {folder} holds a run; go on with it by --resume auto, or choose another folder"
        )
    return resumed


def build(config: Config, data: Dataset, device: torch.device, branches: bool) -> Trainer:
    """The network that the options ask for, and what trains it; prints what it costs."""
    classes = len(data.facts.classes)
    network = partial(
        WideResNet, config.depth, config.width, classes, DROPOUT if config.dropout else 0.0
    )
    for with_branches in (False, True)[: 1 + branches]:
        parts = "with branches, to train" if with_branches else "alone, to use"
        print_once(
            f"{config.network} {parts}: "
            f"{cost(partial(network, branches=with_branches), config.image_size)}"
        )
    torch.manual_seed(config.seed)
    return Trainer(
        network(branches=branches),
        SynergyLoss(config.method, config.direction, config.aux_weight, config.synergy_weight),
        StepSchedule(config.lr, config.epoch_step, config.lr_decay_ratio),
        config.weight_decay,
        DTYPES[config.dtype],
        device,
    )


def train_epochs(
    config: Config, trainer: Trainer, data: Dataset, folder: Path, first: int
) -> Result:
    """Train and test from the epoch `first` (0-based) on; returns the last test's result."""
    device, size = trainer.device, config.batch_size
    batches = AugmentedBatches(
        data.train, data.facts, size, device, seed=config.seed, flip=data.flip
    )
    test_batches = Batches(data.test, data.facts, size, device)
    log = EpochLog(folder, config, first, len(data.facts.classes)) if rank() == 0 else None
    for epoch in range(first, config.epochs):
        progress = Progress(
            f"epoch {epoch + 1}/{config.epochs}",
            len(batches),
            len(batches) * (config.epochs - epoch - 1),
        )
        results = {"train": trainer.train_epoch(batches, epoch, progress, config.seed)}
        if (epoch + 1) % config.test_every == 0 or epoch + 1 == config.epochs:
            results["test"] = trainer.evaluate(test_batches)
        if log:
            # Before the checkpoint: on resuming, a line too many is cut; one too few is lost.
            log.write(epoch + 1, trainer, results)
            save_run(folder / CHECKPOINT, trainer, config, data.facts, epoch + 1)
    if log:
        log.close()
    return results["test"] if first < config.epochs else trainer.evaluate(test_batches)


def print_errors(result: Result) -> None:
    names = classifier_names(len(result.errors))
    for name, error in zip(names, result.errors, strict=True):
        print_once(f"test error of the {name}: {error:.2f} %")
    if len(names) > 1:
        print_once(f"test error of the averaged probabilities: {result.ensemble_error:.2f} %")


def export(config: Config, trainer: Trainer, data: Dataset) -> None:
    """Save the backbone alone, if asked to."""
    if config.export is not None and rank() == 0:
        content = network_content(trainer.model.backbone_state(), config, data.facts)
        checkpoint.save(config.export, content)
        print_once(f"exported the backbone to {config.export}")


if __name__ == "__main__":
    sys.exit(main())
