"""Health check of a data set before hours are spent on it: unusable images, and counts of odd boxes.

N images, K ground-truth boxes. A second of CPU time checks 680 photographs of COCO (663 to 694 in ten repetitions over
the 89 of a slice of COCO, 163 kB each, on an AMD EPYC core): train2017 and val2017 together take three minutes of one.
"""

import os
import queue
import threading
from collections.abc import Callable, Iterable
from contextlib import nullcontext, suppress
from dataclasses import dataclass

import numpy as np

from detector.data.box_counts import BoxCounts, count_boxes
from detector.data.images import check_image
from detector.data.samples import Dataset
from detector.errors import DatasetError

LARGE_PIXELS = 10_000_000
LARGE_AT_ONCE = 4
"""Larger images than that are decoded so many at a time: 32 of 100 megapixels would take 10 GB."""

Progress = Callable[[int, int], None]
"""Called with (images done, number of images)."""


def find_unusable(
    dataset: Dataset,
    images: Iterable[int] | None = None,
    *,
    workers: int | None = None,
    progress: Progress | None = None,
    timeout_s: float = 120.0,
) -> dict[int, str]:
    """Decode images, several at a time: position -> reason of those that cannot be used, in order.

    Args:
        images: positions in the data set; None: all.
        workers: threads, as decoding releases Python's lock; None: one for each CPU, from 4 (storage may be far away)
            to 32.
        progress: called in this thread.
        timeout_s: where no image gets done for so long (a hanging network mount), those being read and those not yet
            begun are reported as unusable, and the check ends.
    """
    waiting = set(range(len(dataset)) if images is None else images)
    total = len(waiting)
    to_do: queue.SimpleQueue[int] = queue.SimpleQueue()
    done: queue.SimpleQueue[tuple[int, str | None]] = queue.SimpleQueue()
    large = threading.Semaphore(LARGE_AT_ONCE)
    for index in sorted(waiting):
        to_do.put(index)

    def work() -> None:
        while True:
            try:
                index = to_do.get_nowait()
            except queue.Empty:
                return
            # A file of another size than annotated is not decoded, so the annotations can be relied on.
            with large if dataset.image_sizes[index].prod() > LARGE_PIXELS else nullcontext():
                done.put((index, _reason_against(dataset, index)))

    # Daemons, not an executor: a thread that hangs in a read must not keep the process from ending.
    for _ in range(min(workers or _default_workers(), total)):
        threading.Thread(target=work, daemon=True).start()
    reasons: dict[int, str] = {}
    while waiting:
        try:
            index, reason = done.get(timeout=timeout_s)
        except queue.Empty:
            with suppress(queue.Empty):
                while True:
                    to_do.get_nowait()
            reasons |= dict.fromkeys(waiting, f"was not read: no image got done for {timeout_s:g} s")
            break
        waiting.remove(index)
        if reason is not None:
            reasons[index] = reason
        if progress is not None:
            progress(total - len(waiting), total)
    return dict(sorted(reasons.items()))


def _default_workers() -> int:
    cpus = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(max(cpus, 4), 32)


def _reason_against(dataset: Dataset, index: int) -> str | None:
    """Why the image cannot be used; None where it can."""
    height, width = dataset.image_sizes[index].tolist()
    try:
        check_image(dataset.image_paths[index], expected_size=(height, width))
    except DatasetError as error:
        return error.problem
    return None


@dataclass(frozen=True)
class Contents:
    """Content of a split by its annotations."""

    images: int
    boxes: int
    crowds: int
    difficult: int
    odd_boxes: BoxCounts
    """Counts over the boxes to train on, neither crowd nor difficult: those partly outside get clipped."""
    dropped_boxes: int
    """Boxes to train on that training drops, as less than a pixel of them lies within the image."""
    images_without_boxes: int
    tiny_images: int
    """With a side below `min_side_px`."""


def count_contents(dataset: Dataset, min_side_px: int = 32) -> Contents:
    """Counts images and boxes, and what is odd about them; reads no image."""
    to_train_on = ~(dataset.is_crowd | dataset.is_difficult)
    sizes = dataset.image_sizes[dataset.image_of_row]
    return Contents(
        images=len(dataset),
        boxes=len(dataset.labels),
        crowds=int(dataset.is_crowd.sum()),
        difficult=int(dataset.is_difficult.sum()),
        odd_boxes=count_boxes(dataset.boxes_xywh[to_train_on], sizes[to_train_on]),
        dropped_boxes=int((to_train_on & ~dataset.is_trainable).sum()),
        images_without_boxes=int((np.diff(dataset.offsets) == 0).sum()),
        tiny_images=int((dataset.image_sizes.min(axis=1) < min_side_px).sum()),
    )
