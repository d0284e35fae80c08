"""Padding, by hand-computed cases."""

import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from detector.data.batching import collate
from detector.data.sizes import padded_shape
from detector.data.transforms import Sample

# Hypothesis's time limits would fail on a busy machine.
in_any_time = settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])


def sample(height: int, width: int, boxes: int = 0, index: int = 0) -> Sample:
    generator = torch.Generator().manual_seed(index)
    return Sample(
        image=torch.randint(1, 256, (3, height, width), dtype=torch.uint8, generator=generator),
        boxes=torch.arange(boxes * 4, dtype=torch.float32).reshape(boxes, 4) + 1,
        labels=torch.arange(boxes) + 1,
        image_index=index,
    )


def test_images_are_padded_at_the_bottom_and_right() -> None:
    samples = [sample(30, 50, boxes=2, index=4), sample(40, 33, boxes=1, index=9)]
    batch = collate(samples, size_divisor=32)
    assert tuple(batch.images.shape) == (2, 3, 64, 64)
    assert batch.images.dtype == torch.uint8
    assert batch.sizes.tolist() == [[30, 50], [40, 33]]
    for i, one in enumerate(samples):
        height, width = one.image.shape[1:]
        assert torch.equal(batch.images[i, :, :height, :width], one.image)
        assert batch.images[i].sum() == one.image.sum()
    assert batch.valid.tolist() == [[True, True], [True, False]]
    assert batch.boxes.tolist() == [[[1, 2, 3, 4], [5, 6, 7, 8]], [[1, 2, 3, 4], [0, 0, 0, 0]]]
    assert batch.labels.tolist() == [[1, 2], [1, 0]]
    assert batch.image_index.tolist() == [4, 9]
    assert batch.image_weight.tolist() == [1, 1]
    assert (batch.epoch, batch.step, batch.micro) == (0, 0, 0)


def test_a_batch_without_a_box_has_no_box_column() -> None:
    batch = collate([sample(8, 8), sample(8, 8)], size_divisor=8)
    assert tuple(batch.boxes.shape) == (2, 0, 4)
    assert tuple(batch.labels.shape) == (2, 0)
    assert tuple(batch.valid.shape) == (2, 0)
    assert batch.boxes.dtype == torch.float32


def test_fillers_are_the_last_images_and_weigh_nothing() -> None:
    samples = [sample(8, 8, index=i) for i in range(3)]
    assert collate(samples, 8, fillers=1).image_weight.tolist() == [1, 1, 0]
    assert collate(samples[:1], 8, fillers=1).image_weight.tolist() == [0]


@in_any_time
@given(st.lists(st.tuples(st.integers(1, 500), st.integers(1, 500)), min_size=1, max_size=5), st.sampled_from([1, 32]))
def test_the_padded_shape_is_the_smallest_multiple(sizes: list[tuple[int, int]], divisor: int) -> None:
    for padded, side in zip(padded_shape(sizes, divisor), zip(*sizes, strict=True), strict=True):
        assert padded % divisor == 0
        assert max(side) <= padded < max(side) + divisor


def test_moving_a_batch_keeps_everything() -> None:
    batch = collate([sample(8, 8, boxes=1, index=3)], 8)
    moved = batch.to("cpu")
    assert torch.equal(moved.images, batch.images)
    assert moved.to("meta").boxes.device.type == "meta"
    assert moved.image_index.tolist() == [3]
