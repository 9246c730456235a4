"""Checkpoints of training runs: what they contain, and how a run is resumed.

Keys of `checkpoint.pt` (`KEYS` below):
    format: version of this format.
    arch, class_names: of the network; names in label order.
    model, ema: state dicts. `ema` is empty without a weight average.
    optimizer, scaler: state dicts. `scaler` is empty except in float16.
    step, epoch: numbers of finished steps and epochs.
    sums: of losses, correct predictions and unreadable images in the current epoch, over all
        processes. Older checkpoints have no number of unreadable images, which is then 0.
    images, processes: numbers of training images, and of processes of the run that saved it.
    options: of the command line.
    decoding: `DECODING` of the run; 1 in older checkpoints.

The learning rate is a function of the step. No random state is saved: order and augmentation are
functions of (seed, epoch, image), and nothing else is random once the network is initialized.
"""

from pathlib import Path

import torch
from torch import Tensor

from common import checkpoint
from common.command_line import UserError, plural
from common.distributed import print_once, rank, world_size
from common.flag_groups import NO_REGULARIZATION
from common.json_log import Log
from common.resume import load_to_resume
from data import ImageSets
from decoding import DECODING
from engine import Trainer
from epoch_log import LOG
from synergy import Losses
from train_options import Config

FORMAT = 1
KEYS = {
    **dict.fromkeys(("format", "step", "epoch", "images", "processes", "decoding"), int),
    **dict.fromkeys(("model", "ema", "optimizer", "scaler", "sums", "options"), dict),
    "arch": str,
    "class_names": list,
}


def save(
    path: Path, trainer: Trainer, config: Config, sets: ImageSets, sums: dict[str, Tensor]
) -> None:
    """Save a run; `sums` are those of the current epoch, over all processes.

    Raises:
        UserError: the weights are not finite, or the file cannot be written.
    """
    for name, value in trainer.model.state_dict().items():
        if not value.isfinite().all():
            raise UserError(
                f"{name} is not finite after step {trainer.step}; the last checkpoint is from an "
                "earlier step; try a lower --lr"
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
        "options": config.to_dict(),
        "decoding": DECODING,
    }
    checkpoint.save(path, content)


def find(config: Config) -> tuple[Path | None, dict | None]:
    """Return the checkpoint to resume from and its content; None for both to start from scratch.

    All processes must call it together.

    Raises:
        UserError: see `load_to_resume`.
    """
    found = load_to_resume(
        Log(config.save / LOG), config.resume, read, lambda content: f"step {content['step']}"
    )
    return found or (None, None)


def read(path: Path) -> dict:
    """Read a checkpoint. Raise `UserError` if the file is not one of a training run."""
    content = load(path)
    checkpoint.require_keys(content, KEYS, path)
    return content


def load(path: Path) -> dict:
    """Read a checkpoint of any kind. Fill in what older ones of a training run do not have."""
    return {"decoding": 1} | checkpoint.load(path)


def resume(
    content: dict, path: Path, trainer: Trainer, config: Config, sets: ImageSets, steps: int
) -> None:
    """Load a checkpoint into the trainer.

    Args:
        content: of the checkpoint, from `read`.
        path: of the checkpoint, for messages.
        trainer: of the same network; changed in place.
        config: options of this run.
        sets: images of this run.
        steps: number of steps in an epoch.

    Raises:
        UserError: the checkpoint is damaged, or of a run with other options or images.
    """
    check_same_run(content, config, sets, path)
    checkpoint.load_weights(trainer.model, content["model"], path)
    if trainer.ema:
        checkpoint.load_weights(trainer.ema.model, content["ema"], path)
    load_optimizer(trainer, content, path)
    load_progress(trainer, content, steps, path)
    in_epoch = trainer.step - trainer.epoch * steps
    within = f" and {in_epoch} of {plural(steps, 'step')} of epoch {trainer.epoch + 1}"
    done = plural(trainer.epoch, "epoch") + within * (in_epoch > 0)
    if trainer.step > config.epochs * steps:
        raise UserError(
            f"--epochs {config.epochs}: the run in {path} has {done} done; use --epochs "
            f"{-(-trainer.step // steps)} or more"
        )
    print_once(f"resumed from {path}: {done} done")
    if content["processes"] != world_size():
        print_once(
            f"note: saved by {plural(content['processes'], 'process')}, resumed with "
            f"{world_size()}; batches stay the same but are split differently, which changes the "
            "statistics of batch normalization"
        )
    if content["decoding"] != DECODING:
        print_once(
            "note: saved by an older version, which decoded and cropped training images differently"
        )


def check_same_run(content: dict, config: Config, sets: ImageSets, source: Path) -> None:
    """Raise `UserError` if a checkpoint has another format, other options, classes or images."""
    unknown = content.keys() - KEYS.keys()
    if content["format"] != FORMAT or unknown:
        what = f"unknown key {min(map(str, unknown))!r}" if unknown else content["format"]
        raise UserError(
            f"{source}: expected checkpoint format {FORMAT}, got {what}; use a newer version of "
            "this program"
        )
    options = config.resume_options()
    if content["processes"] != world_size():
        # A different number of processes changes results in any case, and may need a different
        # number of micro-batches.
        options.pop("grad_accumulation")
    saved = NO_REGULARIZATION | content["options"]
    changed = [
        f"--{flag.replace('_', '-')} {value} (was {saved.get(flag)})"
        for flag, value in options.items()
        if saved.get(flag) != value
    ]
    changed += [f"--{flag} (unknown)" for flag in saved.keys() - config.to_dict().keys()]
    if changed:
        raise UserError(
            f"{source}: saved with other options: {'; '.join(changed)}; resume with the same "
            "options, or start a new run in another folder"
        )
    if content["class_names"] != sets.class_names or content["images"] != len(sets.train):
        raise UserError(
            f"{source}: trained on {plural(content['images'], 'image')} of "
            f"{plural(len(content['class_names']), 'class')}, but {config.data / 'train'} has "
            f"{len(sets.train):,} of {len(sets.class_names):,}, or other classes; use the same "
            "images"
        )


def load_optimizer(trainer: Trainer, content: dict, source: Path) -> None:
    """Load the state of the optimizer and of the gradient scaler."""
    checkpoint.load_optimizer(trainer.optimizer, content["optimizer"], source)
    state = content["scaler"]
    valid = all(isinstance(v, float | int) and 0 <= v < 1e30 for v in state.values())
    if state.keys() != trainer.scaler.state_dict().keys() or not valid:
        raise UserError(
            f"{source}: the state of the gradient scaler is damaged; use another checkpoint"
        )
    trainer.scaler.load_state_dict(state)


def load_progress(trainer: Trainer, content: dict, steps: int, source: Path) -> None:
    """Load the position in the run and the sums of the current epoch."""
    epoch, step, sums = content["epoch"], content["step"], content["sums"]
    classifiers = 1 + len(trainer.model.branches)
    expected = {"top1": torch.zeros(classifiers), "losses": torch.zeros(len(Losses._fields))}
    expected["unreadable"] = torch.zeros(())
    if sums:
        sums = {"unreadable": torch.zeros(()), **sums}
    if step == epoch * steps:
        expected = {}
    valid = sums.keys() == expected.keys() and not any(
        checkpoint.mismatch(sums[name], value) for name, value in expected.items()
    )
    if epoch < 0 or not epoch * steps <= step <= (epoch + 1) * steps or not valid:
        raise UserError(
            f"{source} is damaged: step {step} of epoch {epoch + 1} is inconsistent; use another "
            "checkpoint"
        )
    trainer.epoch, trainer.step = epoch, step
    # The saved sums are over all processes, so only process 0 starts from them.
    trainer.sums.add(**{name: value * (rank() == 0) for name, value in sums.items()})
