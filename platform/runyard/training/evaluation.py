"""Evaluation over all workers: whole batches are dealt out, so that each image counts once, whoever sees it."""

from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from detector.config import DataConfig, ScoringConfig
from detector.data.batching import normalise
from detector.data.loaders import make_eval_loader
from detector.data.samples import Dataset
from detector.data.transforms import to_original_frame
from detector.evaluation.results import DetectionTable
from detector.postprocess import Detections, postprocess
from detector.retinanet import RetinaNet
from runyard.training.context import TrainContext, gather_on_first_rank
from runyard.training.errors import TrainingStoppedError


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
    parts: list[dict[str, Any]] = []
    for host_batch in loader:
        if stop_requested():
            raise TrainingStoppedError("stopped on request while evaluating")
        batch = host_batch.to(context.device)
        images = normalise(batch.images, batch.sizes).contiguous(memory_format=memory_format)
        with torch.autocast(context.device.type, dtype=autocast_dtype, enabled=autocast_dtype is not None):
            outputs = model(images)
        anchors = model.anchors(outputs.feature_shapes, context.device)
        valid = model.anchors.inside_mask(anchors, batch.sizes)
        per_image = postprocess(outputs, anchors, valid, batch.sizes, scoring)
        for index, size, detections in zip(
            host_batch.image_index.tolist(), host_batch.sizes.tolist(), per_image, strict=True
        ):
            parts.append(_columns(dataset, index, (size[0], size[1]), detections))
    model.train(was_training)
    gathered = gather_on_first_rank(parts, context)
    if context.rank != 0:
        return None
    ordered = sorted((part for rank_parts in gathered for part in rank_parts), key=lambda part: int(part["image"]))
    if [part["image"] for part in ordered] != list(range(len(dataset))):
        raise AssertionError("evaluation must see every image exactly once")
    return DetectionTable.concatenate([part["table"] for part in ordered])


def _columns(dataset: Dataset, index: int, resized: tuple[int, int], detections: Detections) -> dict[str, Any]:
    width, height = (int(side) for side in dataset.image_sizes[index])
    boxes = to_original_frame(detections.boxes.cpu(), resized, (width, height)).numpy().astype(np.float64)
    xywh = np.concatenate([boxes[:, :2], boxes[:, 2:] - boxes[:, :2]], axis=1)
    table = DetectionTable(
        image_index=np.full(len(boxes), index, dtype=np.int64),
        labels=detections.labels.cpu().numpy(),
        boxes_xywh=xywh,
        scores=detections.scores.cpu().numpy().astype(np.float64),
        class_scores=detections.class_scores.cpu().numpy().astype(np.float64),
        ious=detections.ious.cpu().numpy().astype(np.float64),
    )
    return {"image": index, "table": table}
