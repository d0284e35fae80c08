"""Encoding and decoding of boxes."""

import math

import pytest
import torch

from detector.models.box_coder import LARGEST_LOG_RATIO, decode, encode


def test_encode_by_hand() -> None:
    anchor = torch.tensor([[0.0, 0.0, 10.0, 20.0]])
    box = torch.tensor([[5.0, 10.0, 25.0, 20.0]])  # centre (15, 15), 20 x 10; the anchor's centre is (5, 10)
    torch.testing.assert_close(encode(anchor, box), torch.tensor([[1.0, 0.25, math.log(2), -math.log(2)]]))


def test_zero_deltas_are_the_anchor() -> None:
    anchors = torch.tensor([[-12.0, -12.0, 20.0, 20.0], [1.0, 2.0, 4.0, 9.0]])
    assert torch.equal(decode(anchors, torch.zeros(2, 4)), anchors)
    assert torch.equal(encode(anchors, anchors), torch.zeros(2, 4))


def test_round_trip_over_a_batch() -> None:
    torch.manual_seed(0)
    anchors = torch.rand(100, 4) * 50
    anchors[:, 2:] += anchors[:, :2] + 1
    boxes = torch.rand(3, 100, 4) * 50
    boxes[..., 2:] += boxes[..., :2] + 1
    torch.testing.assert_close(decode(anchors, encode(anchors, boxes)), boxes, rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize("sign", [1, -1])
def test_n2_huge_deltas_are_clamped_both_ways(sign: int) -> None:
    anchor = torch.tensor([[0.0, 0.0, 16.0, 16.0]])
    box = decode(anchor, torch.tensor([[0.0, 0.0, sign * 1e4, sign * LARGEST_LOG_RATIO]]))
    side = 1000.0 if sign > 0 else 16 * 16 / 1000
    torch.testing.assert_close(box[:, 2:] - box[:, :2], torch.full((1, 2), side), rtol=1e-5, atol=1e-5)


def test_half_precision_deltas_decode_in_float32() -> None:
    anchors = torch.tensor([[1000.0, 1000.0, 1033.0, 1033.0]])
    assert torch.equal(decode(anchors, torch.zeros(1, 4, dtype=torch.bfloat16)), anchors)


def test_no_anchors() -> None:
    assert decode(torch.zeros(0, 4), torch.zeros(2, 0, 4)).shape == (2, 0, 4)
    assert encode(torch.zeros(0, 4), torch.zeros(2, 0, 4)).shape == (2, 0, 4)
