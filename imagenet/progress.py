"""Progress bars: training with its throughput, evaluation with its running errors."""

import time
from collections.abc import Callable, Iterable, Iterator

from tqdm import tqdm

from common.distributed import rank
from evaluate import Scores
from loader import Batch


class EpochProgress:
    """Bar over the steps of a training epoch, with throughput and time spent waiting for data.

    Args:
        description: of the bar.
        first_step: number of steps of the epoch that are already done.
        steps: number of steps in the epoch.
    """

    def __init__(self, description: str, first_step: int, steps: int):
        hidden = None if rank() == 0 else True  # None: hidden unless there is a terminal
        self._bar = tqdm(
            total=steps,
            initial=first_step,
            desc=description,
            unit="step",
            leave=False,
            disable=hidden,
        )
        self._images = 0.0
        self._waiting_s = 0.0
        self._start = time.perf_counter()

    def __enter__(self) -> "EpochProgress":
        return self

    def __exit__(self, *exception) -> None:
        self._bar.close()

    def track(self, batches: Iterable[Batch]) -> Iterator[Batch]:
        """Yield the batches; measure the time spent waiting for them."""
        iterator = iter(batches)
        while True:
            start = time.perf_counter()
            batch = next(iterator, None)
            self._waiting_s += time.perf_counter() - start
            if batch is None:
                return
            yield batch
            if batch.batch_fraction:
                self._images += len(batch.labels) / batch.batch_fraction  # of the whole batch
            self._bar.update()

    def show(self, loss: float) -> None:
        """Show the loss of a batch and the throughput so far."""
        times = self.times()
        self._bar.set_postfix_str(
            f"loss {loss:.3f}, {times['images_per_s']:.0f} images/s, "
            f"{times['waiting_percent']:.0f} % waiting for data",
            refresh=False,
        )

    def times(self) -> dict[str, float]:
        """Return seconds, images per second (over all processes) and percent of time waiting."""
        seconds = time.perf_counter() - self._start
        return {
            "train_s": seconds,
            "images_per_s": self._images / seconds,
            "waiting_percent": 100 * self._waiting_s / seconds,
        }


class EvaluationProgress:
    """Bar over the batches of an evaluation, for the argument `progress` of `evaluate`.

    Args:
        batches: number of batches.
        interval: batches between updates, each of which waits for the device.
        shown: whether this process shows the bar.
    """

    def __init__(self, batches: int, interval: int, shown: bool = True):
        self._bar = tqdm(total=batches, unit="batch", disable=not shown)
        self._interval = interval
        self._done = 0

    def __enter__(self) -> "EvaluationProgress":
        return self

    def __exit__(self, *exception) -> None:
        self._bar.close()

    def __call__(self, scores_so_far: Callable[[], Scores]) -> None:
        self._done += 1
        if self._bar.disable or (self._done % self._interval and self._done < self._bar.total):
            return
        errors = scores_so_far().classifiers[0]
        self._bar.set_postfix_str(
            f"top-1 {errors.top1:.2f}%, top-5 {errors.top5:.2f}%", refresh=False
        )
        self._bar.update(self._done - self._bar.n)
