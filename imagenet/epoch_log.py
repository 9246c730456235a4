"""What a training run writes for each epoch: a line of `log.jsonl`, TensorBoard, a line to read.

The record of an epoch:
    epoch, step: finished ones; arch, method, seed: of the run; lr: of the last step.
    train: mean losses by part (`total` is the one that is minimised), and the top-1 error of
        every classifier, over the epoch's augmented images while the weights changed.
    validation: errors of every classifier, and of their averaged probabilities.
    ema: the same with the averaged weights, where there are any.
    times: of this process since the epoch began or was resumed. All else is the same however
        often a run is stopped and resumed.
Errors are in percent; classifiers stand in the order backbone, shallow branch, deep branch.
"""

from pathlib import Path

from torch import Tensor

from common.run_folder import Log
from evaluate import Scores
from synergy import Losses
from train_options import Config

LOG = "log.jsonl"
CLASSIFIERS = ("backbone", "shallow branch", "deep branch")


class EpochLog:
    """The log of one run from a step on; what stands there from after it is dropped.

    Args:
        folder: of the run.
        epoch, step: finished ones.
    """

    def __init__(self, folder: Path, epoch: int, step: int):
        # Takes seconds to import, and only the process that writes needs it.
        from torch.utils.tensorboard import SummaryWriter

        self._log = Log(folder / LOG)
        self._log.truncate_after(epoch)
        self._writer = SummaryWriter(folder, purge_step=step + 1)

    def write(self, config: Config, epoch: int, step: int, measured: dict) -> None:
        """Write the record of an epoch: what was `measured`, with the run it belongs to."""
        named = {name: getattr(config, name) for name in ("arch", "method", "seed")}
        record = {"epoch": epoch, "step": step, **named, **measured}
        self._log.append(record)
        for name, value in curves(record).items():
            self._writer.add_scalar(name, value, step)
        self._writer.flush()
        train, validation, times = record["train"], record["validation"], record["times"]
        print(
            f"epoch {epoch}/{config.epochs}: lr {record['lr']:.4g}, train loss "
            f"{train['losses']['total']:.4f} error {train['top1_errors'][0]:.2f} %, validation "
            f"top-1 {validation['top1_errors'][0]:.2f} % top-5 {validation['top5_errors'][0]:.2f} "
            f"%, {times['images_per_s']:.0f} images/s, {times['waiting_percent']:.0f} % waiting",
            flush=True,
        )

    def close(self) -> None:
        self._writer.close()


def train_record(totals: dict[str, Tensor], images: int) -> dict:
    """The record's `train` from the sums over an epoch's images."""
    losses = (totals["losses"] / images).tolist()
    return {
        "losses": dict(zip(Losses._fields, losses, strict=True)),
        "top1_errors": (100 - 100 * totals["top1"] / images).tolist(),
    }


def validation_record(scores: Scores) -> dict:
    """The record's `validation` or `ema`."""
    return {
        "images": scores.images,
        "top1_errors": [errors.top1 for errors in scores.classifiers],
        "top5_errors": [errors.top5 for errors in scores.classifiers],
        "averaged_top1_error": scores.ensemble.top1,
        "averaged_top5_error": scores.ensemble.top5,
    }


def curves(record: dict) -> dict[str, float]:
    """TensorBoard's scalars of one epoch."""
    points = {"learning rate": record["lr"]}
    for part, value in record["train"]["losses"].items():
        points[f"loss train/{part}"] = value
    for part in ("train", "validation", "ema"):
        for kind in ("top1", "top5"):
            errors = record.get(part, {}).get(f"{kind}_errors", [])
            for name, error in zip(CLASSIFIERS, errors, strict=False):
                points[f"{kind} error {part}/{name}"] = error
    for name, value in record["times"].items():
        points[f"times/{name}"] = value
    return points
