"""Inference with a detector: the one way from a batch to detections, while training and afterwards."""

from collections.abc import Sequence
from contextlib import nullcontext

import torch

from detector.data.batching import Batch
from detector.models.detector import Detections, Detector, ScoringRow


class Predictor:
    """A detector on a device, at a precision.

    Args:
        detector: moved to the device and the memory format in place; it may be in training at the same time, and is
            in the mode that it was in after every call.
        device: where the network and the post-processing run.
        autocast_dtype: bfloat16 for mixed precision, None for float32 throughout.
        channels_last: put the weights in that memory format; otherwise the format stays as it is.
        compiled: compile the network; otherwise it runs uncompiled even where its training is compiled, so that the
            same weights always give the same detections.
    """

    def __init__(
        self,
        detector: Detector,
        device: torch.device,
        autocast_dtype: torch.dtype | None = None,
        *,
        channels_last: bool = True,
        compiled: bool = False,
    ) -> None:
        if channels_last:
            detector = detector.to(memory_format=torch.channels_last)
        self.detector = detector.to(device)
        self.device = device
        self._autocast_dtype = autocast_dtype
        self._compiled = compiled
        if compiled:
            self.detector.compile(dynamic=True)

    @property
    def precision(self) -> str:
        """Device type and data type of the network, as 'cuda torch.bfloat16'."""
        return f"{self.device.type} {self._autocast_dtype or torch.float32}"

    @torch.inference_mode()
    def __call__(self, batch: Batch, rows: Sequence[ScoringRow]) -> list[list[Detections]]:
        """Detections of a batch under every row, by [row][image], on the device; see `Detector.detect`.

        Args:
            batch: on any device.
            rows: at least one; an oracle row takes boxes and valid of the batch for the ground truth.
        """
        was_training = self.detector.training
        self.detector.eval()
        try:
            with (
                nullcontext() if self._compiled else torch.compiler.set_stance("force_eager"),
                torch.autocast(self.device.type, dtype=self._autocast_dtype, enabled=self._autocast_dtype is not None),
            ):
                return self.detector.detect(batch.to(self.device), rows)
        finally:
            self.detector.train(was_training)
