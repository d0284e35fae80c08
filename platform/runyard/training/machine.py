"""The machine that trains, as rank 0 finds it: the driver's may be another one."""

from collections.abc import Mapping
from typing import Any

import torch

from runyard.context import TrainContext
from runyard.runs.manifest import describe_machine
from runyard.tracking.journal import Journal

TRAINED_ON_TAG = "trained_on"
"""Tag of a tracked run: device of the workers and versions of its software; of the last attempt that made a step."""


def journal_machine(journal: Journal, context: TrainContext) -> None:
    """Append the machine of rank 0 as an event and, in one line, as a tag."""
    machine = describe_machine()
    line = summary(machine, context.device, context.world_size)
    precision = {"tf32_convolutions": torch.backends.cudnn.allow_tf32} if context.device.type == "cuda" else {}
    event = {"event": "machine", "message": f"training on {line}", "device": str(context.device), **precision}
    journal.append("event", event | machine)
    journal.append("tag", {"key": TRAINED_ON_TAG, "value": line})


def summary(machine: Mapping[str, Any], device: torch.device, workers: int) -> str:
    """One line on the devices of all workers, taken to be as rank 0's.

    Args:
        machine: from `describe_machine`.
        device: of rank 0.
    """
    if device.type != "cuda":
        return f"CPUs: {workers} worker(s), {machine['cpu']}, {machine['cpus_usable']} usable cores"
    versions = (("driver", "gpu_driver"), ("CUDA", "cuda"), ("cuDNN", "cudnn"), ("NCCL", "nccl"))
    software = ", ".join(f"{name} {machine.get(key) or 'unknown'}" for name, key in versions)
    return f"{workers} x {machine['gpus'][device.index or 0]['name']} ({software})"
