"""Plan of batches: the images of every training epoch and of an evaluation, in order, without reading one.

n training images, of which every epoch shows each exactly once over all workers. The global batches of an epoch follow
from (seed, epoch, batch size) alone, so a position (epoch, step) is all there is to save, and going on from it reads
nothing; the number of workers and of micro-batches only decides how a global batch is shared out.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from detector.config import DataConfig
from detector.data.samples import Dataset
from detector.data.sizes import padded_shape, resize_shape
from detector.errors import ConfigError, DatasetError

Indices = NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class MicroBatch:
    """The images of one forward pass of one worker, and where in the run it stands."""

    epoch: int
    step: int
    micro: int
    images: Indices
    """Positions in the data set; one at least."""
    fillers: int = 0
    """So many of the last images are there to be counted for nothing."""


def trainable_images(dataset: Dataset, config: DataConfig) -> Indices:
    """Positions in the data set, in order, of the images to train on.

    Images without a box that `Dataset.training_boxes` returns or with a side below `min_image_side_px` are left out;
    then the first `train_limit` are taken. Raises `DatasetError` where none is left.
    """
    has_box = np.bincount(dataset.image_of_row[dataset.is_trainable], minlength=len(dataset)) > 0
    large_enough = dataset.image_sizes.min(axis=1) >= config.min_image_side_px
    images = np.flatnonzero(has_box & large_enough).astype(np.int64)
    if len(images) == 0:
        raise DatasetError(
            f"no image to train on: of {len(dataset)} images, {int(has_box.sum())} have a usable box and "
            f"{int(large_enough.sum())} have both sides of at least {config.min_image_side_px} px",
            file=dataset.name,
            remedy="Check that this is the right split, and data.classes and data.min_image_side_px",
        )
    return images[: config.train_limit]


def aspect_groups(dataset: Dataset, images: Indices, config: DataConfig) -> NDArray[np.bool_]:
    """(n,) True for images wider than high (MMDetection's two groups); all False with grouping switched off."""
    height, width = dataset.image_sizes[images].T
    return (width > height) & config.group_by_aspect_ratio


def epoch_batches(groups: NDArray[np.bool_], batch_size: int, seed: int, epoch: int) -> list[Indices]:
    """The global batches of one epoch: ceil(n / batch_size) arrays of positions in `groups`, each position once.

    Batches are filled within a group; what is left over of both groups is put together. Full batches come in random
    order and the one partial batch, if any, last. No images give no batches.

    Args:
        groups: (n,) from `aspect_groups`.
        seed, epoch: not negative.
    """
    random = np.random.Generator(np.random.PCG64([seed, epoch]))
    full: list[Indices] = []
    left_over: list[Indices] = []
    for group in (False, True):
        members = random.permutation(np.flatnonzero(groups == group)).astype(np.int64)
        end = len(members) - len(members) % batch_size
        full += np.split(members[:end], end // batch_size) if end else []
        left_over.append(members[end:])
    mixed = np.concatenate(left_over)
    if len(mixed) >= batch_size:
        full.append(mixed[:batch_size])
        mixed = mixed[batch_size:]
    shuffled = [full[i] for i in random.permutation(len(full))]
    return [*shuffled, mixed] if len(mixed) else shuffled


def share(batch: Indices, rank: int, world_size: int, accumulation: int) -> list[Indices]:
    """One worker's part of a global batch, in `accumulation` micro-batches of nearly equal size.

    Over all ranks, the parts hold every image of the batch once. A part is empty where there are fewer images than
    parts; the worker must then run a filler image of weight 0, for the collective operations need every rank.
    """
    return np.array_split(batch[rank::world_size], accumulation)


class TrainingPlan:
    """The micro-batches of one worker from a position to the end of the run; iterating starts anew each time.

    Args:
        images: (n,) from `trainable_images`.
        groups: (n,) from `aspect_groups`.
        start_epoch, start_step: the first global batch still to be done; `start_step` may be the number of steps of
            an epoch, which is the start of the next.
        epochs: where the run ends.
    """

    def __init__(
        self,
        images: Indices,
        groups: NDArray[np.bool_],
        *,
        seed: int,
        start_epoch: int,
        start_step: int,
        epochs: int,
        batch_size: int,
        rank: int,
        world_size: int,
        accumulation: int,
    ) -> None:
        self.images = images
        self.groups = groups
        self.seed = seed
        self.start_epoch = start_epoch
        self.start_step = start_step
        self.epochs = epochs
        self.batch_size = batch_size
        self.rank = rank
        self.world_size = world_size
        self.accumulation = accumulation
        self.steps_per_epoch = -(-len(images) // batch_size)
        if not 0 <= start_step <= self.steps_per_epoch:
            raise ConfigError(
                "is not a step of this run's epochs",
                field="start_step",
                value=start_step,
                remedy=f"With {len(images)} images in batches of {batch_size} an epoch has {self.steps_per_epoch}",
            )

    def __len__(self) -> int:
        steps = (self.epochs - self.start_epoch) * self.steps_per_epoch - self.start_step
        return max(steps, 0) * self.accumulation

    def __iter__(self) -> Iterator[MicroBatch]:
        first_step = self.start_step
        for epoch in range(self.start_epoch, self.epochs):
            batches = epoch_batches(self.groups, self.batch_size, self.seed, epoch)
            for step in range(first_step, len(batches)):
                parts = share(batches[step], self.rank, self.world_size, self.accumulation)
                for micro, part in enumerate(parts):
                    # Any image will do as the filler; one of this batch keeps to the shapes the step has anyway.
                    positions, fillers = (part, 0) if len(part) else (batches[step][:1], 1)
                    yield MicroBatch(epoch, step, micro, self.images[positions], fillers)
            first_step = 0


def evaluation_batches(image_sizes: Indices, config: DataConfig, batch_size: int) -> list[Indices]:
    """Global evaluation batches, each of images with one and the same padded shape; every image once.

    An image's padded shape follows from its own size, so its detections depend neither on its batch nor on the number
    of workers: rank r of R evaluates the batches [r::R]. The largest shapes come first: where memory is short, that
    shows at once. No images give no batches.

    Args:
        image_sizes: (N, 2) height, width (`Dataset.image_sizes`).
    """
    by_shape: dict[tuple[int, int], list[int]] = {}
    for image, (height, width) in enumerate(image_sizes.tolist()):
        resized = resize_shape(height, width, config.short_side_px, config.long_side_px)
        by_shape.setdefault(padded_shape([resized], config.size_divisor), []).append(image)
    largest_first = sorted(by_shape.items(), key=lambda item: (-item[0][0] * item[0][1], item[0]))
    return [
        np.array(images[start : start + batch_size], dtype=np.int64)
        for _, images in largest_first
        for start in range(0, len(images), batch_size)
    ]
