"""What the checkpoint of a training run holds, and how a run goes on from one.

Keys of `checkpoint.pt`, `KEYS` below:
    format, arch, class_names: of the file and the network; names in the order of the outputs.
    model, ema: state dicts; the average's is empty where there is none.
    optimizer, scaler: theirs; the scaler's is empty but in float16.
    step, epoch: finished ones; within an epoch, `step` tells where in it.
    sums: of the training images of the epoch in progress, over all processes.
    images: how many there are to train on.
    processes: of the run that saved it.
    options: those of the command line.

The learning rate is a function of the step. Random states are not among them: order and
augmentation are functions of (seed, epoch, image), and nothing else draws random numbers once
the network is initialised.
"""

from pathlib import Path

import torch

from common import checkpoint
from common.command_line import UserError
from common.distributed import print_once, rank, sum_over_processes, world_size
from common.run_folder import CHECKPOINT
from data import ImageSets
from engine import Trainer
from epoch_log import LOG
from synergy import Losses
from train_options import Config

FORMAT = 1
KEYS = {
    "format": int,
    "arch": str,
    "class_names": list,
    "model": dict,
    "ema": dict,
    "optimizer": dict,
    "scaler": dict,
    "step": int,
    "epoch": int,
    "sums": dict,
    "images": int,
    "processes": int,
    "options": dict,
}


def save(path: Path, trainer: Trainer, config: Config, sets: ImageSets) -> None:
    """Save all of a run. Every process must call it together; process 0 writes.

    Raises:
        UserError: the weights are not finite, or the file can't be written.
    """
    sums = trainer.sums.totals()
    if rank() != 0:
        return
    for name, value in trainer.model.state_dict().items():
        if not value.isfinite().all():
            raise UserError(
                f"{name} is not finite after step {trainer.step}; the last checkpoint is from "
                "before it; try a lower --lr"
            )
    content = {
        "format": FORMAT,
        "arch": config.arch,
        "class_names": sets.class_names,
        "model": trainer.model.state_dict(),
        "ema": trainer.ema.model.state_dict() if trainer.ema else {},
        "optimizer": trainer.optimizer.state_dict(),
        "scaler": trainer.scaler.state_dict(),
        "step": trainer.step,
        "epoch": trainer.epoch,
        "sums": sums,
        "images": len(sets.train),
        "processes": world_size(),
        "options": config.plain(),
    }
    checkpoint.save(path, content)


def checkpoint_to_resume(config: Config) -> Path | None:
    """The checkpoint to start from, or None to start afresh.

    Raises:
        UserError: the run would write over another one.
    """
    own = config.save / CHECKPOINT
    if config.resume == "auto":
        return own if own.exists() else None
    given = Path(config.resume) if config.resume else None
    holds_run = own.exists() or (config.save / LOG).exists()
    if holds_run and (given is None or given.resolve() != own.resolve()):
        raise UserError(
            f"--save {config.save} holds a run; go on with it by --resume auto, or choose another "
            "folder"
        )
    return given


def resume(path: Path, trainer: Trainer, config: Config, sets: ImageSets, steps: int) -> None:
    """Put the trainer where the checkpoint left it.

    Args:
        path: the checkpoint.
        trainer: of the same network; changed in place.
        config: the options of this run.
        sets: its images.
        steps: in an epoch.

    Raises:
        UserError: the file is no checkpoint of such a run, or of one with other options or images.
    """
    content = checkpoint.load(path)
    checkpoint.require(content, KEYS, path)
    check_same_run(content, config, sets, path)
    checkpoint.load_weights(trainer.model, content["model"], path)
    if trainer.ema:
        checkpoint.load_weights(trainer.ema.model, content["ema"], path)
    load_optimizer(trainer, content, path)
    load_progress(trainer, content, steps, path)
    print_once(f"resumed from {path}: {trainer.epoch} epochs and {trainer.step} steps done")
    if content["processes"] != world_size():
        print_once(
            f"saved by {content['processes']} processes and resumed with {world_size()}: the "
            "batches hold the same images, but which process has which of them differs, and "
            "batch normalisation sees other shares"
        )


def check_same_run(content: dict, config: Config, sets: ImageSets, source: Path) -> None:
    """Refuse a checkpoint of another format, or of other options, classes or images."""
    unknown = content.keys() - KEYS.keys()
    if content["format"] != FORMAT or unknown:
        what = f"the unknown key {min(map(str, unknown))!r}" if unknown else content["format"]
        raise UserError(f"{source}: expected format {FORMAT}, found {what}; use a newer version")
    asked = config.resume_options()
    if content["processes"] != world_size():
        # Another number of processes may need another one of parts, and changes results anyway.
        asked.pop("grad_accumulation")
    changed = [
        f"--{flag.replace('_', '-')} {value} (was {content['options'].get(flag)})"
        for flag, value in asked.items()
        if content["options"].get(flag) != value
    ]
    changed += [f"--{flag} (unknown)" for flag in content["options"].keys() - config.plain().keys()]
    if changed:
        raise UserError(
            f"{source} was made with other options: {'; '.join(changed)}; resume with the same, "
            "or start afresh in another folder"
        )
    if content["class_names"] != sets.class_names or content["images"] != len(sets.train):
        raise UserError(
            f"{source} was trained on {content['images']} images of "
            f"{len(content['class_names'])} classes; {config.data / 'train'} has others: "
            f"{len(sets.train)} of {len(sets.class_names)}"
        )


def load_optimizer(trainer: Trainer, content: dict, source: Path) -> None:
    """Load the optimizer's buffers and the scaler's state."""
    checkpoint.load_optimizer(trainer.optimizer, content["optimizer"], source)
    scaler = trainer.scaler.state_dict()
    given = content["scaler"]
    numbers = all(isinstance(v, float | int) and 0 <= v < 1e30 for v in given.values())
    if given.keys() != scaler.keys() or not numbers:
        raise UserError(f"{source}: the state of float16's gradient scaler is damaged")
    trainer.scaler.load_state_dict(given)


def load_progress(trainer: Trainer, content: dict, steps: int, source: Path) -> None:
    """Load where in the run the checkpoint is, and the sums of its epoch."""
    epoch, step, sums = content["epoch"], content["step"], content["sums"]
    classifiers = 1 + len(trainer.model.branches)
    expected = {"top1": torch.zeros(classifiers), "losses": torch.zeros(len(Losses._fields))}
    if step == epoch * steps:
        expected = {}
    fit = sums.keys() == expected.keys() and not any(
        checkpoint.difference(sums[name], value) for name, value in expected.items()
    )
    if epoch < 0 or not epoch * steps <= step <= (epoch + 1) * steps or not fit:
        raise UserError(f"{source}: step {step} of epoch {epoch + 1} does not fit; it is damaged")
    trainer.epoch, trainer.step = epoch, step
    # They are sums over all processes: one goes on from them.
    trainer.sums.add(**{name: value * (rank() == 0) for name, value in sums.items()})


def check_all_ranks_resumed(trainer: Trainer) -> None:
    """Refuse to go on from different steps, where not every machine has the checkpoint."""
    step = torch.tensor(float(trainer.step), device=trainer.device)
    if sum_over_processes(step) != world_size() * step:
        raise UserError(
            f"this process is at step {trainer.step} and others are not: --save and --resume must "
            "name the same folder, and file, on every machine"
        )
