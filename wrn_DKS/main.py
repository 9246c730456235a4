"""Train a wide residual network with deeply-supervised knowledge synergy, or use a trained one.

    python main.py --save ./logs/wrn-28-10 --depth 28 --width 10 --dataroot PATH

trains the paper's WRN-28-10 on CIFAR-100 for 200 epochs, for which the paper reports a top-1 error
of 17.24 ± 0.22 % over 5 runs (18.72 % without branches).
"""

import os
import sys
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from functools import partial
from pathlib import Path

os.environ.setdefault("OMP_WAIT_POLICY", "passive")  # before torch: idle threads must not spin

from common.command_line import exit_status, plural
from options import Config, export_exists, parse

if __name__ == "__main__" and {"-h", "--help"} & set(sys.argv[1:]):
    sys.exit(exit_status(parse))  # before the imports that take seconds

import torch

from common.batch_norm import warn_of_few_images
from common.distributed import barrier, describe_devices, distributed_context, print_once, rank
from common.gpu import describe_dtype
from common.leaving import run_script
from common.mixing import make_mixing
from common.progress import Progress
from common.run_folder import CHECKPOINT, lock_run_folder, new_run_folder, refuse_run_file
from common.seeds import derived_seed
from common.signals import Interrupted
from common.stopping import PreemptionGuard
from data import Dataset, load_dataset
from engine import EpochResult, Trainer, make_trainer
from epoch_log import LOG, EpochLog, print_costs
from evaluate import check_network, evaluate, export_finished_run, predict, report
from loader import AugmentedBatches, Batches, StoppableBatches
from resuming import load_run, options_to_resume, resume
from run_state import save_run


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
        loaded = load_run(config, folder)
        config = options_to_resume(loaded, config) if loaded else config
        data = load_dataset(config.dataset, config.dataroot, config.image_size, config.nthread)
        num_classes, branches = len(data.info.classes), config.method != "baseline"
        print_costs(config, num_classes, branches)
        trainer = make_trainer(config, num_classes, device, branches)
        finished = resume(loaded, trainer, data.info) if loaded else 0
        if loaded:
            print_once(f"resumed from {loaded.source}: {plural(finished, 'epoch')} done")
        if finished < config.epochs:
            if config.export and config.export.exists():
                raise export_exists(config.export)
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


def train_epochs(
    config: Config, trainer: Trainer, data: Dataset, folder: Path, first_epoch: int
) -> EpochResult:
    """Train and test from `first_epoch` (0-based) on; return the result of the last test.

    Raises:
        UserError: a loss or weight was not finite, or the run cannot be saved.
        Interrupted: a signal arrived; the run is saved up to the last finished epoch.
    """
    finished, log = first_epoch, None
    if rank() == 0 and finished < config.epochs:
        log = EpochLog(folder, config, finished, len(data.info.classes))
    with PreemptionGuard() as guard:
        batches = make_batches(config, data, trainer.device, guard)
        if finished >= config.epochs:
            return trainer.evaluate(batches["test"])
        save = partial(save_run, folder / CHECKPOINT, trainer, config, data.info)
        try:
            while finished < config.epochs:
                results = run_epoch(config, trainer, batches, finished)
                finished += 1
                guard.on_main_process(partial(save_epoch, save, log, trainer, finished, results))
                guard.check()
        except Interrupted:  # by the guard alone, between two steps
            print_once(how_to_continue(config, folder, finished))
            raise
    if log:
        log.close()
    return results["test"]


def make_batches(
    config: Config, data: Dataset, device: torch.device, guard: PreemptionGuard
) -> dict[str, StoppableBatches]:
    """Return the batches of training and test images."""
    common = data.info, config.batch_size, device
    mixing = make_mixing(config.mixup, config.cutmix, len(data.info.classes), config.seed)
    train = AugmentedBatches(
        data.train,
        *common,
        seed=config.seed,
        flip=data.flip,
        random_scheme=config.random_scheme,
        mixing=mixing,
    )
    test = Batches(data.test, *common)
    return {"train": StoppableBatches(train, guard), "test": StoppableBatches(test, guard)}


def run_epoch(
    config: Config, trainer: Trainer, batches: dict[str, StoppableBatches], epoch: int
) -> dict[str, EpochResult]:
    """Train for `epoch` (0-based), and test if it is due."""
    epochs_after = config.epochs - epoch - 1
    steps, name = len(batches["train"]), f"epoch {epoch + 1}/{config.epochs}"
    with Progress(name, steps, steps * epochs_after) as progress:
        seed = derived_seed(config.seed, epoch, rank(), scheme=config.random_scheme)
        results = {"train": trainer.train_epoch(batches["train"], epoch, progress, seed)}
    if (epoch + 1) % config.test_every == 0 or not epochs_after:
        results["test"] = trainer.evaluate(batches["test"])
    return results


def save_epoch(
    save: Callable[[int], None],
    log: EpochLog,
    trainer: Trainer,
    finished: int,
    results: dict[str, EpochResult],
) -> None:
    """Log and save an epoch."""
    # Log first: resuming removes an extra record, but could not restore a missing one.
    log.write(finished, trainer, results)
    save(finished)


def how_to_continue(config: Config, folder: Path, finished: int) -> str:
    """Return what to do after an interruption, and what of the run is lost."""
    is_saved = (folder / CHECKPOINT).exists()
    advice = f"with --save {folder} --resume auto" if is_saved else "again"
    lost = f" (epoch {finished + 1} starts again)" if finished < config.epochs else ""
    return f"to continue, run the same command {advice}{lost}"


if __name__ == "__main__":
    run_script(main)
