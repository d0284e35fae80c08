"""The port between the training loop and whatever started it: Ray Train, torchrun or one plain process."""

import os
from pathlib import Path
from typing import Any, Protocol

import torch
import torch.distributed as dist

from runyard.failures import SilentWorkerError


class TrainContext(Protocol):
    """Place of a worker in its group, and the report of its checkpoints."""

    rank: int
    world_size: int
    device: torch.device
    cpus: int
    """CPUs of this worker, at least 1."""

    def report(self, metrics: dict[str, float], checkpoint: Path) -> None:
        """Tells of a checkpoint that rank 0 has written; every rank calls it, at the same steps."""


class LocalContext:
    """The place of this process among torchrun's, or the only process."""

    def __init__(self, *, use_gpu: bool | None = None) -> None:
        self.rank = int(os.environ.get("RANK", "0"))
        self.world_size = int(os.environ.get("WORLD_SIZE", "1"))
        usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        self.cpus = max(usable // int(os.environ.get("LOCAL_WORLD_SIZE", "1")), 1)
        if torch.cuda.is_available() if use_gpu is None else use_gpu:
            self.device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))
            torch.cuda.set_device(self.device)
        else:
            self.device = torch.device("cpu")

    def report(self, metrics: dict[str, float], checkpoint: Path) -> None:
        """Do nothing: the checkpoint lies in the run's folder already."""


MAX_LOADER_PROCESSES = 8
"""Most loading processes that a worker starts of itself: each holds two batches in shared memory."""


def loader_processes(asked: int | None, context: TrainContext) -> int:
    """Image loading processes of this worker.

    Args:
        asked: their number; None: on a GPU all its CPUs but one, at most `MAX_LOADER_PROCESSES`. On CPUs 0, because the
            network's own threads take them all.
    """
    if asked is not None:
        return asked
    return min(context.cpus - 1, MAX_LOADER_PROCESSES) if context.device.type == "cuda" else 0


def first_rank_decides(value: Any, context: TrainContext) -> Any:
    """Rank 0's value on every rank (any picklable object); the others' values are ignored."""
    if context.world_size == 1:
        return value
    box = [value]
    dist.broadcast_object_list(box, src=0, device=context.device)
    return box[0]


def gather_on_first_rank(value: Any, context: TrainContext) -> list[Any]:
    """All ranks' values in rank order on rank 0, an empty list elsewhere."""
    if context.world_size == 1:
        return [value]
    values: list[Any] = [None] * context.world_size
    # gather_object has no NCCL implementation; detections are a few megabytes, so that everyone may have them.
    dist.all_gather_object(values, value)
    return values if context.rank == 0 else []


def silent_worker(error: RuntimeError, timeout_s: float) -> SilentWorkerError | None:
    """Plain form of a failed collective operation; None for any other error."""
    text = str(error)
    if not (isinstance(error, dist.DistError) or "gloo" in text or "NCCL" in text):
        return None
    # gloo: "Timed out waiting 20000ms for recv operation to complete". NCCL: "Watchdog caught collective operation
    # timeout: WorkNCCL(...) ran for 600009 milliseconds before timing out."
    if any(sign in text.lower() for sign in ("timed out", "timing out", "timeout")):
        return SilentWorkerError(f"another worker did not answer for {timeout_s:g} s (runtime.collective_timeout_s)")
    return SilentWorkerError(f"the connection to another worker broke ({text.rpartition('] ')[2]})")
