"""Looking at every image of a data set before hours are spent on it: which cannot be read, and what its boxes are like.

N images, K ground-truth boxes.
"""

import queue
import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from detector.data.box_counts import BoxCounts, count_boxes
from detector.data.images import read_image
from detector.data.samples import Dataset
from detector.errors import DatasetError


@dataclass(frozen=True)
class ImageProblem:
    """An image that cannot be used."""

    path: Path
    reason: str


@dataclass(frozen=True, eq=False)
class HealthReport:
    """What a check found; whether that is an error is the caller's to say."""

    images: int
    unusable: tuple[int, ...]
    """Positions of the images that cannot be read, or are of another size than the annotations say."""
    problems: tuple[ImageProblem, ...]
    """Of the first unusable ones, at most as many as were asked for."""
    boxes: int
    crowds: int
    difficult: int
    odd_boxes: BoxCounts
    """Of the boxes to train on, neither crowd nor difficult: those partly outside get clipped."""
    dropped_boxes: int
    """Boxes to train on that training drops, as less than a pixel of them lies within the image."""
    images_without_boxes: int
    tiny_images: int
    """With a side below `min_side_px`."""

    @property
    def healthy(self) -> bool:
        """Whether every image can be used."""
        return not self.unusable


def check_dataset(
    dataset: Dataset,
    *,
    workers: int = 4,
    progress: Callable[[int, int], None] | None = None,
    timeout_s: float = 120.0,
    min_side_px: int = 32,
    listed: int = 100,
) -> HealthReport:
    """Decodes every image, `workers` at a time, and counts what is odd about the boxes.

    Args:
        workers: threads; decoding releases Python's lock.
        progress: called in this thread with (images done, images in all).
        timeout_s: where no image gets done for so long (a hanging network mount), those being read and those not yet
            begun are reported as unusable, and the check ends.
        min_side_px: an image with a shorter side counts as tiny.
        listed: how many problems the report holds in words.
    """
    reasons = _unusable_images(dataset, workers, progress, timeout_s)
    unusable = tuple(sorted(reasons))
    per_image = np.diff(dataset.offsets)
    to_train_on = ~(dataset.is_crowd | dataset.is_difficult)
    sizes = np.repeat(dataset.image_sizes, per_image, axis=0)
    trained_on = sum(len(dataset.training_boxes(image)[1]) for image in range(len(dataset)))
    return HealthReport(
        images=len(dataset),
        unusable=unusable,
        problems=tuple(ImageProblem(dataset.image_paths[index], reasons[index]) for index in unusable[:listed]),
        boxes=len(dataset.labels),
        crowds=int(dataset.is_crowd.sum()),
        difficult=int(dataset.is_difficult.sum()),
        odd_boxes=count_boxes(dataset.boxes_xywh[to_train_on], sizes[to_train_on]),
        dropped_boxes=int(to_train_on.sum()) - trained_on,
        images_without_boxes=int((per_image == 0).sum()),
        tiny_images=int((dataset.image_sizes.min(axis=1) < min_side_px).sum()),
    )


def _unusable_images(
    dataset: Dataset, workers: int, progress: Callable[[int, int], None] | None, timeout_s: float
) -> dict[int, str]:
    """Position -> reason of the images that cannot be used."""
    to_do: queue.SimpleQueue[int] = queue.SimpleQueue()
    done: queue.SimpleQueue[tuple[int, str | None]] = queue.SimpleQueue()
    for index in range(len(dataset)):
        to_do.put(index)

    def work() -> None:
        while True:
            try:
                index = to_do.get_nowait()
            except queue.Empty:
                return
            done.put((index, _reason_against(dataset, index)))

    # Daemons, not an executor: a thread that hangs in a read must not keep the process from ending.
    for _ in range(min(workers, len(dataset))):
        threading.Thread(target=work, daemon=True).start()
    reasons: dict[int, str] = {}
    waiting = set(range(len(dataset)))
    while waiting:
        try:
            index, reason = done.get(timeout=timeout_s)
        except queue.Empty:
            while not to_do.empty():
                to_do.get()
            return reasons | dict.fromkeys(waiting, f"was not read: no image got done for {timeout_s:g} s")
        waiting.remove(index)
        if reason is not None:
            reasons[index] = reason
        if progress is not None:
            progress(len(dataset) - len(waiting), len(dataset))
    return reasons


def _reason_against(dataset: Dataset, index: int) -> str | None:
    """Why the image cannot be used; None where it can."""
    width, height = dataset.image_sizes[index].tolist()
    try:
        read_image(dataset.image_paths[index], expected_size=(width, height))
    except DatasetError as error:
        return error.problem
    return None
