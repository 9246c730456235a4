"""Progress bars, with the remaining time of the whole run."""

import time
from collections.abc import Iterable, Iterator

from tqdm import tqdm

from .distributed import rank

MIN_CELLS = 4  # of the bar; on narrow terminals, less is said beside it


class Bar(tqdm):
    """A bar of one line that fits the terminal.

    It shows `status`, the first of several texts that fits. tqdm's own remaining time is left out:
    it would be that of the epoch.
    """

    statuses = ("",)  # from the longest to the shortest

    def __init__(self, *args, **options):
        layout = "{desc}{percentage:4.0f}%|{bar}|{status}"
        super().__init__(*args, bar_format=layout, dynamic_ncols=True, leave=False, **options)

    @property
    def format_dict(self) -> dict:
        values = super().format_dict
        used = len(f"{self.desc} 100%||") + MIN_CELLS
        columns = values["ncols"] or 80
        fits = (text for text in self.statuses if used + len(text) <= columns)
        return values | {"status": next(fits, "")}


class Progress:
    """A bar over the steps of an epoch, shown by process 0 in a terminal.

    Args:
        description: for example `epoch 3/200`.
        steps: number of steps in this epoch.
        steps_after: number of steps in the remaining epochs.
    """

    def __init__(self, description: str, steps: int, steps_after: int = 0):
        disable = None if rank() == 0 else True  # None: show the bar in terminals only
        self._bar = Bar(total=steps, desc=description, disable=disable)
        self._steps_after = steps_after
        self._start = time.perf_counter()

    def __enter__(self) -> "Progress":
        return self

    def __exit__(self, *exception) -> None:
        self._bar.close()

    def over(self, batches: Iterable) -> Iterator:
        """Yield the batches and advance the bar after each of them."""
        for batch in batches:
            yield batch
            self._bar.update()

    def show(self, images: int, loss: float, error: float) -> None:
        """Show the loss and the error (percent), averaged over the epoch's first `images`."""
        seconds = time.perf_counter() - self._start
        steps = self._bar.n + 1
        left = seconds / steps * (self._bar.total - steps + self._steps_after)
        self._bar.statuses = status_texts(loss, error, images / seconds, left)


def status_texts(loss: float, error: float, images_per_s: float, left_s: float) -> tuple[str, ...]:
    """Return what is said beside the bar, from the longest to the shortest version."""
    left, error_text = f"{format_duration(left_s)} left", f"error {error:.1f} %"
    loss_text = f"loss {loss:.2f} {error_text}"
    return (
        f" {loss_text} {images_per_s:.0f} img/s, {left}",
        f" {loss_text}, {left}",
        f" {error_text}, {left}",
        f" {left}",
    )


def format_duration(seconds: float) -> str:
    """Format seconds in the two largest units of days, hours, minutes and seconds."""
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    days, hours = divmod(hours, 24)
    if days:
        return f"{days} d {hours} h"
    if hours:
        return f"{hours} h {minutes:02} min"
    return f"{minutes} min {seconds:02} s" if minutes else f"{seconds} s"
