"""Train a wide residual network with deeply-supervised knowledge synergy, or use a trained one.

    python main.py --save ./logs/wrn-28-10 --depth 28 --width 10 --dataroot PATH

trains the paper's WRN-28-10 on CIFAR-100 for 200 epochs, for which the paper reports a top-1 error
of 17.24 ± 0.22 % over 5 runs (18.72 % without branches).
"""

import os
import sys
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path

os.environ.setdefault("OMP_WAIT_POLICY", "passive")  # before torch: idle threads must not spin

from common.command_line import Interrupted, UserError, defer_signals, exit_status, plural
from options import Config, parse

if __name__ == "__main__" and {"-h", "--help"} & set(sys.argv[1:]):
    sys.exit(exit_status(parse))  # before the imports that take seconds

import torch

from common.batch_norm import warn_of_few_images
from common.distributed import barrier, describe_devices, distributed_context, print_once, rank
from common.gpu import describe_dtype
from common.mixing import make_mixing
from common.progress import Progress
from common.run_folder import CHECKPOINT, lock_run_folder, new_run_folder, refuse_run_file
from data import Dataset, load_dataset
from engine import EpochResult, Trainer, make_trainer
from epoch_log import LOG, EpochLog, print_costs
from evaluate import check_network, evaluate, export_finished_run, predict, report
from loader import AugmentedBatches, Batches
from run_state import load_checkpoint, options_to_resume, resume, save_run


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line and return the exit status."""
    return exit_status(lambda: run(parse(argv)))


def run(config: Config) -> None:
    with distributed_context(config.device) as device:
        # Tries all algorithms for each new shape: that of full batches and of a partial last one.
        torch.backends.cudnn.benchmark = True
        if config.predict:
            predict(config, device)
        elif config.evaluate:
            evaluate(config, device)
        elif not export_finished_run(config):
            train(config, device)


def train(config: Config, device: torch.device) -> None:
    """Train to the last epoch, from the start or from a checkpoint."""
    check_network(config)
    folder = run_folder(config)
    for flag, path in (("--export", config.export), ("--json", config.json)):
        if path is not None:
            refuse_run_file(flag, path, folder, LOG)
    with lock_run_folder(folder) if rank() == 0 else nullcontext():
        barrier()  # the other processes continue once the folder is locked
        path = checkpoint_to_resume(config, folder)
        loaded = load_checkpoint(path) if path else None
        config = options_to_resume(loaded, config) if loaded else config
        data = load_dataset(config.dataset, config.dataroot, config.image_size, config.nthread)
        num_classes, branches = len(data.info.classes), config.method != "baseline"
        print_costs(config, num_classes, branches)
        trainer = make_trainer(config, num_classes, device, branches)
        finished = resume(loaded, trainer, data.info) if loaded else 0
        if loaded:
            print_once(f"resumed from {path}: {plural(finished, 'epoch')} done")
        if finished < config.epochs:
            print_once(trainer.schedule.describe(config.epochs))
        else:
            print_once(f"the run of {plural(finished, 'epoch')} is already finished")
        computation = f"{describe_devices(device)}, {describe_dtype(config.dtype, device)}"
        print_once(f"{computation}, output folder {folder}")
        warn_of_few_images(config.batch_size, 1, config.sync_bn)
        test = train_epochs(config, trainer, data, folder, finished)
        report(config, trainer, data.info, test, folder / CHECKPOINT)


def run_folder(config: Config) -> Path:
    """Return --save, otherwise the folder of --resume FILE, otherwise a new folder in ./logs."""
    if config.save is not None:
        return config.save
    if config.checkpoint is not None:
        return config.checkpoint.parent
    return new_run_folder(f"{config.network}-{config.method}-seed{config.seed}".lower())


def checkpoint_to_resume(config: Config, folder: Path) -> Path | None:
    """Return the checkpoint to resume from, or None.

    Raises:
        UserError: the run would overwrite another one.
    """
    saved, given = folder / CHECKPOINT, config.checkpoint
    if config.resume == "auto":
        return saved if saved.exists() else None
    has_run = saved.exists() or (folder / LOG).exists()
    if has_run and (given is None or given.resolve().parent != folder.resolve()):
        raise UserError(
            f"--save {folder}: already contains a run; resume it with --resume auto, or choose "
            "another folder"
        )
    return given


def train_epochs(
    config: Config, trainer: Trainer, data: Dataset, folder: Path, first_epoch: int
) -> EpochResult:
    """Train and test from `first_epoch` (0-based) on; return the result of the last test."""
    device, size = trainer.device, config.batch_size
    mixing = make_mixing(config.mixup, config.cutmix, len(data.info.classes), config.seed)
    batches = AugmentedBatches(
        data.train, data.info, size, device, seed=config.seed, flip=data.flip, mixing=mixing
    )
    test_batches = Batches(data.test, data.info, size, device)
    if first_epoch >= config.epochs:
        return trainer.evaluate(test_batches)
    log = EpochLog(folder, config, first_epoch, len(data.info.classes)) if rank() == 0 else None
    finished = first_epoch
    try:
        while finished < config.epochs:
            results = run_epoch(config, trainer, batches, test_batches, finished)
            with defer_signals():
                finished += 1
                if log:
                    # Log first: resuming removes an extra record, but could not restore a missing
                    # one.
                    log.write(finished, trainer, results)
                    save_run(folder / CHECKPOINT, trainer, config, data.info, finished)
    except Interrupted:
        print_once(how_to_continue(config, folder, finished))
        raise
    if log:
        log.close()
    return results["test"]


def run_epoch(
    config: Config, trainer: Trainer, batches: Batches, test_batches: Batches, epoch: int
) -> dict[str, EpochResult]:
    """Train for `epoch` (0-based), and test if it is due."""
    epochs_after = config.epochs - epoch - 1
    steps, name = len(batches), f"epoch {epoch + 1}/{config.epochs}"
    with Progress(name, steps, steps * epochs_after) as progress:
        results = {"train": trainer.train_epoch(batches, epoch, progress, config.seed)}
    if (epoch + 1) % config.test_every == 0 or not epochs_after:
        results["test"] = trainer.evaluate(test_batches)
    return results


def how_to_continue(config: Config, folder: Path, finished: int) -> str:
    """Return what to do after an interruption, and what of the run is lost."""
    is_saved = (folder / CHECKPOINT).exists()
    advice = f"with --save {folder} --resume auto" if is_saved else "again"
    lost = f" (epoch {finished + 1} starts again)" if finished < config.epochs else ""
    return f"to continue, run the same command {advice}{lost}"


if __name__ == "__main__":
    sys.exit(main())
