"""What a run writes for each epoch: a line of `log.txt`, a line for people, TensorBoard."""

import resource
import sys
from pathlib import Path

import torch

from engine import Result, Trainer
from options import Config
from run_folder import Log
from synergy import Losses

PREFIX = "json_stats: "  # the released code's


class EpochLog:
    """The log of one run, from `epoch` finished epochs on; what stands after that is dropped."""

    def __init__(self, folder: Path, config: Config, epoch: int, classes: int):
        # Takes seconds to import, and only the process that writes needs it.
        from torch.utils.tensorboard import SummaryWriter

        self._log = Log(folder / "log.txt", PREFIX)
        self._log.cut(epoch)
        self._config = config
        self._classes = classes
        self._writer = SummaryWriter(folder, purge_step=epoch + 1)

    def write(self, epoch: int, trainer: Trainer, train: Result, test: Result) -> None:
        """Log an epoch; `epoch` counts it as finished."""
        lr = trainer.schedule.rate(epoch - 1)
        parameters = sum(p.numel() for p in trainer.model.parameters())
        self._log.append(
            {
                **self._config.plain(),
                **released_record(train, test),
                **further_record(train, test),
                "epoch": epoch,
                "learning_rate": lr,
                "num_classes": self._classes,
                "n_parameters": parameters,
                "peak_memory_mib": peak_memory_mib(trainer.device),
            }
        )
        for key, value in scalars(train, test).items():
            self._writer.add_scalar(key, value, epoch)
        self._writer.add_scalar("learning rate", lr, epoch)
        self._writer.flush()
        print(
            f"epoch {epoch}/{self._config.epochs}: lr {lr:g}, "
            f"train loss {train.losses['total']:.4f} error {train.errors[0]:.2f} %, "
            f"test loss {test.losses['total']:.4f} error {test.errors[0]:.2f} %, "
            f"{train.images / train.time_s:.0f} images/s",
            flush=True,
        )

    def close(self) -> None:
        self._writer.close()


def released_record(train: Result, test: Result) -> dict:
    """The released code's keys in its meanings: whole losses, accuracies and times.

    ep1 is the shallow branch and ep2 the deep one; null where there is none. Losses are means
    over batches in which a partial batch weighs as much as a full one.
    """
    record = {}
    for part, result in (("train", train), ("test", test)):
        record[f"{part}_loss"] = result.losses["total"]
        record[f"{part}_time"] = result.time_s
        accuracies = [100 - error for error in result.errors] + [None, None]
        names = (f"{part}_acc", f"{part}_acc_ep1", f"{part}_acc_ep2")
        record |= dict(zip(names, accuracies, strict=False))
    return record


def further_record(train: Result, test: Result) -> dict:
    """What the release did not log: the losses by part, the averaged classifiers, divergences."""
    record = {
        f"{part}_loss_{name}": result.losses[name]
        for part, result in (("train", train), ("test", test))
        for name in Losses._fields[1:]
    }
    record |= {"train_images": train.images, "test_images": test.images}
    record["train_images_per_s"] = train.images / train.time_s
    record["test_error_ensemble"] = test.ensemble_error
    record["test_divergences"] = test.divergences
    return record


def peak_memory_mib(device: torch.device) -> float:
    """The most memory this process has held: a GPU's in tensors, else its whole resident set."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**20
    unit = 1 if sys.platform == "darwin" else 2**10  # bytes on macOS, KiB on Linux
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**20


def scalars(train: Result, test: Result) -> dict[str, float]:
    """TensorBoard's curves of one epoch."""
    curves = {}
    for part, result in (("train", train), ("test", test)):
        names = classifier_names(len(result.errors))
        curves |= {f"loss {part}/{name}": value for name, value in result.losses.items()}
        curves |= {
            f"error {part}/{name}": error for name, error in zip(names, result.errors, strict=True)
        }
    curves["error test/averaged"] = test.ensemble_error
    for teacher, row in zip(names, test.divergences, strict=True):
        for student, value in zip(names, row, strict=True):
            if teacher != student:
                curves[f"divergence test/{teacher} to {student}"] = value
    return curves


def classifier_names(count: int) -> list[str]:
    """Names of the classifiers in the order of the logits."""
    return ["backbone", "shallow branch", "deep branch"][:count]
