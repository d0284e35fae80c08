"""The feature pyramid: C3, C4 and C5 of the backbone to P3 ... P7 of equal width.

Features are (B, channels, H_l, W_l) with strides 8, 16, 32 (C3 to C5, P3 to P5), 64 and 128 (P6, P7).
"""

from typing import Literal

from torch import Tensor, nn
from torch.nn import functional

NormName = Literal["none", "group"]


def normalisation(norm: NormName, channels: int) -> nn.Module:
    """The layer behind a convolution of the FPN or of a tower: nothing, or GroupNorm over groups of 8 channels.

    A group must hold more than one value, and P7 of a small image has a single place.
    """
    return nn.GroupNorm(channels // 8, channels) if norm == "group" else nn.Identity()


class FeaturePyramid(nn.Module):
    """1x1 laterals, top-down sums of nearest-neighbour upsampled maps, 3x3 outputs; P6 from C5, P7 from P6.

    As in MMDetection's RetinaNet, P6 is a stride-2 convolution of C5 (not of P5) without a ReLU before P7.
    Weights are Xavier uniform, biases 0. With norm 'group' GroupNorm follows each of the five output convolutions.
    """

    def __init__(self, in_channels: tuple[int, int, int], channels: int, norm: NormName = "none") -> None:
        super().__init__()
        self.lateral = nn.ModuleList(nn.Conv2d(width, channels, 1) for width in in_channels)
        self.output = nn.ModuleList(nn.Conv2d(channels, channels, 3, padding=1) for _ in in_channels)
        self.p6 = nn.Conv2d(in_channels[-1], channels, 3, stride=2, padding=1)
        self.p7 = nn.Conv2d(channels, channels, 3, stride=2, padding=1)
        self.norms = nn.ModuleList(normalisation(norm, channels) for _ in range(5))
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.xavier_uniform_(module.weight)
                assert module.bias is not None
                nn.init.zeros_(module.bias)

    def forward(self, features: tuple[Tensor, Tensor, Tensor]) -> tuple[Tensor, ...]:
        """C3, C4, C5 to P3, P4, P5, P6, P7."""
        merged = [lateral(feature) for lateral, feature in zip(self.lateral, features, strict=True)]
        for level in (1, 0):
            size = merged[level].shape[-2:]  # of the lower map, exactly: sides need not be multiples of 32
            merged[level] = merged[level] + functional.interpolate(merged[level + 1], size=size, mode="nearest")
        pyramid = [norm(output(m)) for norm, output, m in zip(self.norms[:3], self.output, merged, strict=True)]
        p6 = self.norms[3](self.p6(features[-1]))
        return (*pyramid, p6, self.norms[4](self.p7(p6)))
