"""One optimiser step over the micro-batches of one worker, exact for any number of workers and micro-batches.

Losses are back-propagated as sums over images; the gradient is divided by the batch's normaliser N afterwards. So N
may be that of the whole global batch (all workers, all micro-batches) although it is known only at the end. Nothing in
a step waits for the device: whoever wants the numbers reads `StepResult` when it likes.
"""

import inspect
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from detector.config import LossConfig, OptimConfig
from detector.data.batching import Batch, normalise
from detector.models.anchors import AnchorGenerator
from detector.models.losses import detection_losses
from detector.models.retinanet import RetinaNet

STATISTICS = ("loss_cls", "loss_box", "loss_iou", "normaliser", "images", "gradient_norm", "stop", "non_finite")

# Buffers are constants here (frozen statistics), and trainable BatchNorm keeps its own. torch 2.15 has a new name.
_NO_BUFFER_SYNC: dict[str, Any] = (
    {"forward_sync_buffers": False}
    if "forward_sync_buffers" in inspect.signature(DistributedDataParallel).parameters
    else {"broadcast_buffers": False}
)


@dataclass(frozen=True)
class StepResult:
    """What one step measured, read when the reader likes: one float32 value for each name in `STATISTICS`.

    Losses are weighted and divided by the normaliser, over all workers; `gradient_norm` is before clipping;
    `stop` counts the workers that were asked to stop; `non_finite` is 1 once this step or an earlier one had a loss or
    a gradient that is not finite on any worker, and no worker makes an update then.
    """

    values: Tensor
    copied: torch.cuda.Event | None = None
    """On a GPU, `values` is a page-locked host tensor that is filled once this event has happened."""

    @classmethod
    def of(cls, values: Tensor) -> "StepResult":
        """Starts the copy to the host behind the step's own work, so that reading later waits for nothing else."""
        if values.device.type != "cuda":
            return cls(values)
        host = torch.empty(values.shape, dtype=values.dtype, pin_memory=True)
        host.copy_(values, non_blocking=True)
        event = torch.cuda.Event()
        event.record()
        return cls(host, event)

    def read(self) -> dict[str, float]:
        """The values on the host; waits for this step, and for no later one, to end on the device."""
        if self.copied is not None:
            self.copied.synchronize()
        numbers = dict(zip(STATISTICS, self.values.tolist(), strict=True))
        numbers["loss"] = numbers["loss_cls"] + numbers["loss_box"] + numbers["loss_iou"]
        return numbers


class TrainingEngine:
    """A model with its optimiser.

    Args:
        model: on its device; wrapped for data-parallel training where a process group of several ranks exists.
        optimizer: from `build_optimizer`.
        autocast_dtype: bfloat16 for mixed precision, None for float32 throughout.
    """

    def __init__(
        self,
        model: RetinaNet,
        optimizer: torch.optim.Optimizer,
        loss: LossConfig,
        optim: OptimConfig,
        *,
        autocast_dtype: torch.dtype | None = None,
        channels_last: bool = True,
        compile_model: bool = False,
    ) -> None:
        self.model = model
        self.optimizer = optimizer
        self._anchors: AnchorGenerator = model.anchors
        self._loss = loss
        self._clip_norm = optim.clip_norm
        self._autocast_dtype = autocast_dtype
        self._memory_format = torch.channels_last if channels_last else torch.contiguous_format
        self.device = next(model.parameters()).device
        self._parameters = [p for group in optimizer.param_groups for p in group["params"]]
        self._world_size = dist.get_world_size() if dist.is_initialized() else 1
        self._data_parallel: DistributedDataParallel | None = None
        if self._world_size > 1:
            ids = [self.device.index] if self.device.type == "cuda" else None
            self._data_parallel = DistributedDataParallel(
                model, device_ids=ids, gradient_as_bucket_view=True, **_NO_BUFFER_SYNC
            )
        network: nn.Module = self._data_parallel or model
        self._network = torch.compile(network) if compile_model else network
        self._non_finite = torch.zeros((), device=self.device)

    def step(self, micro_batches: Sequence[Batch], learning_rate: float, *, stop_requested: bool = False) -> StepResult:
        """One optimiser step over this worker's share of the global batch.

        Every worker must call it equally often with equally many micro-batches. Raises nothing for non-finite losses:
        see `StepResult`.

        Args:
            stop_requested: this worker was asked to stop. The step is done all the same; its result says so to all
                workers, with the sums that are exchanged anyway, so that all of them stop after the same step.
        """
        sums = torch.zeros(6, device=self.device)
        if stop_requested:
            sums[5].fill_(1.0)
        for position, batch in enumerate(micro_batches):
            last = position == len(micro_batches) - 1
            with self._gradient_sync(last):
                sums[:5] += self._backward(batch.to(self.device))
        per_device = self._loss.normaliser == "per_device"
        if self._world_size > 1:
            dist.all_reduce(sums)
        normaliser = sums[3].clamp(min=1.0)
        # DistributedDataParallel averages over the ranks; the sum over the global batch is wanted.
        scale = torch.full_like(normaliser, 1 / len(micro_batches)) if per_device else self._world_size / normaliser
        gradients = [p.grad for p in self._parameters if p.grad is not None]
        norm = torch.nn.utils.get_total_norm(gradients) * scale
        if self._clip_norm > 0:
            scale = scale * (self._clip_norm / (norm + 1e-6)).clamp(max=1.0)
        torch._foreach_mul_(gradients, scale)
        finite = torch.isfinite(norm) & torch.isfinite(sums).all()
        self._non_finite = torch.maximum(self._non_finite, (~finite).float())
        self.optimizer.found_inf = self._non_finite  # type: ignore[attr-defined]  # read by the fused kernels
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        ranks = self._world_size * len(micro_batches) if per_device else normaliser
        losses = sums[:3] / ranks
        return StepResult.of(torch.cat([losses, torch.stack([normaliser, sums[4], norm, sums[5], self._non_finite])]))

    def _backward(self, batch: Batch) -> Tensor:
        """Back-propagates one micro-batch; returns weighted (cls, box, IoU) loss sums, normaliser, images."""
        images = normalise(batch.images, batch.sizes).contiguous(memory_format=self._memory_format)
        with torch.autocast(self.device.type, dtype=self._autocast_dtype, enabled=self._autocast_dtype is not None):
            outputs = self._network(images)
        anchors = self._anchors(outputs.feature_shapes, self.device)
        losses = detection_losses(
            outputs,
            anchors,
            batch.boxes,
            batch.labels,
            batch.valid,
            self._anchors.inside_mask(anchors, batch.sizes),
            batch.image_weight,
            self._loss,
        )
        weighted = torch.stack([losses.cls, losses.box * self._loss.box_weight, losses.iou * self._loss.iou_weight])
        if self._loss.normaliser == "per_device":
            weighted = weighted / losses.normaliser.clamp(min=1.0)
        weighted.sum().backward()
        return torch.cat([weighted.detach(), torch.stack([losses.normaliser, batch.image_weight.sum()])])

    def _gradient_sync(self, wanted: bool) -> AbstractContextManager[None]:
        if self._data_parallel is None or wanted:
            return nullcontext()
        return self._data_parallel.no_sync()


def autocast_dtype(precision: str, device: torch.device) -> torch.dtype | None:
    """The autocast type for `OptimConfig.precision` on a device; None means float32 throughout."""
    if precision == "bfloat16":
        return torch.bfloat16
    if precision == "auto" and device.type == "cuda" and torch.cuda.is_bf16_supported():
        return torch.bfloat16
    return None
