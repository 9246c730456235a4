"""What a run writes for each epoch: a line of `log.txt`, a line for people, TensorBoard."""

import resource
import sys
from pathlib import Path

import torch

from common.run_folder import Log
from engine import EpochResult, Trainer
from options import Config
from synergy import Losses

LOG = "log.txt"
PREFIX = "json_stats: "  # the released code's
EpochResults = dict[str, EpochResult]  # of one epoch: "train" and, if it was tested, "test"


class EpochLog:
    """The log of one run, from `epoch` finished epochs on; what stands after that is dropped."""

    def __init__(self, folder: Path, config: Config, epoch: int, classes: int):
        # Takes seconds to import, and only the process that writes needs it.
        from torch.utils.tensorboard import SummaryWriter

        self._log = Log(folder / LOG, PREFIX)
        self._log.truncate_after(epoch)
        self._config = config
        self._classes = classes
        self._writer = SummaryWriter(folder, purge_step=epoch + 1)

    def write(self, epoch: int, trainer: Trainer, results: EpochResults) -> None:
        """Log an epoch; `epoch` counts it as finished."""
        train = results["train"]
        lr = trainer.schedule.rate(epoch - 1)
        parameters = sum(p.numel() for p in trainer.model.parameters())
        self._log.append(
            {
                **self._config.plain(),
                **released_record(results),
                **further_record(results),
                "epoch": epoch,
                "learning_rate": lr,
                "num_classes": self._classes,
                "n_parameters": parameters,
                "peak_memory_mib": peak_memory_mib(trainer.device),
            }
        )
        for key, value in scalars(results).items():
            self._writer.add_scalar(key, value, epoch)
        self._writer.add_scalar("learning rate", lr, epoch)
        self._writer.flush()
        errors = ", ".join(
            f"{part} loss {result.losses['total']:.4f} error {result.errors[0]:.2f} %"
            for part, result in results.items()
        )
        print(
            f"epoch {epoch}/{self._config.epochs}: lr {lr:g}, {errors}, "
            f"{train.images / train.time_s:.0f} images/s",
            flush=True,
        )

    def close(self) -> None:
        self._writer.close()


def released_record(results: EpochResults) -> dict:
    """The released code's keys in its meanings: whole losses, accuracies and times.

    ep1 is the shallow branch and ep2 the deep one; null where there is none. Losses are means
    over batches in which a partial batch weighs as much as a full one. An epoch that wasn't
    tested has none of the test's keys.
    """
    record = {}
    for part, result in results.items():
        record[f"{part}_loss"] = result.losses["total"]
        record[f"{part}_time"] = result.time_s
        accuracies = [100 - error for error in result.errors] + [None, None]
        names = (f"{part}_acc", f"{part}_acc_ep1", f"{part}_acc_ep2")
        record |= dict(zip(names, accuracies, strict=False))
    return record


def further_record(results: EpochResults) -> dict:
    """What the release did not log: the losses by part, the averaged classifiers, divergences."""
    record = {
        f"{part}_loss_{name}": result.losses[name]
        for part, result in results.items()
        for name in Losses._fields[1:]
    }
    record |= {f"{part}_images": result.images for part, result in results.items()}
    record["train_images_per_s"] = results["train"].images / results["train"].time_s
    if test := results.get("test"):
        record["test_error_ensemble"] = test.ensemble_error
        record["test_divergences"] = test.divergences
    return record


def peak_memory_mib(device: torch.device) -> float:
    """The most memory this process has held: a GPU's in tensors, else its whole resident set."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**20
    unit = 1 if sys.platform == "darwin" else 2**10  # bytes on macOS, KiB on Linux
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**20


def scalars(results: EpochResults) -> dict[str, float]:
    """TensorBoard's curves of one epoch."""
    curves = {}
    for part, result in results.items():
        names = classifier_names(len(result.errors))
        curves |= {f"loss {part}/{name}": value for name, value in result.losses.items()}
        curves |= {
            f"error {part}/{name}": error for name, error in zip(names, result.errors, strict=True)
        }
    if test := results.get("test"):
        curves["error test/averaged"] = test.ensemble_error
        for teacher, row in zip(names, test.divergences, strict=True):
            for student, value in zip(names, row, strict=True):
                if teacher != student:
                    curves[f"divergence test/{teacher} to {student}"] = value
    return curves


def classifier_names(count: int) -> list[str]:
    """Names of the classifiers in the order of the logits."""
    return ["backbone", "shallow branch", "deep branch"][:count]
