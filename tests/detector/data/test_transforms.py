"""Resizing, flipping and the way back, by hand-computed cases and as properties."""

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from detector.config import DataConfig
from detector.data.samples import Category, Dataset
from detector.data.transforms import (
    _splitmix64,
    flip_boxes,
    flips,
    load_sample,
    resize_image,
    resize_shape,
    to_original_frame,
)
from detector.errors import DatasetError

# Hypothesis's time limits would fail on a busy machine.
in_any_time = settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])


def one_image(path: Path, boxes: list[list[float]]) -> Dataset:
    """A picture 20 wide and 10 high: left half red, right half blue."""
    pixels = np.zeros((10, 20, 3), dtype=np.uint8)
    pixels[:, :10, 0] = 255
    pixels[:, 10:, 2] = 255
    Image.fromarray(pixels).save(path)
    count = len(boxes)
    return Dataset(
        name="one",
        categories=(Category(1, "thing"),),
        image_paths=(path,),
        image_ids=(1,),
        image_sizes=np.array([[10, 20]]),
        offsets=np.array([0, count]),
        boxes_xywh=np.array(boxes, dtype=np.float64).reshape(-1, 4),
        labels=np.zeros(count, dtype=np.int64),
        areas=np.ones(count),
        is_crowd=np.zeros(count, dtype=bool),
        is_difficult=np.zeros(count, dtype=bool),
    )


@pytest.mark.parametrize(
    ("size", "limits", "expected"),
    [
        ((480, 640), (800, 1333), (800, 1067)),  # 640 * 800 / 480 = 1066.67
        ((640, 480), (800, 1333), (1067, 800)),
        ((427, 640), (800, 1333), (800, 1199)),
        ((300, 1000), (800, 1333), (400, 1333)),  # the long side decides: 300 * 1.333 = 399.9
        ((375, 500), (600, 1000), (600, 800)),
        ((333, 500), (600, 1000), (600, 901)),  # 500 * 600 / 333 = 900.9
        ((800, 1333), (800, 1333), (800, 1333)),
        ((3000, 4000), (800, 1333), (800, 1067)),
        ((4000, 1), (800, 1333), (1333, 1)),  # 1 * 0.333 rounds to 0
        ((1, 1), (800, 1333), (800, 800)),
    ],
)
def test_resize_shape_rounds_like_mmdetection(
    size: tuple[int, int], limits: tuple[int, int], expected: tuple[int, int]
) -> None:
    assert resize_shape(*size, *limits) == expected


@in_any_time
@given(st.integers(1, 5000), st.integers(1, 5000))
def test_a_resized_image_fits_and_touches_one_limit(height: int, width: int) -> None:
    h, w = resize_shape(height, width, 600, 1000)
    assert 1 <= min(h, w) <= 600
    assert max(h, w) <= 1000
    assert min(h, w) == 600 or max(h, w) == 1000
    assert resize_shape(width, height, 600, 1000) == (w, h)


@pytest.mark.parametrize("shape", [(80, 107), (61, 80), (60, 81), (600, 800), (480, 640)])
def test_when_enlarging_antialias_changes_no_bit(shape: tuple[int, int]) -> None:
    image = torch.randint(0, 256, (3, 60, 80), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    plain = torch.nn.functional.interpolate(image[None], size=shape, mode="bilinear", antialias=False)[0]
    exact = torch.nn.functional.interpolate(image[None].double(), size=shape, mode="bilinear")[0]
    resized = resize_image(image, shape)
    assert torch.equal(resized, plain)
    assert resized.dtype == torch.uint8
    assert (resized - exact).abs().max() <= 1.01


def test_shrinking_averages() -> None:
    stripes = torch.zeros(3, 8, 8, dtype=torch.uint8)
    stripes[:, :, ::2] = 200
    assert (resize_image(stripes, (2, 2)).int() - 100).abs().max() <= 30


def test_a_sample_is_resized_with_its_boxes(tmp_path: Path) -> None:
    dataset = one_image(tmp_path / "a.png", [[2, 1, 4, 8], [15, 5, 10, 10]])
    sample = load_sample(dataset, 0, DataConfig(short_side_px=25, long_side_px=50), flip=False)
    assert tuple(sample.image.shape) == (3, 25, 50)
    assert sample.image.dtype == torch.uint8
    assert sample.image_index == 0
    # The second box is clipped to the image, 15..20 x 5..10, before it is scaled by 2.5.
    assert sample.boxes.tolist() == [[5, 2.5, 15, 22.5], [37.5, 12.5, 50, 25]]
    assert sample.boxes.dtype == torch.float32
    assert sample.labels.tolist() == [0, 0]
    assert sample.image[:, 12, 5].tolist() == [255, 0, 0]


def test_a_flipped_sample_is_the_mirror_image(tmp_path: Path) -> None:
    dataset = one_image(tmp_path / "a.png", [[2, 1, 4, 8]])
    config = DataConfig(short_side_px=20, long_side_px=40)
    plain, mirrored = (load_sample(dataset, 0, config, flip) for flip in (False, True))
    assert torch.equal(mirrored.image.flip(-1), plain.image)
    assert plain.boxes.tolist() == [[4, 2, 12, 18]]
    assert mirrored.boxes.tolist() == [[28, 2, 36, 18]]
    assert mirrored.image[:, 10, 5].tolist() == [0, 0, 255]


def test_rounding_scales_the_axes_apart(tmp_path: Path) -> None:
    dataset = one_image(tmp_path / "a.png", [[0, 0, 20, 10]])
    sample = load_sample(dataset, 0, DataConfig(short_side_px=7, long_side_px=13), flip=False)
    assert tuple(sample.image.shape[1:]) == (7, 13)  # 10 * 0.65 = 6.5 becomes 7
    assert sample.boxes.tolist() == [[0, 0, 13, 7]]


def test_an_image_without_boxes_gives_none(tmp_path: Path) -> None:
    sample = load_sample(one_image(tmp_path / "a.png", []), 0, DataConfig(short_side_px=10, long_side_px=20), flip=True)
    assert tuple(sample.boxes.shape) == (0, 4)
    assert tuple(sample.labels.shape) == (0,)


def test_an_unreadable_image_is_named(tmp_path: Path) -> None:
    dataset = one_image(tmp_path / "a.png", [])
    (tmp_path / "a.png").write_bytes(b"no picture")
    with pytest.raises(DatasetError, match=r"a\.png"):
        load_sample(dataset, 0, DataConfig(), flip=False)


@in_any_time
@given(
    st.lists(st.tuples(*[st.floats(0, 1, width=32)] * 4), max_size=5),
    st.tuples(st.integers(1, 2000), st.integers(1, 2000)),
)
def test_boxes_come_back_to_the_original_frame(fractions: list[tuple[float, ...]], original: tuple[int, int]) -> None:
    height, width = original
    resized = resize_shape(height, width, 600, 1000)
    unit = torch.tensor(fractions, dtype=torch.float32).reshape(-1, 4)
    there = unit * torch.tensor([resized[1], resized[0]] * 2)
    back = to_original_frame(there, resized, original)
    torch.testing.assert_close(back, unit * torch.tensor([width, height] * 2), rtol=1e-5, atol=1e-3)


def test_detections_are_clipped_to_the_original_image() -> None:
    boxes = torch.tensor([[-3.0, 10.0, 130.0, 61.0]])
    assert to_original_frame(boxes, (60, 120), (30, 40)).tolist() == [[0.0, 5.0, 40.0, 30.0]]
    assert tuple(to_original_frame(torch.zeros(0, 4), (60, 120), (30, 40)).shape) == (0, 4)


def test_flipping_twice_changes_nothing() -> None:
    boxes = torch.tensor([[1.0, 2.0, 5.0, 7.0]])
    assert flip_boxes(boxes, 20).tolist() == [[15.0, 2.0, 19.0, 7.0]]
    assert torch.equal(flip_boxes(flip_boxes(boxes, 20), 20), boxes)
    assert tuple(flip_boxes(torch.zeros(0, 4), 20).shape) == (0, 4)


@in_any_time
@given(st.integers(0, 2**63 - 1), st.integers(0, 1000), st.lists(st.integers(0, 10**6), max_size=20))
def test_a_flip_depends_on_seed_epoch_and_image_alone(seed: int, epoch: int, images: list[int]) -> None:
    together = flips(seed, epoch, np.array(images, dtype=np.int64), 0.5).tolist()
    alone = [bool(flips(seed, epoch, np.array([image]), 0.5)[0]) for image in images]
    assert together == alone


def test_flips_are_fair_and_independent() -> None:
    images = np.arange(20_000)
    rows = np.stack([flips(seed, epoch, images, 0.5) for seed in (0, 1) for epoch in (0, 1, 2)])
    # 4 standard deviations of a fair coin thrown 20,000 times are 0.014.
    assert np.abs(rows.mean(axis=1) - 0.5).max() < 0.015
    agreement = (rows[:, None] == rows[None]).mean(axis=-1)[~np.eye(len(rows), dtype=bool)]
    assert np.abs(agreement - 0.5).max() < 0.015
    assert abs((rows[0][1:] == rows[0][:-1]).mean() - 0.5) < 0.015
    assert abs(flips(0, 0, images, 0.2).mean() - 0.2) < 0.015
    assert not flips(0, 0, images, 0.0).any()
    assert flips(0, 0, images, 1.0).all()


def test_flips_stay_what_they_were() -> None:
    """Resuming a run made with an earlier version must flip the same images."""
    assert int(_splitmix64(np.zeros(1, dtype=np.uint64))[0]) == 0xE220A8397B1DCDAF  # SplitMix64's first output for 0
    assert flips(7, 3, np.arange(16), 0.5).astype(int).tolist() == [0, 1, 1, 1, 1, 0, 1, 1, 1, 1, 0, 1, 0, 0, 1, 0]
