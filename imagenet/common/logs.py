"""The log of a run: one JSON record per epoch, TensorBoard scalars, a printed line; progress bars.

Keys of a record in `log.jsonl`:
    epoch, step: numbers of finished epochs and steps.
    lr: learning rate of the last step.
    train: mean losses and top-1 errors of the classifiers on the augmented images of the epoch,
        while the weights changed.
    test: `Scores` of the test, if the epoch was tested. ema: those of the averaged weights.
    times, peak_memory_mib: of this process, since the epoch started or was resumed. All other
        values do not depend on whether the run was interrupted.
    options, network, data, software: what was run.
Errors are in percent, of the backbone, then of the branches from shallow to deep.
"""

import hashlib
import json
import resource
import sys
import threading
import time
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import torch
from torch import Tensor
from tqdm import tqdm

from .checkpoint import flush_to_disk, write_atomically, write_json
from .command_line import UserError, one_line
from .distributed import print_once, rank
from .evaluation import classifier_names

LOG = "log.jsonl"


def read_log(path: Path) -> list[dict]:
    """Return the records of a log, without a partly written last line, or raise `UserError`."""
    records = []
    for line in path.read_text("utf-8", "replace").splitlines(keepends=True):
        if not line.endswith("}\n"):
            continue
        try:
            record = json.loads(line)
            records.append({**record, "epoch": int(record["epoch"])})
        except (ValueError, KeyError, TypeError) as error:
            raise UserError(f"{path}: not a record of a run: {line[:80]!r}") from error
    return records


class RunLog:
    """The log of a run on rank 0, to be continued after the given epoch.

    Args:
        folder: of the run.
        about: what was run, included in each record.
        epoch, step: numbers of finished epochs and steps. Later records are removed.
    """

    def __init__(self, folder: Path, about: dict, epoch: int, step: int):
        self._path, self._about = folder / LOG, about
        if self._path.exists():
            records = [each for each in read_log(self._path) if each["epoch"] <= epoch]
            codes = {each.get("software", {}).get("code") for each in records[-1:]}
            if codes - {about["software"]["code"]}:
                print_once("note: the code is not that of the epochs before")
            kept = "".join(json.dumps(each) + "\n" for each in records)
            write_atomically(self._path, lambda file: file.write(kept.encode()))
        self._writer = None
        try:
            from torch.utils.tensorboard import SummaryWriter  # takes seconds

            self._writer = SummaryWriter(folder, purge_step=step + 1)
            # Its thread would also print the error of a full disk, which is raised in `write`.
            threading.excepthook = lambda error: None
        except Exception as error:  # not installed, or broken in one of several ways
            print_once(f"warning: no TensorBoard events are written ({one_line(error, 150)})")

    def write(self, record: dict) -> None:
        """Write the record of an epoch."""
        try:
            with open(self._path, "a") as file:
                file.write(json.dumps(record | self._about) + "\n")
                file.flush()
                flush_to_disk(file.fileno())
            if self._writer:
                for tag, value in scalars(record).items():
                    self._writer.add_scalar(tag, value, record["step"])
                self._writer.flush()
        except OSError as error:
            raise UserError(f"{self._path.parent} can't be written: {error.strerror}") from error
        print_once(describe(record, self._about["options"]["epochs"]))


def code_version(folder: Path) -> str:
    """Return a hash of the Python files of a script folder."""
    files = sorted([*folder.glob("*.py"), *folder.glob("common/*.py")])
    return hashlib.sha256(b"".join(map(Path.read_bytes, files))).hexdigest()[:8]


def scalars(record: dict) -> dict[str, float]:
    """Return the TensorBoard scalars of an epoch by tag."""
    values = {"learning rate": record["lr"]}
    values |= {f"times/{name}": value for name, value in record["times"].items()}
    names = classifier_names(len(record["train"]["top1_errors"]))
    for part in ("train", "test", "ema"):
        scores = record.get(part, {})
        values |= {f"loss {part}/{name}": loss for name, loss in scores.get("losses", {}).items()}
        for kind in ("top1", "top5"):
            errors = zip(names, scores.get(f"{kind}_errors", ()), strict=False)
            values |= {f"{kind} error {part}/{name}": error for name, error in errors}
        for teacher, row in zip(names, scores.get("divergences", ()), strict=False):
            pairs = zip(names, row, strict=True)
            pairs = ((name, value) for name, value in pairs if name != teacher)
            values |= {f"divergence {part}/{teacher} to {name}": value for name, value in pairs}
    return values


def describe(record: dict, epochs: int) -> str:
    """Return a line about an epoch, with top-1 errors of the backbone."""
    train = record["train"]
    text = f"epoch {record['epoch']}/{epochs}: lr {record['lr']:.3g}, "
    text += f"loss {train['losses']['total']:.4g}"
    for part in ("train", "test", "ema"):
        if part in record:
            text += f", {part} {record[part]['top1_errors'][0]:.2f} %"
    return f"{text}, {record['times']['images_per_s']:.0f} img/s"


def print_predictions(
    paths: Sequence[Path], probabilities: Tensor, titles: Sequence[str], json_path: Path | None
) -> None:
    """Print the five most likely classes of each image; write them to a JSON file if it is given.

    `probabilities` of the classes, which have `titles`, are (N, K) for N images.
    """
    best = probabilities.topk(min(5, len(titles)))
    found = []
    for path, values, indices in zip(paths, *map(Tensor.tolist, best), strict=True):
        pairs = zip(indices, values, strict=True)
        classes = [{"name": titles[i], "index": i, "probability": value} for i, value in pairs]
        found.append({"image": str(path), "classes": classes})
        print_once(str(path))
        for each in classes:
            print_once(f"  {100 * each['probability']:6.2f}%  {each['name']}")
    if json_path:
        write_json(json_path, found)


def peak_memory_mib(device: torch.device) -> float:
    """Return the peak memory of this process: allocated on the GPU, or resident on the CPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**20
    unit = 1 if sys.platform == "darwin" else 2**10  # bytes on macOS, KiB on Linux
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**20


class Progress:
    """A bar over batches, on rank 0 in a terminal, that measures images/s and waiting for data.

    It is updated after `every` batches; by default after as many as take 0.1 s.
    """

    def __init__(self, description: str, steps: int, first: int = 0, every: int | None = None):
        self._bar = tqdm(
            total=steps,
            initial=first,
            desc=description,
            disable=None if rank() == 0 else True,  # None: hidden unless there is a terminal
            leave=False,
            dynamic_ncols=True,
            miniters=every,
            mininterval=0 if every else 0.1,
            unit="batch",
        )
        self._images, self._waiting_s = 0, 0.0
        self._start = time.perf_counter()

    def over(self, batches: Iterable) -> Iterator:
        """Yield the batches and advance the bar after each of them; close it at the end."""
        iterator = iter(batches)
        try:
            while True:
                start = time.perf_counter()
                batch = next(iterator, None)
                self._waiting_s += time.perf_counter() - start
                if batch is None:
                    return
                yield batch
                self._images += batch.total
                self._bar.update()
        finally:
            self._bar.close()

    def show(self, loss: float) -> None:
        """Show the loss of a batch and the throughput."""
        rate = f"{self.times()['images_per_s']:.0f} img/s"
        self._bar.set_postfix_str(f"loss {loss:.2f}, {rate}", refresh=False)

    def times(self) -> dict[str, float]:
        """Return seconds, images per second (over all processes) and percent of time waiting."""
        seconds = time.perf_counter() - self._start
        return {
            "train_s": seconds,
            "images_per_s": self._images / seconds,
            "waiting_percent": 100 * self._waiting_s / seconds,
        }
