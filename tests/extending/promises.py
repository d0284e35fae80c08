"""Promises that the losses of a detector keep, as checks that name the broken one.

B images. Training relies on them: a step is the same however its images are shared out over workers, an interrupted
training continues exactly, and a GPU never waits in the middle of a step.
"""

from dataclasses import replace
from typing import Any

import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from detector.data.batching import Batch
from detector.models.detector import Detector, LossSums

_WAITING = {torch.Tag.data_dependent_output, torch.Tag.dynamic_output_shape}
_INDEXING = (torch.ops.aten.index.Tensor, torch.ops.aten.index_put.default, torch.ops.aten.index_put_.default)
"""Operations whose shape depends on values only where they are given a mask."""


def broken(detector: Detector, batch: Batch) -> list[str]:
    """Promises that the losses of a batch of at least two images break, in words; empty for a sound detector.

    Args:
        detector: on the CPU, in any mode; left in training mode, with gradients.
        batch: on the CPU; images with and without boxes.
    """
    detector.train()
    found = []
    whole = detector.losses(batch)
    values = _values(whole)
    if any(tensor.dtype != torch.float32 or tensor.dim() for tensor in (*whole.weighted.values(), whole.normaliser)):
        found.append("losses and normaliser are float32 scalars")
    if not all(torch.equal(value, again) for value, again in zip(values, _values(detector.losses(batch)), strict=True)):
        found.append("the same batch gives the same losses")
    halves = [_values(detector.losses(_select(batch, part))) for part in torch.arange(len(batch.images)).chunk(2)]
    if not _close(values, [sum(parts) for parts in zip(*halves, strict=True)]):
        found.append("losses and normaliser are sums over the images")
    counted = _select(
        batch, torch.arange(len(batch.images)), weight=torch.tensor([1.0] + [0.0] * (len(batch.images) - 1))
    )
    if not _close(_values(detector.losses(counted)), _values(detector.losses(_select(batch, torch.arange(1))))):
        found.append("an image of weight 0 counts for nothing")
    with torch.autocast("cpu", dtype=torch.bfloat16):
        if any(value.dtype != torch.float32 for value in _values(detector.losses(batch))):
            found.append("losses are float32 under autocast")
    if not _gradients_are_finite(detector, _select(batch, torch.arange(1), boxes=False)):
        found.append("an image without boxes gives finite gradients")
    if waiting := _waiting_operations(detector, batch):
        found.append(f"no operation waits for the device, found {', '.join(waiting)}")
    return found


def _values(sums: LossSums) -> list[torch.Tensor]:
    return [*(loss.detach() for loss in sums.weighted.values()), sums.normaliser.detach()]


def _close(found: list[torch.Tensor], expected: list[torch.Tensor]) -> bool:
    return all(torch.allclose(one, other, rtol=1e-4, atol=1e-5) for one, other in zip(found, expected, strict=True))


def _select(batch: Batch, index: torch.Tensor, *, weight: torch.Tensor | None = None, boxes: bool = True) -> Batch:
    picked = batch._map(lambda tensor: tensor[index])
    return replace(
        picked,
        image_weight=picked.image_weight if weight is None else weight,
        valid=picked.valid if boxes else torch.zeros_like(picked.valid),
    )


def _gradients_are_finite(detector: nn.Module, batch: Batch) -> bool:
    sum(detector.losses(batch).weighted.values()).backward()
    return all(p.grad is None or bool(p.grad.isfinite().all()) for p in detector.parameters())


class _Watch(TorchDispatchMode):
    """Note operations that wait for the device: those whose outcome in Python, or whose shape, depends on values."""

    def __init__(self) -> None:
        super().__init__()
        self.found: set[str] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in _INDEXING:
            waits = any(index is not None and index.dtype == torch.bool for index in args[1])
        else:
            waits = bool(_WAITING & set(func.tags))
        if waits:
            self.found.add(str(func))
        return func(*args, **(kwargs or {}))


def _waiting_operations(detector: Detector, batch: Batch) -> list[str]:
    with _Watch() as watch:
        sum(detector.losses(batch).weighted.values()).backward()
    return sorted(watch.found)
