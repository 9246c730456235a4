"""Resuming a run: the checkpoint, the options that it fixes, and its state."""

from dataclasses import replace
from pathlib import Path

from common import checkpoint
from common.command_line import UserError, plural
from common.distributed import print_once, world_size
from common.json_log import Log
from common.resume import load_to_resume
from data import DatasetInfo
from engine import Trainer
from epoch_log import LOG, PREFIX
from legacy import load_legacy_run
from options import Config, check_epochs, check_options_unchanged
from run_state import RUN_KEYS, LoadedCheckpoint, load_checkpoint


def load_run(config: Config, folder: Path) -> LoadedCheckpoint | None:
    """Return the checkpoint to resume the run in `folder` from; None to start from scratch.

    Raises:
        UserError: see `load_to_resume`.
    """
    found = load_to_resume(
        Log(folder / LOG, PREFIX),
        config.resume,
        load_checkpoint,
        lambda loaded: f"epoch {loaded.content.get('epoch')}",
    )
    return found and found[1]


def options_to_resume(loaded: LoadedCheckpoint, config: Config) -> Config:
    """Return the options for resuming: milestones that are not given are those of the run.

    Raises:
        UserError: it is not the checkpoint of a run, or of one with other options or more epochs.
    """
    check_epochs(loaded.content.get("epoch", 0), config, loaded.source)
    if loaded.info is None:
        return config
    if "optimizer" not in loaded.content:
        raise UserError(
            f"{loaded.source} is an exported backbone and can't be resumed; use the checkpoint of "
            "a run, or --evaluate"
        )
    checkpoint.require_keys(loaded.content, RUN_KEYS, loaded.source)
    scheme = loaded.options.get("random_scheme", 1)
    if scheme not in (1, 2):
        raise UserError(
            f"{loaded.source}: expected random scheme 1 or 2, found {scheme!r}; use a newer "
            "version of this code"
        )
    config = replace(config, random_scheme=scheme)
    steps = loaded.options.get("epoch_step")
    is_valid = isinstance(steps, list) and all(type(epoch) is int for epoch in steps)
    # An older checkpoint may hold a milestone twice, at which its learning rate falls twice.
    if is_valid and ("epoch_step" not in config.given or set(steps) == set(config.epoch_step)):
        config = replace(config, epoch_step=tuple(steps))
    check_options_unchanged(loaded.options, config, loaded.source)
    return config


def resume(loaded: LoadedCheckpoint, trainer: Trainer, info: DatasetInfo) -> int:
    """Load the state of a run into the trainer and return the number of finished epochs.

    Raises:
        UserError: the state does not fit the network, or the dataset is another one.
    """
    content, source = loaded.content, loaded.source
    if loaded.info is None:
        load_legacy_run(content, loaded.weights, source, trainer)
        return content["epoch"]
    if loaded.info != info:
        raise UserError(f"{source} was trained on another dataset than the one in --dataroot")
    if content["processes"] != world_size():
        before = plural(content["processes"], "process")
        print_once(f"{before} before, {world_size()} now: batch norm, and the results, will differ")
    checkpoint.load_weights(trainer.model, loaded.weights, source)
    checkpoint.load_optimizer(trainer.optimizer, content["optimizer"], source)
    if trainer.scaler.is_enabled():
        trainer.scaler.load_state_dict(content["scaler"])
    return content["epoch"]
