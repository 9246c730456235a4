"""Train a ResNet with deeply-supervised knowledge synergy on ImageNet or any folder of images.

    python train.py -a resnet18 --save runs/r18 IMAGENET                        one GPU, or the CPU
    torchrun --nproc_per_node 8 train.py -a resnet18 --save runs/r18 IMAGENET   eight GPUs

IMAGENET holds train/<class>/ and val/<class>/. With `--resume auto`, the same command starts
or resumes the run. The defaults are the paper's: 100 epochs of SGD with batches of 256, for which
it reports a top-1 error of 28.68 % with ResNet-18.
"""

import os
import sys

os.environ.setdefault("OMP_WAIT_POLICY", "passive")  # before torch: idle threads must not spin

from common.command_line import exit_status, plural
from train_options import Config, parse

if __name__ == "__main__" and {"-h", "--help"} & set(sys.argv[1:]):
    sys.exit(exit_status(parse))  # without the imports below, which take seconds

from collections.abc import Iterable, Sequence
from contextlib import nullcontext
from functools import partial

import torch

import train_state
from cache_building import cached_sets
from common.batch_norm import synchronize_batch_norms
from common.distributed import barrier, distributed_context, print_once, rank
from common.leaving import run_script
from common.metrics import cost
from common.run_folder import CHECKPOINT, lock_run_folder
from common.sgd import make_sgd
from common.signals import Interrupted
from common.stopping import PreemptionGuard
from data import ImageSets, find_image_sets
from engine import ModelEma, Trainer
from epoch_log import LOG, EpochLog, print_start, train_record, validation_record
from evaluate import catch_out_of_memory
from export_path import check_export, refuse_output_of_run
from exports import export_trained
from initial_weights import initialize_backbone
from layout import memory_format
from loader import TrainingLoader, make_loaders
from preemption import CheckpointHook
from progress import EpochProgress
from resnet import build
from sampler import ResumableBatchSampler
from schedule import Schedule
from synergy import SynergyLoss
from workers import WorkerSignalGuard


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line and return the exit status."""
    return exit_status(lambda: run(parse(argv)))


def run(config: Config) -> None:
    config = config.with_folder()
    if config.export:
        refuse_output_of_run(config.export, config.save, LOG)
    with distributed_context(config.device) as device, catch_out_of_memory():
        # Tries all algorithms for each new shape: that of full batches and of a partial last one.
        torch.backends.cudnn.benchmark = True
        # The images come first: a run that is refused because of them leaves no folder behind.
        sets = find_image_sets(
            config.data,
            config.val_labels,
            config.image_size,
            config.augmentation,
            config.skip_unreadable,
        )
        if config.cache:
            sets = cached_sets(config.cache, config.data, sets, config.workers)
        barrier()  # all processes have chosen the folder before it is created
        with lock_run_folder(config.save) if rank() == 0 else nullcontext():
            barrier()  # the other processes continue once the folder is locked
            train(config, sets, device)


def train(config: Config, sets: ImageSets, device: torch.device) -> None:
    """Train to the last epoch, from the start or from a checkpoint."""
    checkpoint, content = train_state.find(config)
    config = config.with_saved(content["options"] if content else None)
    mixes = bool(config.mixup or config.cutmix)
    sampler = ResumableBatchSampler(len(sets.train), config.batch_size, config.seed, mixes)
    schedule = config.schedule(sampler.steps)
    trainer = make_trainer(config, sets.class_names, device, resumed=content is not None)
    print_start(config, sets, schedule, device)
    if content:
        train_state.resume(content, checkpoint, trainer, config, sets, sampler.steps)
    if trainer.epoch >= config.epochs:
        print_once(f"the run of {plural(config.epochs, 'epoch')} is already finished")
    elif config.export:
        check_export(config.export, in_run=True)  # refuses before the rest of the training
    train_epochs(config, trainer, sets, sampler, schedule)
    if config.export and rank() == 0:
        export_trained(config, trainer, sets)


def make_trainer(config: Config, names: list[str], device: torch.device, resumed: bool) -> Trainer:
    """Build the model, loss and optimizer of the options; print the model's cost."""
    network = partial(build, config.arch, num_classes=len(names))
    branches = config.method != "baseline"
    for with_branches in (False, True)[: 1 + branches]:
        purpose = "training, with branches" if with_branches else "inference"
        size = cost(partial(network, with_branches), config.image_size)
        print_once(f"{config.arch} for {purpose}: {size}")
    torch.manual_seed(config.seed)
    dtype = getattr(torch, config.dtype)
    layout = memory_format(config.image_size, device, dtype)
    model = network(branches).to(device, memory_format=layout)
    if config.init and not resumed:
        initialize_backbone(model, config.arch, config.init, names)
    if config.sync_bn:
        model = synchronize_batch_norms(model, device)
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
        dtype,
        config.grad_accumulation,
    )
    if config.compile:
        trainer.compile()
    return trainer


def train_epochs(
    config: Config,
    trainer: Trainer,
    sets: ImageSets,
    sampler: ResumableBatchSampler,
    schedule: Schedule,
) -> None:
    """Train, validate, log and save each of the remaining epochs.

    Raises:
        UserError: a loss was not finite, an image cannot be read, or the run cannot be saved.
        Interrupted: a signal arrived; the run is saved.
    """
    save = partial(train_state.save, config.save / CHECKPOINT, trainer, config, sets)
    log = None
    if rank() == 0:
        log = EpochLog(config.save, trainer.epoch, trainer.step, sets.fingerprint())
    with WorkerSignalGuard() as workers, PreemptionGuard() as preemption:
        loaders = make_loaders(config, sets, sampler, trainer.device, workers)
        hook = CheckpointHook(preemption, trainer, save, config.checkpoint_minutes)
        try:
            while trainer.epoch < config.epochs:
                record = train_epoch(config, trainer, loaders, schedule, hook)
                preemption.on_main_process(partial(log_epoch, log, config, trainer, record))
                hook.save()
        except Interrupted:  # here by the hook alone, which has saved the run
            print_once(
                f"saved after step {trainer.step} of the run; to continue, run the same command "
                f"with --save {config.save} --resume auto"
            )
            raise
    if log:
        log.close()


def log_epoch(log: EpochLog, config: Config, trainer: Trainer, record: dict) -> None:
    log.write(config, trainer.epoch, trainer.step, record)


def train_epoch(
    config: Config,
    trainer: Trainer,
    loaders: tuple[TrainingLoader, Iterable],
    schedule: Schedule,
    hook: CheckpointHook,
) -> dict:
    """Train to the end of the current epoch and validate; return the record for the log."""
    loader, validation_loader = loaders
    steps = loader.sampler.steps
    progress = EpochProgress(
        f"epoch {trainer.epoch + 1}/{config.epochs}",
        trainer.step - trainer.epoch * steps,
        steps,
        (config.epochs - trainer.epoch - 1) * steps,
    )
    trainer.train_epoch(loader, schedule, hook, progress, config.log_interval)
    record = {"lr": schedule.rate(trainer.step - 1), "times": progress.times()}
    record["train"] = train_record(trainer.sums.totals(), len(loader.files))
    for name, scores in trainer.evaluate(validation_loader, hook).items():
        record[name] = validation_record(scores)
    trainer.finish_epoch()
    return record


if __name__ == "__main__":
    run_script(main)
