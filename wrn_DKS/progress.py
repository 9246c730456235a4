"""Progress bars, with the remaining time of the whole run."""

import time
from collections.abc import Iterable, Iterator

from tqdm import tqdm

from common.distributed import rank


class Progress:
    """A tqdm bar over the steps of an epoch, shown by process 0 in a terminal.

    Args:
        description: for example `epoch 3/200`.
        steps: number of steps in this epoch.
        steps_after: number of steps in the remaining epochs.
    """

    def __init__(self, description: str, steps: int, steps_after: int = 0):
        disable = None if rank() == 0 else True  # None: show the bar in terminals only
        self._bar = tqdm(total=steps, desc=description, leave=False, disable=disable)
        self._steps_after = steps_after
        self._start = time.perf_counter()

    def over(self, batches: Iterable) -> Iterator:
        """Yield the batches and advance the bar after each of them."""
        with self._bar:
            for batch in batches:
                yield batch
                self._bar.update()

    def show(self, images: int, loss: float, error: float) -> None:
        """Show the loss and the error (percent), averaged over the epoch's first `images`."""
        seconds = time.perf_counter() - self._start
        steps = self._bar.n + 1
        left = seconds / steps * (self._bar.total - steps + self._steps_after)
        self._bar.set_postfix_str(
            f"loss {loss:.3f}, error {error:.2f} %, {images / seconds:.0f} images/s, "
            f"{format_duration(left)} remaining",
            refresh=False,
        )


def format_duration(seconds: float) -> str:
    """Format seconds in the two largest units of days, hours, minutes and seconds."""
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    days, hours = divmod(hours, 24)
    if days:
        return f"{days} d {hours} h"
    if hours:
        return f"{hours} h {minutes} min"
    return f"{minutes} min {seconds} s" if minutes else f"{seconds} s"
