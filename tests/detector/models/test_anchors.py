"""Anchors: sizes, order, counts, the padding mask and the cache."""

import pickle

import pytest
import torch

from detector.boxes import box_area
from detector.config import AnchorConfig
from detector.models.anchors import AnchorGenerator, _all_levels
from detector.models.box_coder import encode

SHAPES_800_1344 = [(100, 168), (50, 84), (25, 42), (13, 21), (7, 11)]


def test_count_at_800_by_1344_is_the_papers() -> None:
    levels = AnchorGenerator(AnchorConfig())(SHAPES_800_1344, "cpu")
    assert [len(level) for level in levels] == [151200, 37800, 9450, 2457, 693]
    assert sum(len(level) for level in levels) == 201_600
    assert all(level.dtype == torch.float32 and level.shape[1] == 4 for level in levels)


def test_first_location_by_hand() -> None:
    level = AnchorGenerator(AnchorConfig(), strides=(8,))([(2, 3)], "cpu")[0]
    square = level[3]  # ratio 1, scale 1: side 4 x 8 around (4, 4)
    assert square.tolist() == [-12.0, -12.0, 20.0, 20.0]
    wide = level[0]  # ratio 0.5 is height over width, the area stays 32 x 32
    width, height = (wide[2] - wide[0]).item(), (wide[3] - wide[1]).item()
    assert height / width == pytest.approx(0.5)
    assert width * height == pytest.approx(1024, rel=1e-5)


def test_order_is_y_then_x_then_ratio_then_scale() -> None:
    config = AnchorConfig()
    level = AnchorGenerator(config, strides=(16,))([(2, 3)], "cpu")[0].view(2, 3, 3, 3, 4)
    centres = (level[..., :2] + level[..., 2:]) / 2
    torch.testing.assert_close(centres[1, 2, 0, 0], torch.tensor([40.0, 24.0]))
    torch.testing.assert_close(centres[0, 1, 2, 2], torch.tensor([24.0, 8.0]))
    sides = box_area(level[0, 0]).sqrt()  # (ratio, scale)
    torch.testing.assert_close(sides, (64 * torch.tensor(config.scales)).expand(3, 3))
    ratios = (level[..., 3] - level[..., 1]) / (level[..., 2] - level[..., 0])
    torch.testing.assert_close(ratios[0, 0], torch.tensor(config.aspect_ratios)[:, None].expand(3, 3))


def test_centre_offset_moves_every_anchor_by_its_stride() -> None:
    half = AnchorGenerator(AnchorConfig())([(2, 2)] * 5, "cpu")
    none = AnchorGenerator(AnchorConfig(centre_offset=0.0))([(2, 2)] * 5, "cpu")
    for level, (shifted, plain) in enumerate(zip(half, none, strict=True)):
        torch.testing.assert_close(shifted - plain, torch.full_like(plain, 4.0 * 2**level))


def test_wrong_number_of_levels() -> None:
    with pytest.raises(ValueError, match="4 feature maps for 5 strides"):
        AnchorGenerator(AnchorConfig())([(1, 1)] * 4, "cpu")


def test_mask_leaves_out_only_anchors_wholly_in_the_padding() -> None:
    config = AnchorConfig(base_size=1.0, scales=(1.0,), aspect_ratios=(1.0,))
    generator = AnchorGenerator(config, strides=(8,))
    levels = generator([(2, 3)], "cpu")  # 8 x 8 anchors that tile 16 x 24
    inside = generator.inside_mask(levels, torch.tensor([[16, 24], [8, 16], [9, 17]]))
    assert inside[0].all()
    assert inside[1].tolist() == [True, True, False, False, False, False]  # those that only touch the edge are out
    assert inside[2].all()  # those that cross the edge are in


def test_nothing_is_outside_in_an_image_without_padding() -> None:
    generator = AnchorGenerator(AnchorConfig())
    levels = generator([(8, 8), (4, 4), (2, 2), (1, 1), (1, 1)], "cpu")
    assert generator.inside_mask(levels, torch.tensor([[64, 64]])).shape == (1, sum(map(len, levels)))
    # P7's only location has its centre at (64, 64), outside the image, but its anchors reach into it.
    assert generator.inside_mask(levels, torch.tensor([[64, 64]])).all()


def test_cache_is_bounded_and_shared() -> None:
    generator = AnchorGenerator(AnchorConfig())
    for side in range(1, 40):
        generator([(side, side)] * 5, "cpu")
    assert _all_levels.cache_info().currsize <= 8
    assert generator([(39, 39)] * 5, "cpu")[0] is AnchorGenerator(AnchorConfig())([(39, 39)] * 5, "cpu")[0]
    assert isinstance(pickle.loads(pickle.dumps(generator)), AnchorGenerator)


def test_anchors_first_made_for_evaluation_can_be_trained_on() -> None:
    _all_levels.cache_clear()
    generator = AnchorGenerator(AnchorConfig())
    with torch.inference_mode():
        generator([(2, 2)] * 5, "cpu")
    anchors = generator([(2, 2)] * 5, "cpu")[0]
    boxes = (anchors * 1.1).requires_grad_()
    encode(anchors, boxes).sum().backward()
    assert boxes.grad is not None
