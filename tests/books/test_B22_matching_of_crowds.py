"""B22: on an accelerator the cost of matching does not grow by a dozen launches for every object."""

import pytest
import torch
from torch import Tensor

from detector.config import LossConfig
from detector.models import matching
from detector.models.matching import match_anchors
from tests.detector.pretended_device import device, pretended, values


def crowd(objects: int, images: int = 3) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Anchors on a grid, and boxes on the same grid, so that many IoUs are equal; the last image has few objects."""
    generator = torch.Generator().manual_seed(objects)
    corner = torch.cartesian_prod(torch.arange(0.0, 96, 8), torch.arange(0.0, 96, 8))
    anchors = torch.cat([torch.cat([corner, corner + side], dim=1) for side in (8.0, 16.0, 24.0)])
    corners = torch.randint(0, 11, (images, objects, 2), generator=generator) * 8.0
    sides = torch.randint(1, 4, (images, objects, 2), generator=generator) * 8.0
    gt_valid = torch.ones(images, objects, dtype=torch.bool)
    gt_valid[-1, objects // 3 :] = False
    anchor_valid = torch.rand(images, len(anchors), generator=generator) > 0.1
    return anchors, torch.cat([corners, corners + sides], dim=2), gt_valid, anchor_valid


@pytest.mark.parametrize("low_quality_matches", [True, False])
@pytest.mark.parametrize("objects", [0, 1, 7, 70])
def test_B22_chunks_match_as_one_object_after_the_other(
    monkeypatch: pytest.MonkeyPatch, objects: int, low_quality_matches: bool
) -> None:
    tensors, config = crowd(objects), LossConfig(low_quality_matches=low_quality_matches)
    expected = match_anchors(*tensors, config)
    anchors = tensors[0]
    for at_once in (1, 4, 1000):
        monkeypatch.setattr(matching, "_DEVICE_ELEMENTS", at_once * len(anchors) * 3)
        with pretended():
            found = match_anchors(*(tensor.to(device()) for tensor in tensors), config)
        assert torch.equal(values(found.state), expected.state)
        assert torch.equal(values(found.gt_index), expected.gt_index)
    assert objects == 0 or (expected.state == 1).any()


def test_B22_launches_do_not_grow_with_the_objects() -> None:
    launches = []
    for objects in (7, 70):
        with pretended() as cost:
            tensors = [tensor.to(device()) for tensor in crowd(objects)]
            cost.clear()
            match_anchors(*tensors, LossConfig())
            launches.append(cost.launches.total())
    assert launches[0] == launches[1]
