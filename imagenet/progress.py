"""Progress bars: training with its throughput, evaluation with its running errors."""

import time
from collections.abc import Callable, Iterable, Iterator

from common.distributed import rank
from common.progress import Bar, format_duration
from evaluate import Scores
from loader import Batch


class EpochProgress:
    """Bar over the steps of a training epoch, with throughput and time spent waiting for data.

    Args:
        description: of the bar.
        first_step: number of steps of the epoch that are already done.
        steps: number of steps in the epoch.
        steps_after: number of steps in the remaining epochs.
    """

    def __init__(self, description: str, first_step: int, steps: int, steps_after: int = 0):
        hidden = None if rank() == 0 else True  # None: hidden unless there is a terminal
        self._bar = Bar(total=steps, initial=first_step, desc=description, disable=hidden)
        self._first_step = first_step
        self._steps_after = steps_after
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
        """Show the loss of a batch, the throughput so far and the remaining time of the run."""
        times, done = self.times(), self._bar.n + 1 - self._first_step
        to_do = self._bar.total - self._bar.n - 1 + self._steps_after
        left = f", {format_duration(times['train_s'] / done * to_do)} left"
        rate = f" {times['images_per_s']:.0f} img/s"
        waiting = f", {times['waiting_percent']:.0f} % waiting"  # for data
        text = f" loss {loss:.2f}"
        self._bar.statuses = (text + rate + waiting + left, text + rate + left, text + left, left)

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
        hidden = None if shown else True  # None: hidden unless there is a terminal
        self._bar = Bar(total=batches, disable=hidden)
        self._interval = interval
        self._done = 0
        self._start = time.perf_counter()

    def __enter__(self) -> "EvaluationProgress":
        return self

    def __exit__(self, *exception) -> None:
        self._bar.close()

    def __call__(self, scores_so_far: Callable[[], Scores]) -> None:
        self._done += 1
        if self._bar.disable or (self._done % self._interval and self._done < self._bar.total):
            return
        errors = scores_so_far().classifiers[0]
        seconds = time.perf_counter() - self._start
        left = f", {format_duration(seconds / self._done * (self._bar.total - self._done))} left"
        top1 = f" top-1 error {errors.top1_error:.2f} %"
        both = f"{top1}, top-5 error {errors.top5_error:.2f} %"
        self._bar.statuses = (both + left, both, top1)
        self._bar.update(self._done - self._bar.n)
