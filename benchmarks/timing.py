"""Measurement in turns: ours and the other alternately in one process tree, after a warm-up of both."""

import ctypes
import gc
import time
from collections.abc import Callable

import torch

Measurement = Callable[[], float]
"""Do the work once; return its cost."""


def keep_freed_memory() -> None:
    """Let glibc keep what is freed instead of giving it back, for as long as the process lives.

    Left alone, as nearly all users leave it, a new process takes the pages of every temporary above 32 MiB anew from
    the system, and what makes fewer of them gains more (P8, P11). It may grow out of that: where earlier work has left
    large holes in its heap, they are used.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):  # another C library
        return
    no_mappings, trim_threshold = -4, -1  # M_MMAP_MAX, M_TRIM_THRESHOLD
    mallopt(no_mappings, 0)
    mallopt(trim_threshold, 2**31 - 1)


def synchronise(device: torch.device) -> None:
    """Wait until the device has done its work; a CPU always has."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def seconds(work: Callable[[], object], device: torch.device | None = None, *, calls: int = 1) -> Measurement:
    """Measure `work` in seconds a call, over `calls` calls in a row, until the device has finished them."""
    where = device or torch.device("cpu")

    def measure() -> float:
        synchronise(where)
        started = time.perf_counter()
        for _ in range(calls):
            work()
        synchronise(where)
        return (time.perf_counter() - started) / calls

    return measure


def interleaved(
    ours: Measurement, other: Measurement, *, repeats: int, warm_up: int = 1
) -> tuple[list[float], list[float]]:
    """`repeats` measurements of both, in turn; who goes first alternates, so that neither gains from a drift.

    The warm-up rounds (compilation, caches, memory pools) are not counted. Garbage is collected between measurements
    and not during them.
    """
    found: tuple[list[float], list[float]] = ([], [])
    collecting = gc.isenabled()
    gc.disable()
    try:
        for number in range(-warm_up, repeats):
            for which in (0, 1) if number % 2 == 0 else (1, 0):
                gc.collect()
                value = (ours, other)[which]()
                if number >= 0:
                    found[which].append(value)
    finally:
        if collecting:
            gc.enable()
    return found


def repeated(ours: Measurement, *, repeats: int, warm_up: int = 1) -> list[float]:
    """`repeats` measurements of one thing that is compared with a bound, not with another thing."""
    for _ in range(warm_up):
        ours()
    return [ours() for _ in range(repeats)]
