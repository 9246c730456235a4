"""The bar of an epoch, with the time that is left of the whole run."""

import time
from collections.abc import Iterable, Iterator

from tqdm import tqdm

from common.distributed import rank


class Progress:
    """A tqdm bar over the steps of an epoch; none where there is no terminal to show it.

    Args:
        description: what is going on, such as `epoch 3/200`.
        steps: of this epoch.
        steps_after: of the run, once this epoch is done.
    """

    def __init__(self, description: str, steps: int, steps_after: int = 0):
        hidden = None if rank() == 0 else True
        self._bar = tqdm(total=steps, desc=description, leave=False, disable=hidden)
        self._steps_after = steps_after
        self._images = 0
        self._start = time.perf_counter()

    def over(self, batches: Iterable) -> Iterator:
        """Go through the batches, a step of the bar for each."""
        with self._bar:
            for batch in batches:
                yield batch
                self._bar.update()

    def show(self, images: int, loss: float, error: float) -> None:
        """Show the mean loss and the error (%) over the `images` seen up to now."""
        seconds = time.perf_counter() - self._start
        steps = self._bar.n + 1
        left = seconds / steps * (self._bar.total - steps + self._steps_after)
        self._bar.set_postfix_str(
            f"loss {loss:.3f}, error {error:.2f} %, {images / seconds:.0f} images/s, "
            f"{duration(left)} left of the run",
            refresh=False,
        )


def duration(seconds: float) -> str:
    """Seconds as days, hours, minutes or seconds: the two largest units."""
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    days, hours = divmod(hours, 24)
    if days:
        return f"{days} d {hours} h"
    if hours:
        return f"{hours} h {minutes} min"
    return f"{minutes} min {seconds} s" if minutes else f"{seconds} s"
