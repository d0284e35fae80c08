"""The feature pyramid: which layer feeds which, sizes, initialisation."""

import math

import pytest
import torch
from torch import nn
from torch.nn import functional

from detector.models.fpn import FeaturePyramid


def features(height: int, width: int, channels: tuple[int, int, int] = (8, 12, 16)) -> tuple[torch.Tensor, ...]:
    generator = torch.Generator().manual_seed(0)
    return tuple(
        torch.rand(2, c, math.ceil(height / s), math.ceil(width / s), generator=generator)
        for c, s in zip(channels, (8, 16, 32), strict=True)
    )


@pytest.mark.parametrize(("height", "width"), [(64, 96), (32, 32), (72, 104)])
def test_shapes(height: int, width: int) -> None:
    pyramid = FeaturePyramid((8, 12, 16), 24)(features(height, width))
    assert [tuple(p.shape) for p in pyramid] == [
        (2, 24, math.ceil(height / s), math.ceil(width / s)) for s in (8, 16, 32, 64, 128)
    ]


def test_each_level_by_hand() -> None:
    torch.manual_seed(0)
    fpn = FeaturePyramid((8, 12, 16), 24)
    for parameter in fpn.parameters():  # biases too
        nn.init.normal_(parameter)
    c3, c4, c5 = features(64, 96)
    p3, p4, p5, p6, p7 = fpn((c3, c4, c5))
    top = fpn.lateral[2](c5)
    middle = fpn.lateral[1](c4) + top.repeat_interleave(2, 2).repeat_interleave(2, 3)
    bottom = fpn.lateral[0](c3) + middle.repeat_interleave(2, 2).repeat_interleave(2, 3)
    torch.testing.assert_close(p5, fpn.output[2](top))
    torch.testing.assert_close(p4, fpn.output[1](middle))
    torch.testing.assert_close(p3, fpn.output[0](bottom))
    torch.testing.assert_close(p6, functional.conv2d(c5, fpn.p6.weight, fpn.p6.bias, stride=2, padding=1))
    assert (p6 < 0).any()  # a ReLU before P7 would show
    torch.testing.assert_close(p7, functional.conv2d(p6, fpn.p7.weight, fpn.p7.bias, stride=2, padding=1))


def test_xavier_uniform_and_zero_bias() -> None:
    torch.manual_seed(0)
    fpn = FeaturePyramid((64, 64, 64), 64)
    for module in fpn.modules():
        if isinstance(module, nn.Conv2d):
            fan = module.weight[0].numel() + module.weight[:, 0].numel()
            bound = math.sqrt(6 / fan)
            assert module.weight.abs().max().item() == pytest.approx(bound, rel=0.01)
            assert module.weight.std().item() == pytest.approx(bound / math.sqrt(3), rel=0.05)
            assert module.bias is not None
            assert (module.bias == 0).all()


def test_group_norm_follows_every_output_only_on_request() -> None:
    assert not any(isinstance(module, nn.GroupNorm) for module in FeaturePyramid((8, 12, 16), 24).modules())
    fpn = FeaturePyramid((8, 12, 16), 24, "group")
    assert [module.num_groups for module in fpn.modules() if isinstance(module, nn.GroupNorm)] == [3] * 5
    for level in fpn(features(256, 256)):
        groups = level.reshape(2, 3, -1)
        torch.testing.assert_close(groups.mean(-1), torch.zeros(2, 3), atol=1e-4, rtol=0)
