"""How thoroughly and on what device comparisons are made."""

from dataclasses import dataclass

import torch

from detector.engine import autocast_dtype


@dataclass(frozen=True)
class Settings:
    """The same for all comparisons of a run."""

    device: torch.device
    quick: bool = False
    """Everything tiny, and only so often that it has run: for tests. No verdict means anything then."""

    @property
    def on_gpu(self) -> bool:
        """Sizes are the goals' own on a GPU, and reduced on a CPU."""
        return self.device.type == "cuda"

    @property
    def variants(self) -> tuple[bool, ...]:
        """Whether the network is compiled: with and without on a GPU, without on a CPU."""
        return (False, True) if self.on_gpu and not self.quick else (False,)

    @property
    def dtype(self) -> torch.dtype | None:
        """bfloat16 autocast where training uses it: on GPUs."""
        return autocast_dtype("auto", self.device)

    def repeats(self, wanted: int) -> int:
        """How many pairs are measured."""
        return 2 if self.quick else wanted

    def size(self, full: tuple[int, int], on_cpu: tuple[int, int]) -> tuple[int, int]:
        """Height and width of the images."""
        if self.quick:
            return 64, 96
        return full if self.on_gpu else on_cpu

    def describe(self, size: str, *, full: bool) -> str:
        """A size in words, that says where it is not the goal's."""
        return size if full and not self.quick else f"reduced: {size}"
