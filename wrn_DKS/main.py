"""Train a wide residual network with deeply-supervised knowledge synergy, or evaluate one.

    python main.py --save ./logs/wrn-28-10 --depth 28 --width 10 --dataroot PATH

trains the paper's WRN-28-10 on CIFAR-100 for 200 epochs, for which the paper reports a top-1 error
of 17.24 ± 0.22 % over 5 runs (18.72 % without branches).
"""

import sys
from collections.abc import Sequence
from contextlib import nullcontext
from functools import partial
from pathlib import Path

import torch

from common import checkpoint
from common.command_line import Interrupted, UserError, exit_status
from common.distributed import barrier, distributed_context, print_once, rank
from common.metrics import cost
from common.run_folder import CHECKPOINT, LOCK, lock_run_folder, refuse_run_file
from data import Dataset, load_dataset
from engine import EpochResult, Trainer
from epoch_log import LOG, EpochLog, classifier_names
from loader import AugmentedBatches, Batches
from options import Config, parse
from progress import Progress
from run_state import load_checkpoint, model_content, resume, save_run
from schedule import StepSchedule
from synergy import SynergyLoss
from wide_resnet import DROPOUT, WideResNet


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line and return the exit status."""
    return exit_status(lambda: run(parse(argv)))


def run(config: Config) -> None:
    with distributed_context(config.device) as device:
        torch.backends.cudnn.benchmark = True  # image sizes do not change
        if config.evaluate:
            evaluate(config, device)
        else:
            train(config, device)


def train(config: Config, device: torch.device) -> None:
    """Train to the last epoch, from the start or from a checkpoint."""
    folder = run_folder(config)
    if config.export is not None:
        refuse_run_file("--export", config.export, folder, LOG)
    with lock_run_folder(folder) if rank() == 0 else nullcontext():
        barrier()  # the other processes continue once the folder is locked
        path = checkpoint_to_resume(config, folder)
        loaded = path and load_checkpoint(path, config)
        data = load_dataset(config.dataset, config.dataroot, config.image_size, config.nthread)
        trainer = make_trainer(config, len(data.info.classes), device, config.method != "baseline")
        finished = resume(loaded, trainer, config, data.info) if loaded else 0
        if loaded:
            print_once(f"resumed from {path} after epoch {finished}")
        if finished >= config.epochs:
            print_once(f"all {config.epochs} epochs are done")
        print_once(f"device {device}, dtype {config.dtype}, output folder {folder}")
        try:
            test = train_epochs(config, trainer, data, folder, finished)
        except Interrupted:
            is_saved = (folder / CHECKPOINT).exists()
            advice = f" with --save {folder} --resume auto" if is_saved else " again"
            print_once(f"to continue, run the same command{advice}")
            raise
        print_errors(test)
        export(config, trainer, data)


def evaluate(config: Config, device: torch.device) -> None:
    """Print the error of every classifier in --resume, and of their ensemble."""
    loaded = load_checkpoint(Path(config.resume), config)
    data = load_dataset(
        config.dataset, config.dataroot, config.image_size, config.nthread, loaded.info
    )
    trainer = make_trainer(config, len(data.info.classes), device, loaded.has_branches)
    checkpoint.load_weights(trainer.model, loaded.weights, loaded.source)
    test = Batches(data.test, data.info, config.batch_size, device)
    print_errors(trainer.evaluate(test))
    export(config, trainer, data)


def run_folder(config: Config) -> Path:
    """Return --save, otherwise the folder of --resume FILE, otherwise a new folder in ./logs."""
    if config.save is not None:
        return config.save
    if config.resume:
        return Path(config.resume).parent
    name = f"{config.network}-{config.method}-seed{config.seed}".lower()
    folder, number = Path("logs", name), 1
    while is_taken(folder):
        number += 1
        folder = Path("logs", f"{name}-{number}")
    return folder


def is_taken(folder: Path) -> bool:
    """Return whether the folder contains more than the lock that a failed run leaves."""
    return folder.exists() and any(path.name != LOCK for path in folder.iterdir())


def checkpoint_to_resume(config: Config, folder: Path) -> Path | None:
    """Return the checkpoint to resume from, or None.

    Raises:
        UserError: the run would overwrite another one.
    """
    saved = folder / CHECKPOINT
    if config.resume == "auto":
        return saved if saved.exists() else None
    given = Path(config.resume) if config.resume else None
    has_run = saved.exists() or (folder / LOG).exists()
    if has_run and (given is None or given.resolve().parent != folder.resolve()):
        raise UserError(
            f"--save {folder} already contains a run; resume it with --resume auto, or choose "
            "another folder"
        )
    return given


def make_trainer(config: Config, num_classes: int, device: torch.device, branches: bool) -> Trainer:
    """Build the trainer for these options and print the cost of its model."""
    dropout = DROPOUT if config.dropout else 0.0
    network = partial(WideResNet, config.depth, config.width, num_classes, dropout)
    for with_branches in (False, True)[: 1 + branches]:
        purpose = "training, with branches" if with_branches else "inference"
        size = cost(partial(network, branches=with_branches), config.image_size)
        print_once(f"{config.network} for {purpose}: {size}")
    torch.manual_seed(config.seed)
    return Trainer(
        network(branches=branches),
        SynergyLoss(config.method, config.direction, config.aux_weight, config.synergy_weight),
        StepSchedule(config.lr, config.epoch_step, config.lr_decay_ratio),
        config.weight_decay,
        getattr(torch, config.dtype),
        device,
    )


def train_epochs(
    config: Config, trainer: Trainer, data: Dataset, folder: Path, first_epoch: int
) -> EpochResult:
    """Train and test from `first_epoch` (0-based) on; return the result of the last test."""
    device, size = trainer.device, config.batch_size
    batches = AugmentedBatches(
        data.train, data.info, size, device, seed=config.seed, flip=data.flip
    )
    test_batches = Batches(data.test, data.info, size, device)
    log = EpochLog(folder, config, first_epoch, len(data.info.classes)) if rank() == 0 else None
    for epoch in range(first_epoch, config.epochs):
        progress = Progress(
            f"epoch {epoch + 1}/{config.epochs}",
            len(batches),
            len(batches) * (config.epochs - epoch - 1),
        )
        results = {"train": trainer.train_epoch(batches, epoch, progress, config.seed)}
        if (epoch + 1) % config.test_every == 0 or epoch + 1 == config.epochs:
            results["test"] = trainer.evaluate(test_batches)
        if log:
            # Log first: resuming removes an extra record, but could not restore a missing one.
            log.write(epoch + 1, trainer, results)
            save_run(folder / CHECKPOINT, trainer, config, data.info, epoch + 1)
    if log:
        log.close()
    return results["test"] if first_epoch < config.epochs else trainer.evaluate(test_batches)


def print_errors(result: EpochResult) -> None:
    names = classifier_names(len(result.errors))
    for name, error in zip(names, result.errors, strict=True):
        print_once(f"test error of the {name}: {error:.2f} %")
    if len(names) > 1:
        print_once(f"test error of the ensemble: {result.ensemble_error:.2f} %")


def export(config: Config, trainer: Trainer, data: Dataset) -> None:
    """Save the backbone without branches, if --export is given."""
    if config.export is not None and rank() == 0:
        content = model_content(trainer.model.backbone_state_dict(), config, data.info)
        checkpoint.save(config.export, content)
        print_once(f"exported the backbone to {config.export}")


if __name__ == "__main__":
    sys.exit(main())
