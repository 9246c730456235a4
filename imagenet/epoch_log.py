"""What is reported of a run: at its start, and of each epoch in `log.jsonl`, TensorBoard scalars
and a printed line.

Record of an epoch:
    epoch, step: numbers of finished epochs and steps.
    arch, method, seed, options: of the run; `options` are those of the command line.
    data_fingerprint: a hash of the names and sizes of the image files; older logs do not have it.
    decoding: `DECODING` of these steps; 1 in older logs, which do not have it.
    lr: learning rate of the last step.
    train: mean losses by part (`total` is minimized) and top-1 errors of the classifiers, over the
        augmented images of the epoch, while the weights changed; `unreadable`: number of images
        that were skipped.
    validation: errors of the classifiers and of their ensemble.
    ema: the same for the averaged weights, if there are any.
    times: of this process, since the epoch started or was resumed. All other values do not depend
        on whether the run was interrupted.
Errors are in percent, of the backbone, then of the branches from shallow to deep.
"""

from pathlib import Path

import torch
from torch import Tensor

from common.batch_norm import warn_of_few_images
from common.command_line import UserError, plural
from common.distributed import describe_devices, print_once
from common.gpu import describe_dtype
from common.json_log import Log
from common.run_logs import classifier_names
from common.scalar_log import ScalarLog
from data import ImageSets
from decoding import DECODING
from evaluate import Scores
from schedule import Schedule
from synergy import Losses
from train_options import Config

LOG = "log.jsonl"
UNUSED_LOSSES = {"baseline": ("branches", "synergy"), "ds": ("synergy",)}  # always zero


def print_start(config: Config, sets: ImageSets, schedule: Schedule, device: torch.device) -> None:
    """Print the size of the data, where the run computes and writes, and the learning rate."""
    print_once(
        f"{plural(len(sets.train), 'training image')} of {plural(len(sets.class_names), 'class')}, "
        f"{plural(len(sets.validation), 'validation image')}; "
        f"{plural(schedule.steps_per_epoch, 'step')} per epoch"
    )
    computation = f"{describe_devices(device)}, {describe_dtype(config.dtype, device)}"
    print_once(f"{computation}, output folder {config.save}")
    print_once(str(schedule))
    if len(sets.class_names) <= 5:
        print_once("with five classes or fewer, the top-5 error is always 0")
    warn_of_few_images(config.batch_size, config.grad_accumulation, config.sync_bn)


class EpochLog:
    """Log of a run, to be continued after the given epoch. Later records are dropped.

    Args:
        folder: of the run.
        epoch, step: numbers of finished epochs and steps.
        data_fingerprint: of the images, included in each record.
    """

    def __init__(self, folder: Path, epoch: int, step: int, data_fingerprint: str):
        self._log = Log(folder / LOG)
        self._log.truncate_after(epoch)
        self._scalars = ScalarLog(folder, step + 1)
        self._run = {"data_fingerprint": data_fingerprint, "decoding": DECODING}

    def write(self, config: Config, epoch: int, step: int, metrics: dict) -> None:
        """Write the record of an epoch: the metrics and the run they belong to."""
        run = {name: getattr(config, name) for name in ("arch", "method", "seed")} | self._run
        record = {"epoch": epoch, "step": step, **run, **metrics, "options": config.to_dict()}
        self._log.append(record)
        self._scalars.write(tensorboard_scalars(record), step)
        train, times = record["train"], record["times"]
        print(
            f"epoch {epoch}/{config.epochs}: lr {record['lr']:.4g}, train loss "
            f"{train['losses']['total']:.4f}, top-1 error {train['top1_errors'][0]:.2f} %, "
            f"{describe_validation(record)}, {times['images_per_s']:.0f} images/s, "
            f"{times['waiting_percent']:.0f} % waiting",
            flush=True,
        )
        if train["unreadable"]:
            print(f"skipped {plural(train['unreadable'], 'training image')} that cannot be read")

    def close(self) -> None:
        self._scalars.close()


def describe_validation(record: dict) -> str:
    """Return the backbone's errors as text, with the last and with the averaged weights."""
    names = {"validation": "validation"}
    if "ema" in record:
        names = {"validation": "validation with last weights:", "ema": "with averaged weights:"}
    return ", ".join(
        f"{name} top-1 error {record[key]['top1_errors'][0]:.2f} %, top-5 error "
        f"{record[key]['top5_errors'][0]:.2f} %"
        for key, name in names.items()
    )


def train_record(totals: dict[str, Tensor], images: int) -> dict:
    """Return the entry `train` of a record, from the sums over an epoch's images.

    Raises:
        UserError: none of the images can be read.
    """
    unreadable = int(totals["unreadable"])
    images -= unreadable
    if not images:
        raise UserError(f"none of the {plural(unreadable, 'training image')} can be read")
    losses = (totals["losses"] / images).tolist()
    return {
        "losses": dict(zip(Losses._fields, losses, strict=True)),
        "top1_errors": (100 - 100 * totals["top1"] / images).tolist(),
        "unreadable": unreadable,
    }


def validation_record(scores: Scores) -> dict:
    """Return the entry `validation` or `ema` of a record."""
    return {
        "images": scores.images,
        "top1_errors": [errors.top1_error for errors in scores.classifiers],
        "top5_errors": [errors.top5_error for errors in scores.classifiers],
        "ensemble_top1_error": scores.ensemble.top1_error,
        "ensemble_top5_error": scores.ensemble.top5_error,
    }


def tensorboard_scalars(record: dict) -> dict[str, float]:
    """Return the TensorBoard scalars of an epoch by tag."""
    scalars = {"learning rate": record["lr"]}
    unused = UNUSED_LOSSES.get(record["method"], ())
    for part, value in record["train"]["losses"].items():
        if part not in unused:
            scalars[f"loss train/{part}"] = value
    for part in ("train", "validation", "ema"):
        for kind in ("top1", "top5"):
            errors = record.get(part, {}).get(f"{kind}_errors", [])
            for name, error in zip(classifier_names(len(errors)), errors, strict=True):
                scalars[f"{kind} error {part}/{name}"] = error
    for name, value in record["times"].items():
        scalars[f"times/{name}"] = value
    return scalars
