"""Train a ResNet with deeply-supervised knowledge synergy on ImageNet or any folder of images.

    python train.py -a resnet18 --save runs/r18 IMAGENET                        one GPU, or the CPU
    torchrun --nproc_per_node 8 train.py -a resnet18 --save runs/r18 IMAGENET   eight GPUs

IMAGENET holds train/<class>/ and val/<class>/. With `--resume auto`, the same command starts
or resumes the run. The defaults are the paper's: 100 epochs of SGD with batches of 256, for which
it reports a top-1 error of 28.68 % with ResNet-18.
"""

import sys
from collections.abc import Sequence
from contextlib import nullcontext
from functools import partial

import torch
from torch.utils.data import DataLoader

import train_state
import weights
from common.command_line import exit_status
from common.distributed import barrier, distributed_context, print_once, rank
from common.metrics import cost
from common.run_folder import CHECKPOINT, lock_run_folder, refuse_run_file
from common.sgd import make_sgd
from data import ImageSets, find_image_sets
from ema import ModelEma
from engine import Trainer, memory_format
from epoch_log import LOG, EpochLog, train_record, validation_record
from evaluate import catch_out_of_memory
from loader import ResumableBatchSampler, TrainingLoader, WorkerSignalGuard, evaluation_loader
from preemption import CheckpointHook, PreemptionGuard
from progress import EpochProgress
from resnet import build
from schedule import Schedule
from synergy import SynergyLoss
from train_options import Config, parse


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line and return the exit status."""
    return exit_status(lambda: run(parse(argv)))


def run(config: Config) -> None:
    if config.export:
        refuse_run_file("--export", config.export, config.save, LOG)
    with (
        distributed_context(config.device) as device,
        lock_run_folder(config.save) if rank() == 0 else nullcontext(),
        catch_out_of_memory(),
    ):
        barrier()  # the other processes continue once the folder is locked
        torch.backends.cudnn.benchmark = True  # image sizes do not change
        train(config, device)


def train(config: Config, device: torch.device) -> None:
    """Train to the last epoch, from the start or from a checkpoint."""
    checkpoint = train_state.checkpoint_to_resume(config)
    sets = find_image_sets(config.data, config.val_labels, config.image_size, config.augmentation)
    sampler = ResumableBatchSampler(len(sets.train), config.batch_size, config.seed)
    trainer = make_trainer(config, len(sets.class_names), device)
    print_once(
        f"{len(sets.train)} training images of {len(sets.class_names)} classes, "
        f"{len(sets.validation)} validation images; {sampler.steps} steps per epoch on {device}"
    )
    if checkpoint:
        train_state.resume(checkpoint, trainer, config, sets, sampler.steps)
    train_state.check_all_ranks_resumed(trainer)
    if trainer.epoch >= config.epochs:
        print_once(f"all {config.epochs} epochs are already done")
    train_epochs(config, trainer, sets, sampler)
    if config.export and rank() == 0:
        model = trainer.ema.model if trainer.ema else trainer.model
        weights.export_backbone(model, config.export)
        print(f"backbone: {config.export}")


def make_trainer(config: Config, num_classes: int, device: torch.device) -> Trainer:
    """Build the model, loss and optimizer of the options; print the model's cost."""
    network = partial(build, config.arch, num_classes=num_classes)
    branches = config.method != "baseline"
    if rank() == 0:
        print(f"{config.arch} for inference: {cost(partial(network, False), config.image_size)}")
        print(f"for training: {cost(partial(network, branches), config.image_size)}")
    torch.manual_seed(config.seed)
    model = network(branches).to(device, memory_format=memory_format(config.image_size, device))
    criterion = SynergyLoss(
        config.method,
        config.direction,
        config.aux_weight,
        config.synergy_weight,
        config.label_smoothing,
    )
    trainer = Trainer(
        model,
        criterion,
        make_sgd(model, config.lr, config.momentum, config.weight_decay),
        ModelEma(model, config.ema) if config.ema else None,
        getattr(torch, config.dtype),
        config.grad_accumulation,
    )
    if config.compile:
        trainer.parallel.compile()
    return trainer


def make_schedule(config: Config, steps_per_epoch: int) -> Schedule:
    """Build the learning-rate schedule of the options."""
    return Schedule(
        config.lr_schedule,
        config.lr,
        steps_per_epoch,
        config.epochs,
        config.warmup_epochs,
        config.milestones,
        config.lr_factor,
    )


def make_loaders(
    config: Config,
    sets: ImageSets,
    sampler: ResumableBatchSampler,
    device: torch.device,
    workers: WorkerSignalGuard,
) -> tuple[TrainingLoader, DataLoader]:
    """Build the training and the validation loader of this process."""
    train_loader = TrainingLoader(
        sets.train, sampler, config.seed, config.workers, config.prefetch, device, workers
    )
    validation_loader = evaluation_loader(
        sets.validation, config.batch_size, config.workers, device, workers
    )
    return train_loader, validation_loader


def train_epochs(
    config: Config, trainer: Trainer, sets: ImageSets, sampler: ResumableBatchSampler
) -> None:
    """Train, validate, log and save each of the remaining epochs.

    Raises:
        UserError: a loss was not finite, an image cannot be read, or the run cannot be saved.
        Interrupted: a signal arrived; the run is saved.
    """
    schedule = make_schedule(config, sampler.steps)
    save = partial(train_state.save, config.save / CHECKPOINT, trainer, config, sets)
    log = EpochLog(config.save, trainer.epoch, trainer.step) if rank() == 0 else None
    with WorkerSignalGuard() as workers, PreemptionGuard() as preemption:
        loader, validation_loader = make_loaders(config, sets, sampler, trainer.device, workers)
        hook = CheckpointHook(preemption, trainer, save, config.checkpoint_minutes)
        while trainer.epoch < config.epochs:
            progress = EpochProgress(
                f"epoch {trainer.epoch + 1}/{config.epochs}",
                trainer.step - trainer.epoch * sampler.steps,
                sampler.steps,
            )
            trainer.train_epoch(loader, schedule, hook, progress, config.log_interval)
            record = {"lr": schedule.rate(trainer.step - 1), "times": progress.times()}
            record["train"] = train_record(trainer.sums.totals(), len(sets.train))
            for name, scores in trainer.evaluate(validation_loader, hook).items():
                record[name] = validation_record(scores)
            trainer.finish_epoch()
            if log:
                log.write(config, trainer.epoch, trainer.step, record)
            hook.save()
    if log:
        log.close()


if __name__ == "__main__":
    sys.exit(main())
