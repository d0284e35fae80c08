"""Pace of a training: images a second, and the share of the time in which it waits for data."""

import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from detector.data.batching import Batch


@dataclass(frozen=True)
class Moment:
    """Time since an arbitrary one, and the part of it that was spent waiting for data."""

    at_s: float
    waited_s: float


class Throughput:
    """Pace between the steps that were read last, without evaluations and checkpoints."""

    def __init__(self) -> None:
        self._waited_s = 0.0
        self.restart()

    def now(self) -> Moment:
        """The present moment; a step is launched at one and read at a later one."""
        return Moment(time.monotonic(), self._waited_s)

    def restart(self) -> None:
        """Count from now on."""
        self._images = 0.0
        self._since = self._latest = self.now()

    def timed(self, batches: Iterable[Batch]) -> Iterator[Batch]:
        """The batches, while counting the time until each has arrived."""
        iterator = iter(batches)
        while True:
            asked = time.monotonic()
            try:
                batch = next(iterator)
            except StopIteration:
                return
            self._waited_s += time.monotonic() - asked
            yield batch

    def count(self, images: float, launched: Moment) -> None:
        """Count the images of a step."""
        self._images += images
        self._latest = launched

    def pace(self) -> dict[str, float]:
        """'images_per_s' and 'data_wait' (0 to 1) since the last call, up to the launch of the last counted step.

        Empty where no time has passed.
        """
        elapsed, waited = self._latest.at_s - self._since.at_s, self._latest.waited_s - self._since.waited_s
        images, self._images, self._since = self._images, 0.0, self._latest
        return {"images_per_s": images / elapsed, "data_wait": waited / elapsed} if elapsed > 0 else {}
