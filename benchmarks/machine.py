"""Description of the machine: processor, memory, GPU, versions, and load by other processes."""

import datetime
import importlib.metadata
import os
import platform
import time
from pathlib import Path
from typing import Any

import torch

_PACKAGES = ("torch", "torchvision", "numpy", "pyarrow", "pillow", "ray", "mlflow", "hotcoco", "pycocotools")
BUSY_SHARE = 0.15
"""With more than this of the processors at work for others, absolute times say nothing; ratios of pairs still do."""


def describe() -> dict[str, Any]:
    """Machine and versions; names of machines and paths are left out."""
    found: dict[str, Any] = {
        "date": datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d %H:%M UTC"),
        "processor": _processor(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "load": " ".join(f"{value:.1f}" for value in os.getloadavg()),
        "memory_gib": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1),
        "system": f"{platform.system()} {platform.release()}",
        "python": platform.python_version(),
    }
    if torch.cuda.is_available():
        properties = torch.cuda.get_device_properties(0)
        found["gpu"] = f"{properties.name}, {properties.total_memory / 2**30:.0f} GiB"
        found["cuda"] = torch.version.cuda
        found["cudnn"] = torch.backends.cudnn.version()
    for package in _PACKAGES:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def busy_cores(over_s: float = 1.0) -> float | None:
    """Number of processors at work while this process sleeps; None where the system does not say (not Linux)."""
    before = _processor_times()
    time.sleep(over_s)
    after = _processor_times()
    if before is None or after is None:
        return None
    idle, total = after[0] - before[0], after[1] - before[1]
    return round((1 - idle / total) * (os.cpu_count() or 1), 2) if total > 0 else None


def is_busy(busy: float | None) -> bool:
    """True where so many processors at work for others spoil a time; False where nothing is known."""
    return busy is not None and busy > BUSY_SHARE * (os.cpu_count() or 1)


def _processor_times() -> tuple[int, int] | None:
    """Idle and all ticks of all processors since boot."""
    try:
        first = Path("/proc/stat").read_text().splitlines()[0].split()
    except OSError:
        return None
    ticks = [int(field) for field in first[1:9]]  # user nice system idle iowait irq softirq steal
    return ticks[3] + ticks[4], sum(ticks)


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.machine())
