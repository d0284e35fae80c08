"""The exact sampler: every image once an epoch, on any number of workers, from any position."""

from collections import Counter
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from detector.config import DataConfig
from detector.data.epoch_plan import (
    MicroBatch,
    TrainingPlan,
    aspect_groups,
    epoch_batches,
    evaluation_batches,
    share,
    trainable_images,
)
from detector.data.samples import Category, Dataset
from detector.data.sizes import resize_shape
from detector.errors import ConfigError, DatasetError

# Hypothesis's time limits would fail on a busy machine.
in_any_time = settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])


SIZES = np.array([[480, 640], [640, 480], [500, 500]])


def dataset_of(
    sizes: list[list[int]], boxes: list[list[list[float]]], flagged: frozenset[int] = frozenset()
) -> Dataset:
    """Images of these heights and widths with these x, y, w, h boxes each; rows in `flagged` are crowds."""
    rows = [box for image in boxes for box in image]
    return Dataset(
        name="made/train",
        categories=(Category(1, "thing"),),
        image_paths=tuple(Path(f"/nowhere/{i}.jpg") for i in range(len(sizes))),
        image_ids=tuple(range(len(sizes))),
        image_sizes=np.array(sizes, dtype=np.int64).reshape(-1, 2),
        offsets=np.cumsum([0] + [len(image) for image in boxes]),
        boxes_xywh=np.array(rows, dtype=np.float64).reshape(-1, 4),
        labels=np.zeros(len(rows), dtype=np.int64),
        areas=np.ones(len(rows)),
        is_crowd=np.isin(np.arange(len(rows)), list(flagged)),
        is_difficult=np.zeros(len(rows), dtype=bool),
    )


def plan_of(images: int, **changes: int) -> TrainingPlan:
    arguments = {"seed": 1, "start_epoch": 0, "start_step": 0, "epochs": 3, "batch_size": 4, "rank": 0}
    arguments |= {"world_size": 1, "accumulation": 1} | changes
    groups = np.arange(images) % 3 == 0
    return TrainingPlan(np.arange(images) * 10, groups, **arguments)


def positions(parts: list[MicroBatch]) -> list[tuple[int, int, int, list[int], int]]:
    return [(p.epoch, p.step, p.micro, p.images.tolist(), p.fillers) for p in parts]


def test_images_without_a_usable_box_or_too_small_are_left_out() -> None:
    dataset = dataset_of(
        [[80, 100], [80, 100], [80, 100], [20, 100], [80, 100], [80, 100]],
        [
            [[1, 1, 10, 10]],
            [],
            [[5, 5, 0.5, 30], [95, 5, 20, 0], [-30, 0, 30.5, 30], [1, 1, 10, 10]],  # thin, empty, outside, crowd
            [[1, 1, 10, 10]],
            [[98.5, 5, 20, 20]],  # 1.5 px wide within the image
            [[1, 1, 10, 10], [2, 2, 5, 5]],
        ],
        flagged=frozenset({4}),
    )
    assert trainable_images(dataset, DataConfig()).tolist() == [0, 4, 5]
    assert trainable_images(dataset, DataConfig(train_limit=2)).tolist() == [0, 4]
    assert trainable_images(dataset, DataConfig(min_image_side_px=20)).tolist() == [0, 3, 4, 5]


box = st.tuples(st.floats(-50, 150), st.floats(-50, 150), st.floats(-5, 60), st.floats(-5, 60))


@in_any_time
@given(st.lists(st.lists(box, max_size=3), min_size=1, max_size=6), st.sets(st.integers(0, 17)))
def test_trainable_images_are_those_with_training_boxes(boxes: list[list[tuple[float, ...]]], crowds: set[int]) -> None:
    dataset = dataset_of([[60, 100]] * len(boxes), [list(map(list, image)) for image in boxes], frozenset(crowds))
    expected = [i for i in range(len(dataset)) if len(dataset.training_boxes(i)[0])]
    if expected:
        assert trainable_images(dataset, DataConfig()).tolist() == expected
    else:
        with pytest.raises(DatasetError):
            trainable_images(dataset, DataConfig())


@pytest.mark.parametrize("images", [0, 2])
def test_nothing_to_train_on_says_why(images: int) -> None:
    dataset = dataset_of([[480, 640]] * images, [[]] * images)
    with pytest.raises(DatasetError, match=rf"made/train: no image to train on: of {images} images, 0 have a usable"):
        trainable_images(dataset, DataConfig())


def test_the_aspect_groups_are_landscape_and_the_rest() -> None:
    dataset = dataset_of(SIZES.tolist(), [[]] * 3)
    assert aspect_groups(dataset, np.arange(3), DataConfig()).tolist() == [True, False, False]
    assert aspect_groups(dataset, np.array([2, 0]), DataConfig()).tolist() == [False, True]
    assert not aspect_groups(dataset, np.arange(3), DataConfig(group_by_aspect_ratio=False)).any()


@in_any_time
@given(st.lists(st.booleans(), max_size=60), st.integers(1, 12), st.integers(0, 5), st.integers(0, 5))
def test_an_epoch_shows_each_image_once_in_grouped_batches(
    groups: list[bool], batch_size: int, seed: int, epoch: int
) -> None:
    batches = epoch_batches(np.array(groups, dtype=bool), batch_size, seed, epoch)
    assert sorted(np.concatenate([np.zeros(0, dtype=int), *batches]).tolist()) == list(range(len(groups)))
    assert len(batches) == -(-len(groups) // batch_size)
    assert all(len(batch) == batch_size for batch in batches[:-1])
    assert all(batch.dtype == np.int64 for batch in batches)
    mixed = [batch for batch in batches if len({groups[i] for i in batch}) > 1]
    assert len(mixed) <= 2
    pure = Counter(
        groups[batch[0]] for batch in batches if len(batch) == batch_size and len({groups[i] for i in batch}) == 1
    )
    assert all(pure[group] >= groups.count(group) // batch_size for group in (False, True))
    again = epoch_batches(np.array(groups, dtype=bool), batch_size, seed, epoch)
    assert [b.tolist() for b in again] == [b.tolist() for b in batches]


def test_epochs_and_seeds_differ_and_groups_are_interleaved() -> None:
    groups = np.arange(400) < 200
    orders = [np.concatenate(epoch_batches(groups, 8, seed, epoch)).tolist() for seed in (0, 1) for epoch in (0, 1)]
    assert len({tuple(order) for order in orders}) == 4
    kinds = [bool(groups[batch[0]]) for batch in epoch_batches(groups, 8, 0, 0)]
    changes = sum(a != b for a, b in pairwise(kinds))
    assert 15 < changes < 35  # of 49; 1 would be sorted


@in_any_time
@given(st.integers(0, 40), st.integers(1, 9), st.integers(1, 6))
def test_the_shares_of_a_batch_are_the_batch(size: int, world_size: int, accumulation: int) -> None:
    batch = np.random.default_rng(0).permutation(size)
    parts = [share(batch, rank, world_size, accumulation) for rank in range(world_size)]
    assert all(len(of_rank) == accumulation for of_rank in parts)
    everything = [image for of_rank in parts for part in of_rank for image in part.tolist()]
    assert sorted(everything) == list(range(size))
    ranks = [sum(map(len, of_rank)) for of_rank in parts]
    assert max(ranks) - min(ranks) <= 1
    assert all(max(map(len, of_rank)) - min(map(len, of_rank)) <= 1 for of_rank in parts)


def test_shares_by_hand() -> None:
    batch = np.array([5, 6, 7, 8, 9])
    assert [part.tolist() for part in share(batch, 0, 2, 2)] == [[5, 7], [9]]
    assert [part.tolist() for part in share(batch, 1, 2, 2)] == [[6], [8]]
    assert [part.tolist() for part in share(batch[:1], 1, 2, 2)] == [[], []]


@in_any_time
@given(st.integers(1, 30), st.integers(1, 8), st.integers(1, 4), st.integers(1, 4), st.data())
def test_a_plan_goes_on_from_any_position(
    images: int, batch_size: int, world_size: int, accumulation: int, data: st.DataObject
) -> None:
    fixed = {"batch_size": batch_size, "world_size": world_size, "accumulation": accumulation}
    rank = data.draw(st.integers(0, world_size - 1))
    whole = plan_of(images, rank=rank, **fixed)
    epoch = data.draw(st.integers(0, 3))
    step = data.draw(st.integers(0, whole.steps_per_epoch))
    if epoch == 3:
        step = 0
    rest = plan_of(images, rank=rank, start_epoch=epoch, start_step=step, **fixed)
    done = (epoch * whole.steps_per_epoch + step) * accumulation
    assert positions(list(rest)) == positions(list(whole))[done:]
    assert len(rest) == len(list(rest)) == len(whole) - done


@in_any_time
@given(st.integers(1, 30), st.integers(1, 8), st.integers(1, 4), st.integers(1, 4))
def test_all_ranks_together_show_each_image_once_an_epoch(
    images: int, batch_size: int, world_size: int, accumulation: int
) -> None:
    fixed = {"batch_size": batch_size, "world_size": world_size, "accumulation": accumulation}
    per_rank = [list(plan_of(images, rank=rank, **fixed)) for rank in range(world_size)]
    assert len({len(parts) for parts in per_rank}) == 1
    for epoch in range(3):
        seen = [
            image
            for parts in per_rank
            for part in parts
            if part.epoch == epoch
            for image in part.images[: len(part.images) - part.fillers].tolist()
        ]
        assert sorted(seen) == [10 * i for i in range(images)]
    # The same step on every rank holds the images of the one global batch, fillers included.
    one_worker = {(p.epoch, p.step): set(p.images.tolist()) for p in plan_of(images, batch_size=batch_size)}
    for parts in per_rank:
        for part in parts:
            assert len(part.images) >= 1
            assert set(part.images.tolist()) <= one_worker[part.epoch, part.step]


def test_a_worker_without_images_gets_a_filler() -> None:
    parts = list(plan_of(5, epochs=1, world_size=2, rank=1, accumulation=2))
    assert [(p.step, p.micro, len(p.images), p.fillers) for p in parts] == [
        (0, 0, 1, 0), (0, 1, 1, 0), (1, 0, 1, 1), (1, 1, 1, 1)
    ]  # fmt: skip


def test_a_position_beyond_the_epoch_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"start_step: .*found 4\). With 9 images in batches of 4 an epoch has 3"):
        plan_of(9, start_step=4)


def test_a_finished_run_has_no_batch_left() -> None:
    assert list(plan_of(9, start_epoch=3)) == []
    assert len(plan_of(9, start_epoch=3)) == 0


def test_going_on_late_in_a_long_run_is_instant() -> None:
    groups = np.arange(118_000) % 4 == 0
    late = TrainingPlan(
        np.arange(118_000), groups, seed=0, start_epoch=11, start_step=7000, epochs=12,
        batch_size=16, rank=0, world_size=1, accumulation=1,
    )  # fmt: skip
    first = next(iter(late))
    assert (first.epoch, first.step) == (11, 7000)
    assert len(late) == 375


sizes = st.lists(st.tuples(st.integers(1, 900), st.integers(1, 900)), max_size=30)


@in_any_time
@given(sizes, st.integers(1, 6))
def test_an_evaluation_shows_each_image_once_at_its_own_shape(images: list[tuple[int, int]], batch_size: int) -> None:
    config = DataConfig(short_side_px=200, long_side_px=320, size_divisor=32)
    batches = evaluation_batches(np.array(images, dtype=np.int64).reshape(-1, 2), config, batch_size)
    assert sorted(np.concatenate([np.zeros(0, dtype=int), *batches]).tolist()) == list(range(len(images)))
    areas = []
    for batch in batches:
        assert 1 <= len(batch) <= batch_size
        shapes = {tuple(-(-side // 32) * 32 for side in resize_shape(*images[i], 200, 320)) for i in batch}
        assert len(shapes) == 1
        height, width = shapes.pop()
        areas.append(height * width)
    assert areas == sorted(areas, reverse=True)


def test_evaluation_of_nothing_has_no_batches() -> None:
    assert evaluation_batches(np.zeros((0, 2), dtype=np.int64), DataConfig(), 4) == []
