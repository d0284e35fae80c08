"""Any declared row from a run's store, scored without the network: reading costs seconds, and so does AP.

Functions take paths and plain values, return plain values and can be pickled, so that rows may be scored in parallel.
A row's detections are those of direct inference (`scoring.inference.detect`), bit for bit.
"""

# D detections, I images of a group

from dataclasses import fields
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from detector.config import ScoringConfig
from detector.data.cache import load_dataset
from detector.data.samples import Dataset
from detector.data.transforms import to_original_frame
from detector.errors import DatasetError
from detector.evaluation.metrics import score_detections
from detector.evaluation.results import DetectionTable
from detector.files import write_json
from detector.models.detector import Detections
from detector.rescoring.columns import RowGroup
from detector.rescoring.header import StoreIdentity
from detector.rescoring.store import CandidateStore
from runyard.runs.folder import EvaluationFolder
from runyard.scoring.inference import to_table


def score_store(
    store: CandidateStore, dataset: Dataset, scoring: ScoringConfig, *, oracle: bool = False
) -> DetectionTable:
    """The detections that `detect` finds with the store's checkpoint under `scoring`, in original pixels.

    Args:
        dataset: the one that the store was made from.
        oracle: the true IoU takes the predicted one's place; the table's `ious` are then true ones.

    Raise ConfigError where no row of the store answers `scoring`, DatasetError where `dataset` cannot be its own, and
    CandidateStoreError where a file turns out to be damaged.
    """
    part, _ = store.row_of(scoring, oracle)
    found = (part.header.num_images, part.header.num_classes)
    if found != (len(dataset), len(dataset.categories)):
        raise DatasetError(
            f"has {len(dataset)} images and {len(dataset.categories)} classes, "
            f"but the candidates are of {found[0]} images and {found[1]} classes",
            file=dataset.name,
            remedy="Name the data set that the store was made from",
        )
    tables = [_to_original_table(group, dataset, scoring) for group in store.groups(scoring, oracle)]
    return DetectionTable.concatenate(tables)


def score_one(
    store_folder: Path,
    dataset_path: Path,
    scoring: ScoringConfig,
    out_folder: Path,
    *,
    oracle: bool = False,
    protocol: str = "coco",
    expect: StoreIdentity | None = None,
) -> dict[str, float]:
    """Score one row of a table; write its metrics to `out_folder` and return them.

    The metrics are those of `detector.evaluation.metrics.score_detections`. Raise InputErrors as
    `CandidateStore.open` and `score_store`; nothing is then written.
    """
    store = CandidateStore.open(store_folder, expect)
    dataset = load_dataset(dataset_path)
    table = score_store(store, dataset, scoring, oracle=oracle)
    metrics = score_detections(dataset, table, protocol)
    write_json(EvaluationFolder(out_folder).metrics, metrics, indent=2)
    return metrics


def _to_original_table(group: RowGroup, dataset: Dataset, scoring: ScoringConfig) -> DetectionTable:
    """The detections of a group's images that `scoring` lets through, which are the first of each image's."""
    owner = np.repeat(np.arange(len(group.images)), group.counts)
    rank = np.arange(len(owner)) - np.repeat(np.cumsum(group.counts) - group.counts, group.counts)
    passing = group.detections.scores.numpy() > np.float32(scoring.score_threshold)
    kept = np.flatnonzero(passing & (rank < scoring.max_detections))
    chosen = torch.from_numpy(kept)
    found = Detections(**{field.name: getattr(group.detections, field.name)[chosen] for field in fields(Detections)})
    boxes = _original_frame(found.boxes, owner[kept], group.sizes, dataset.image_sizes[group.images])
    return to_table(group.images[owner[kept]], boxes, found)


def _original_frame(
    boxes: Tensor, owner: NDArray[np.int64], resized: NDArray[np.int64], original: NDArray[np.int64]
) -> Tensor:
    """`to_original_frame` for boxes of several images: those of equal sizes at once, as few sizes differ."""
    moved = torch.empty_like(boxes)
    frames, frame_of = np.unique(np.concatenate([resized, original], axis=1), axis=0, return_inverse=True)
    for number, (height, width, *size) in enumerate(frames.tolist()):
        rows = torch.from_numpy(np.flatnonzero(frame_of.reshape(-1)[owner] == number))
        moved[rows] = to_original_frame(boxes[rows], (height, width), (size[0], size[1]))
    return moved
