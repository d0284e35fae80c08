"""Normalisation of pixels, by the formula."""

import torch

from detector.data.batching import collate
from detector.models.pixels import MEAN_RGB, STD_RGB, normalise
from tests.detector.data.test_batching import sample


def test_normalise_is_the_formula_and_zero_in_the_padding() -> None:
    batch = collate([sample(30, 50, index=1), sample(64, 20, index=2)], size_divisor=32)
    values = normalise(batch.images, batch.sizes)
    assert values.dtype == torch.float32
    expected = torch.zeros(2, 3, 64, 64)
    for i, (height, width) in enumerate(batch.sizes.tolist()):
        for channel in range(3):
            pixels = batch.images[i, channel, :height, :width].float()
            expected[i, channel, :height, :width] = (pixels - MEAN_RGB[channel]) / STD_RGB[channel]
    torch.testing.assert_close(values, expected, rtol=1e-6, atol=1e-6)
    assert (values[0, :, 30:] == 0).all()
    assert (values[1, :, :, 20:] == 0).all()


def test_normalise_in_channels_last_is_the_same_numbers() -> None:
    batch = collate([sample(30, 50, index=1), sample(32, 20, index=2)], size_divisor=32)
    values = normalise(batch.images, batch.sizes, memory_format=torch.channels_last)
    assert values.is_contiguous(memory_format=torch.channels_last)
    assert torch.equal(values, normalise(batch.images, batch.sizes))


def test_normalise_leaves_its_input_alone_and_may_start_in_inference_mode() -> None:
    with torch.inference_mode():
        normalise(torch.ones(1, 3, 4, 4, dtype=torch.uint8), torch.tensor([[4, 4]]))
    images = torch.ones(1, 3, 4, 4)
    normalise(images, torch.tensor([[4, 4]]))
    assert (images == 1).all()
