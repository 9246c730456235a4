"""What is reported: of each epoch, in `log.txt`, a printed line and TensorBoard; and at the end."""

import resource
import sys
from functools import partial
from pathlib import Path

import torch

from common.distributed import print_once, world_size
from common.fingerprint import fingerprint, fingerprint_files
from common.images import list_images
from common.json_log import Log
from common.metrics import cost
from common.results import write_json
from common.run_logs import classifier_names
from common.scalar_log import ScalarLog
from data import CIFAR, find_test_folder
from engine import EpochResult, Trainer
from networks import build_network
from options import Config
from synergy import Losses

LOG = "log.txt"
PREFIX = "json_stats: "  # of each line, as in the released code
EpochResults = dict[str, EpochResult]  # "train" and, if the epoch was tested, "test"


class EpochLog:
    """The log of one run. Existing records of epochs after `epoch` are removed.

    Args:
        folder: folder of the run.
        config: options of the run, included in each record.
        epoch: number of finished epochs.
        num_classes: number of classes, included in each record, as is a fingerprint of the data.
    """

    def __init__(self, folder: Path, config: Config, epoch: int, num_classes: int):
        self._log = Log(folder / LOG, PREFIX)
        self._log.truncate_after(epoch)
        self._config = config
        self._data = {
            "num_classes": num_classes,
            "data_fingerprint": data_fingerprint(config.dataset, config.dataroot),
        }
        self._scalars = ScalarLog(folder, epoch + 1)

    def write(self, epoch: int, trainer: Trainer, results: EpochResults) -> None:
        """Log the results of `epoch` (1-based)."""
        train = results["train"]
        lr = trainer.schedule.rate(epoch - 1)
        parameters = sum(p.numel() for p in trainer.model.parameters())
        self._log.append(
            {
                **self._config.to_dict(),
                **released_metrics(results),
                **additional_metrics(results),
                "epoch": epoch,
                "learning_rate": lr,
                **self._data,
                "n_parameters": parameters,
                "peak_memory_mib": peak_memory_mib(trainer.device),
            }
        )
        scalars = tensorboard_scalars(results, self._config.method) | {"learning rate": lr}
        self._scalars.write(scalars, epoch)
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
        self._scalars.close()


def data_fingerprint(name: str, root: Path) -> str:
    """Return a hash that differs for different data sets, without reading images.

    It is that of the files' names and sizes for a folder of images, and of their checksums for
    CIFAR. The checksums are constants, which `load_dataset` has verified.
    """
    if name == "folder":
        parts = (list_images(folder) for folder in (root / "train", find_test_folder(root)))
        train, test = (
            zip(map(part.classes.__getitem__, part.labels), part.paths, strict=True)
            for part in parts
        )
        return fingerprint_files(train, test)
    if name in CIFAR:
        return fingerprint([name, repr(CIFAR[name].train_list), repr(CIFAR[name].test_list)])
    return fingerprint([name])


def released_metrics(results: EpochResults) -> dict:
    """Return the metrics of the released code under its keys: losses, accuracies and times.

    ep1 is the shallow branch and ep2 the deep branch; without branches their values are None. An
    epoch without a test has no test keys.
    """
    record = {}
    for part, result in results.items():
        record[f"{part}_loss"] = result.losses["total"]
        record[f"{part}_time"] = result.time_s
        record[f"{part}_acc"] = 100 - result.errors[0]
        record |= {f"{part}_acc_ep1": None, f"{part}_acc_ep2": None}
        record |= {f"{part}_acc_ep{i}": 100 - e for i, e in enumerate(result.errors) if i}
    return record


def additional_metrics(results: EpochResults) -> dict:
    """Return metrics that the released code does not log, such as the terms of the loss."""
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
    """Return the peak memory of this process: allocated on the GPU, or resident on the CPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**20
    unit = 1 if sys.platform == "darwin" else 2**10  # bytes on macOS, KiB on Linux
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**20


def tensorboard_scalars(results: EpochResults, method: str) -> dict[str, float]:
    """Return the TensorBoard scalars of one epoch by tag, without losses that `method` lacks."""
    scalars = {}
    lacking = {"baseline": ("branches", "synergy"), "ds": ("synergy",)}.get(method, ())
    for part, result in results.items():
        names = classifier_names(len(result.errors))
        losses = {name: value for name, value in result.losses.items() if name not in lacking}
        scalars |= {f"loss {part}/{name}": value for name, value in losses.items()}
        scalars |= {
            f"error {part}/{name}": error for name, error in zip(names, result.errors, strict=True)
        }
    if test := results.get("test"):
        scalars["error test/ensemble"] = test.ensemble_error
        for teacher, row in zip(names, test.divergences, strict=True):
            for student, value in zip(names, row, strict=True):
                if teacher != student:
                    scalars[f"divergence test/{teacher} to {student}"] = value
    return scalars


def print_costs(config: Config, num_classes: int, branches: bool) -> None:
    """Print the cost of the network for inference and, if it has branches, for training."""
    network = partial(build_network, config, num_classes)
    for with_branches in (False, True)[: 1 + branches]:
        purpose = "training, with branches" if with_branches else "inference"
        size = cost(partial(network, branches=with_branches), config.image_size)
        print_once(f"{config.network} for {purpose}: {size}")


def print_errors(result: EpochResult) -> None:
    """Print the test error of every classifier and of their ensemble."""
    for name, error in errors_by_name(result).items():
        if name != "ensemble" or len(result.errors) > 1:
            print_once(f"test error of the {name}: {error:.2f} %")


def errors_by_name(result: EpochResult) -> dict[str, float]:
    """Return the errors of a test in percent, of every classifier and of the ensemble."""
    names = [*classifier_names(len(result.errors)), "ensemble"]
    return dict(zip(names, [*result.errors, result.ensemble_error], strict=True))


# What a test depends on; those of the training are in the checkpoint.
TEST_OPTIONS = ("dataset", "dataroot", "image_size", "arch", "depth", "width", "batch_size")


def write_results(config: Config, source: Path, device: torch.device, test: EpochResult) -> None:
    """Write the errors of a test, and what was tested how, to `config.json`.

    Raises:
        UserError: the file can't be written.
    """
    errors = {name: {"top1_error": error} for name, error in errors_by_name(test).items()}
    content = {
        "top1_error": test.errors[0],
        "classifiers": errors,
        "images": test.images,
        "seconds": test.time_s,
        "images_per_s": test.images / test.time_s,
        "checkpoint": str(source),
        "dtype": config.dtype,
        "device": str(device),
        "processes": world_size(),
        "torch": torch.__version__,
        "options": {name: config.to_dict()[name] for name in TEST_OPTIONS},
    }
    write_json(config.json, content)
