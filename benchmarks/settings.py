"""Thoroughness and device of the comparisons."""

from dataclasses import dataclass

import torch

from benchmarks.intervals import Goal
from detector.engine import autocast_dtype

GPU, H100 = "a GPU", "an H100"
"""Devices that some goals are set for."""

LEARNING_RATE = 0.0
"""Random weights on noise would diverge within a few steps; an update costs the same whatever its size."""


@dataclass(frozen=True)
class Settings:
    """The same for all comparisons of a run."""

    device: torch.device
    quick: bool = False
    """Everything tiny, and only so often that it has run: for tests. No verdict means anything then."""
    variants: tuple[bool, ...] = (False,)
    """Compilation of the network: without, with, or one after the other."""

    @property
    def on_gpu(self) -> bool:
        """Sizes are the goals' own on a GPU, and reduced on a CPU."""
        return self.device.type == "cuda"

    @property
    def dtype(self) -> torch.dtype | None:
        """bfloat16 autocast where training uses it: on GPUs."""
        return autocast_dtype("auto", self.device)

    def goal(self, bound: float, *, at_least: bool, on: str = "") -> Goal | None:
        """The goal, which says so where it is about another machine than this; none where everything is tiny.

        Args:
            on: what it is about: `GPU`, `H100`, '' for any machine; of anything else this machine has nothing.
        """
        if self.quick:
            return None
        here = {"": True, GPU: self.on_gpu, H100: self.on_gpu and "H100" in torch.cuda.get_device_name(self.device)}
        return Goal(bound, at_least, needs="" if here.get(on, False) else on)

    def repeats(self, wanted: int) -> int:
        """Number of pairs that are measured."""
        return 2 if self.quick else wanted

    def size(self, full: tuple[int, int], on_cpu: tuple[int, int]) -> tuple[int, int]:
        """Height and width of the images."""
        if self.quick:
            return 64, 96
        return full if self.on_gpu else on_cpu

    def describe(self, size: str, *, full: bool) -> str:
        """A size in words, that says where it is not the goal's."""
        return size if full and not self.quick else f"reduced: {size}"


def precision(dtype: torch.dtype | None) -> str:
    """Name of an autocast dtype, for descriptions."""
    return "float32" if dtype is None else "bfloat16 autocast"
