"""Normalisation of pixels by ImageNet's statistics, in the memory format and on the device of the network.

B images, H and W the padded height and width.
"""

from functools import lru_cache

import torch
from torch import Tensor, nn

# ImageNet's statistics times 255, in RGB order (section 4.1: MMDetection's defaults).
MEAN_RGB = (123.675, 116.28, 103.53)
STD_RGB = (58.395, 57.12, 57.375)


def normalise(images: Tensor, sizes: Tensor, *, memory_format: torch.memory_format = torch.contiguous_format) -> Tensor:
    """(B, 3, H, W) uint8 -> float32 (x - mean) / std on the same device, exactly 0 in the padding.

    The paper pads after normalising, so that the padding is the mean colour. Nothing here waits for the device.

    Args:
        sizes: (B, 2) height, width of each image without padding, on the device of `images`.
        memory_format: of the result; `torch.channels_last` is what convolutions on GPUs with bfloat16 want.
    """
    mean, std = _statistics(images.device)
    rows = torch.arange(images.shape[2], device=images.device)
    columns = torch.arange(images.shape[3], device=images.device)
    in_padding = (rows >= sizes[:, 0, None])[:, None, :, None] | (columns >= sizes[:, 1, None])[:, None, None, :]
    values = images.to(torch.float32, memory_format=memory_format, copy=True)
    return values.sub_(mean).div_(std).masked_fill_(in_padding, 0.0)


def memory_format_of(network: nn.Module) -> torch.memory_format:
    """Memory format of the weights of a convolutional network, in which it wants its images.

    Its first weights of four dimensions tell the formats apart: a kernel larger than 1x1 on three channels.
    """
    weights = next(parameter for parameter in network.parameters() if parameter.dim() == 4)
    channels_last = weights.is_contiguous(memory_format=torch.channels_last)
    return torch.channels_last if channels_last else torch.contiguous_format


@lru_cache
def _statistics(device: torch.device) -> tuple[Tensor, Tensor]:
    # Kept per device because making a tensor from numbers waits for the GPU; outside inference mode because the first
    # caller may evaluate and the next one train.
    with torch.inference_mode(False):
        return (
            torch.tensor(MEAN_RGB, device=device).reshape(1, 3, 1, 1),
            torch.tensor(STD_RGB, device=device).reshape(1, 3, 1, 1),
        )
