"""One optimiser step over the micro-batches of one worker, exact for any number of workers and micro-batches.

Losses are back-propagated as sums over images; the gradient is divided by the batch's normaliser N afterwards. So N
may be that of the whole global batch (all workers, all micro-batches) although it is known only at the end. Nothing in
a step waits for the device: `StepResult` is read when its numbers are needed. A detector is known by its port alone.
"""

import inspect
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any, Literal

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from detector.config import OptimConfig
from detector.data.batching import Batch
from detector.models.detector import Detector, LossSums

STATISTICS = ("normaliser", "images", "gradient_norm", "stop", "non_finite")
"""Statistics of a step besides its losses, which are named 'loss_<name>' after `LossSums.weighted`."""

# Buffers are constants here (frozen statistics), and trainable BatchNorm keeps its own. torch 2.15 has a new name.
_NO_BUFFER_SYNC: dict[str, Any] = (
    {"forward_sync_buffers": False}
    if "forward_sync_buffers" in inspect.signature(DistributedDataParallel).parameters
    else {"broadcast_buffers": False}
)


@dataclass(frozen=True)
class StepResult:
    """Statistics of one step as float32 values, one for each of `names`, to be read at any later time.

    Losses are weighted and divided by the normaliser, over all workers; `gradient_norm` is before clipping;
    `stop` counts the workers that were asked to stop; `non_finite` is 1 once this step or an earlier one had a loss or
    a gradient that is not finite on any worker, and no worker makes an update then.
    """

    names: tuple[str, ...]
    """'loss_<name>' for every loss of the detector, then `STATISTICS`."""
    values: Tensor
    copied: torch.cuda.Event | None = None
    """On a GPU, `values` is a page-locked host tensor that is filled once this event has happened."""

    @classmethod
    def of(cls, names: tuple[str, ...], values: Tensor) -> "StepResult":
        """Start the copy to the host behind the step's own work, so that reading later waits for nothing else."""
        if values.device.type != "cuda":
            return cls(names, values)
        host = torch.empty(values.shape, dtype=values.dtype, pin_memory=True)
        host.copy_(values, non_blocking=True)
        event = torch.cuda.Event(blocking=True)  # the host sleeps until then, and takes no core from the loaders
        event.record()
        return cls(names, host, event)

    def read(self) -> dict[str, float]:
        """The values on the host, with their sum 'loss'; wait for this step on the device, and for no later one."""
        if self.copied is not None:
            self.copied.synchronize()
        numbers = dict(zip(self.names, self.values.tolist(), strict=True))
        numbers["loss"] = sum(value for name, value in numbers.items() if name.startswith("loss_"))
        return numbers


class _Losses(nn.Module):
    """A detector's losses as a forward pass, which is what DistributedDataParallel wraps."""

    def __init__(self, detector: Detector) -> None:
        super().__init__()
        self.detector = detector

    def forward(self, batch: Batch) -> LossSums:
        return self.detector.losses(batch)


class TrainingEngine:
    """A detector with its optimiser.

    Args:
        detector: on its device; wrapped for data-parallel training where a process group of several ranks exists.
        optimizer: from `build_optimizer`.
        normaliser: 'global': losses are divided by the normaliser of the global batch; 'per_device': by that of each
            micro-batch, and averaged (`LossConfig.normaliser`).
        autocast_dtype: bfloat16 for mixed precision, None for float32 throughout.
        compile_network: compile the detector's network, once for all sizes of images and batches of at least two; a
            `Predictor` runs it uncompiled unless it is asked otherwise.
    """

    def __init__(
        self,
        detector: Detector,
        optimizer: torch.optim.Optimizer,
        optim: OptimConfig,
        *,
        normaliser: Literal["global", "per_device"] = "global",
        autocast_dtype: torch.dtype | None = None,
        compile_network: bool = False,
    ) -> None:
        self.detector = detector
        self.optimizer = optimizer
        self._per_device = normaliser == "per_device"
        self._clip_norm = optim.clip_norm
        self._autocast_dtype = autocast_dtype
        self.device = next(detector.parameters()).device
        self._parameters = [p for group in optimizer.param_groups for p in group["params"]]
        self._world_size = dist.get_world_size() if dist.is_initialized() else 1
        if compile_network:
            detector.compile(dynamic=True)
        self._losses: nn.Module = _Losses(detector)
        self._data_parallel: DistributedDataParallel | None = None
        if self._world_size > 1:
            ids = [self.device.index] if self.device.type == "cuda" else None
            self._losses = self._data_parallel = DistributedDataParallel(
                self._losses, device_ids=ids, gradient_as_bucket_view=True, **_NO_BUFFER_SYNC
            )
        self._non_finite = torch.zeros((), device=self.device)

    def step(self, micro_batches: Sequence[Batch], learning_rate: float, *, stop_requested: bool = False) -> StepResult:
        """Make one optimiser step over this worker's share of the global batch.

        Every worker must call it equally often with equally many micro-batches. Raises nothing for non-finite losses:
        see `StepResult`.

        Args:
            stop_requested: this worker was asked to stop. The step is done all the same; its result says so to all
                workers, with the sums that are exchanged anyway, so that all of them stop after the same step.
        """
        sums: Tensor | None = None
        names: tuple[str, ...] = ()
        for position, batch in enumerate(micro_batches):
            last = position == len(micro_batches) - 1
            with self._gradient_sync(last):
                names, found = self._backward(batch.to(self.device))
                sums = found if sums is None else sums + found
        assert sums is not None, "a step has at least one micro-batch"
        # The losses, normaliser, images, and the number of workers that were asked to stop.
        sums = torch.cat([sums, torch.full((1,), float(stop_requested), device=self.device)])
        if self._world_size > 1:
            dist.all_reduce(sums)
        losses, (total, images, stop) = sums[:-3], sums[-3:].unbind()
        normaliser = total.clamp(min=1.0)
        # DistributedDataParallel averages over the ranks; the sum over the global batch is wanted.
        scale = (
            torch.full_like(normaliser, 1 / len(micro_batches)) if self._per_device else self._world_size / normaliser
        )
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
        ranks = self._world_size * len(micro_batches) if self._per_device else normaliser
        statistics = torch.stack([normaliser, images, norm, stop, self._non_finite])
        all_names = (*(f"loss_{name}" for name in names), *STATISTICS)
        return StepResult.of(all_names, torch.cat([losses / ranks, statistics]))

    def _backward(self, batch: Batch) -> tuple[tuple[str, ...], Tensor]:
        """Back-propagate one micro-batch; return the losses' names, and weighted loss sums, normaliser and images."""
        with torch.autocast(self.device.type, dtype=self._autocast_dtype, enabled=self._autocast_dtype is not None):
            sums: LossSums = self._losses(batch)
        weighted = torch.stack(tuple(sums.weighted.values()))
        if self._per_device:
            weighted = weighted / sums.normaliser.clamp(min=1.0)
        weighted.sum().backward()
        counts = torch.stack([sums.normaliser, batch.image_weight.sum()])
        return tuple(sums.weighted), torch.cat([weighted.detach(), counts])

    def _gradient_sync(self, wanted: bool) -> AbstractContextManager[None]:
        if self._data_parallel is None or wanted:
            return nullcontext()
        return self._data_parallel.no_sync()


def autocast_dtype(precision: str, device: torch.device) -> torch.dtype | None:
    """The autocast type for `OptimConfig.precision` on a device; None means float32 throughout.

    'auto' leaves out GPUs that only emulate bfloat16, such as a T4. Float32 convolutions on a GPU are TF32, torch's
    default, unless NVIDIA_TF32_OVERRIDE=0 is in the environment.
    """
    if precision == "bfloat16":
        return torch.bfloat16
    if precision == "auto" and device.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False):
        return torch.bfloat16
    return None
