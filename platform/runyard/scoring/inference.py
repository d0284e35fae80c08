"""Evaluation over all workers: whole batches are dealt out, so that each image counts once, whoever sees it."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from detector.config import DataConfig, ScoringConfig
from detector.data.batching import normalise
from detector.data.box_geometry import xywh_from_corners
from detector.data.loaders import make_eval_loader
from detector.data.samples import Dataset
from detector.data.transforms import to_original_frame
from detector.evaluation.results import DetectionTable
from detector.models.postprocess import Detections, postprocess
from detector.models.retinanet import HeadOutputs, RetinaNet
from runyard.context import TrainContext, gather_on_first_rank
from runyard.failures import TrainingStoppedError


@dataclass(frozen=True)
class ForwardPass:
    """The network's outputs for one batch, and what post-processing needs beside them; on the worker's device."""

    images: list[int]
    """Positions in the data set."""
    sizes: list[tuple[int, int]]
    """Height, width of the resized images."""
    outputs: HeadOutputs
    anchors: tuple[Tensor, ...]
    anchor_valid: Tensor
    image_sizes: Tensor


@torch.inference_mode()
def forward_passes(
    model: RetinaNet,
    dataset: Dataset,
    data: DataConfig,
    context: TrainContext,
    *,
    batch_size: int,
    loader_workers: int = 0,
    autocast_dtype: torch.dtype | None = None,
    channels_last: bool = True,
) -> Iterator[ForwardPass]:
    """This rank's share of the images of `dataset`, a batch at a time; over all ranks each image comes exactly once."""
    was_training = model.training
    model.eval()
    memory_format = torch.channels_last if channels_last else torch.contiguous_format
    loader = make_eval_loader(
        dataset,
        data,
        batch_size=batch_size,
        rank=context.rank,
        world_size=context.world_size,
        loader_workers=loader_workers,
        pin_memory=context.device.type == "cuda",
    )
    for host_batch in loader:
        batch = host_batch.to(context.device)
        images = normalise(batch.images, batch.sizes).contiguous(memory_format=memory_format)
        with torch.autocast(context.device.type, dtype=autocast_dtype, enabled=autocast_dtype is not None):
            outputs = model(images)
        anchors = model.anchors(outputs.feature_shapes, context.device)
        yield ForwardPass(
            images=host_batch.image_index.tolist(),
            sizes=[(height, width) for height, width in host_batch.sizes.tolist()],
            outputs=outputs,
            anchors=anchors,
            anchor_valid=model.anchors.inside_mask(anchors, batch.sizes),
            image_sizes=batch.sizes,
        )
    model.train(was_training)


@torch.inference_mode()
def detect(
    model: RetinaNet,
    dataset: Dataset,
    data: DataConfig,
    scoring: ScoringConfig,
    context: TrainContext,
    *,
    batch_size: int,
    loader_workers: int = 0,
    autocast_dtype: torch.dtype | None = None,
    channels_last: bool = True,
    stop_requested: Callable[[], bool] = lambda: False,
) -> DetectionTable | None:
    """Detections of every image of `dataset`, in its order, in original pixels; on rank 0, None elsewhere.

    Every rank must call it. The result does not depend on the number of ranks. Raises TrainingStoppedError as soon as
    `stop_requested` says so: nothing is to be saved, and the launcher ends the ranks that have not seen it.
    """
    parts: list[dict[str, Any]] = []
    for batch in forward_passes(
        model,
        dataset,
        data,
        context,
        batch_size=batch_size,
        loader_workers=loader_workers,
        autocast_dtype=autocast_dtype,
        channels_last=channels_last,
    ):
        if stop_requested():
            raise TrainingStoppedError("stopped on request while evaluating")
        per_image = postprocess(batch.outputs, batch.anchors, batch.anchor_valid, batch.image_sizes, scoring)
        for index, size, detections in zip(batch.images, batch.sizes, per_image, strict=True):
            parts.append(_columns(dataset, index, size, detections))
    gathered = gather_on_first_rank(parts, context)
    if context.rank != 0:
        return None
    ordered = sorted((part for rank_parts in gathered for part in rank_parts), key=lambda part: int(part["image"]))
    if [part["image"] for part in ordered] != list(range(len(dataset))):
        raise AssertionError("evaluation must see every image exactly once")
    return DetectionTable.concatenate([part["table"] for part in ordered])


def to_table(
    image_index: NDArray[np.int64],
    boxes: Tensor,
    labels: Tensor,
    scores: Tensor,
    class_scores: Tensor,
    ious: Tensor,
) -> DetectionTable:
    """The columns of D detections as evaluation takes them; `boxes` (D, 4) x1, y1, x2, y2 in the original frame."""
    corners = boxes.cpu().numpy().astype(np.float64)
    return DetectionTable(
        image_index=image_index,
        labels=labels.cpu().numpy(),
        boxes_xywh=xywh_from_corners(corners),
        scores=scores.cpu().numpy().astype(np.float64),
        class_scores=class_scores.cpu().numpy().astype(np.float64),
        ious=ious.cpu().numpy().astype(np.float64),
    )


def _columns(dataset: Dataset, index: int, resized: tuple[int, int], detections: Detections) -> dict[str, Any]:
    height, width = (int(side) for side in dataset.image_sizes[index])
    table = to_table(
        np.full(len(detections.scores), index, dtype=np.int64),
        to_original_frame(detections.boxes.cpu(), resized, (height, width)),
        detections.labels,
        detections.scores,
        detections.class_scores,
        detections.ious,
    )
    return {"image": index, "table": table}
