"""Inference over all workers: tables of detections, and the store that a run's numbers are read from.

Whole batches are dealt out to the workers, so that each image counts once, whichever worker sees it.
"""

# D detections

from collections.abc import Callable, Iterator, Sequence
from dataclasses import fields
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from detector.checkpoint import checkpoint_fingerprint, load_checkpoint
from detector.config import DataConfig, ScoringConfig
from detector.data.box_geometry import xywh_from_corners
from detector.data.cache import load_dataset
from detector.data.fingerprint import fingerprint
from detector.data.loaders import make_eval_loader
from detector.data.samples import Dataset
from detector.data.transforms import to_original_frame
from detector.engine import autocast_dtype
from detector.errors import InputError
from detector.evaluation.results import DetectionTable
from detector.models.detector import Detections, ScoringRow
from detector.predictor import Predictor
from detector.rescoring.columns import ImageRows
from detector.rescoring.header import MAX_ROWS, PartHeader, StoreIdentity
from detector.rescoring.oracle import with_truth
from detector.rescoring.store import CandidateStore, PartWriter, next_part, publish_part
from runyard.context import TrainContext, first_rank_decides, gather_on_first_rank, loader_processes
from runyard.failures import TrainingStoppedError
from runyard.runs.finished import final_checkpoint
from runyard.runs.folder import RunFolder
from runyard.spec import ExperimentSpec


def detect(
    predictor: Predictor,
    dataset: Dataset,
    data: DataConfig,
    scoring: ScoringConfig,
    context: TrainContext,
    *,
    batch_size: int,
    loader_workers: int = 0,
    stop_requested: Callable[[], bool] = lambda: False,
) -> DetectionTable | None:
    """Detections of every image of `dataset`, in its order, in original pixels; on rank 0, None elsewhere.

    Every rank must call it. The result does not depend on the number of ranks. Raise TrainingStoppedError as soon as
    `stop_requested` says so: nothing is to be saved, and the launcher ends the ranks that have not seen it.
    """
    rows = (ScoringRow(scoring),)
    found = _detect_share(predictor, dataset, data, rows, context, batch_size, loader_workers, stop_requested)
    gathered = gather_on_first_rank([(image.image, _to_original_table(dataset, image)) for image in found], context)
    if context.rank != 0:
        return None
    ordered = sorted((part for of_rank in gathered for part in of_rank), key=lambda part: int(part[0]))
    if [image for image, _ in ordered] != list(range(len(dataset))):
        raise AssertionError("evaluation must see every image exactly once")
    return DetectionTable.concatenate([table for _, table in ordered])


def store_identity(spec: ExperimentSpec, checkpoint: Path, dataset: Dataset) -> StoreIdentity:
    """Identity of a store of this checkpoint's outputs on `dataset`."""
    return StoreIdentity(
        dataset=fingerprint(dataset),
        checkpoint=checkpoint_fingerprint(checkpoint),
        short_side_px=spec.data.short_side_px,
        long_side_px=spec.data.long_side_px,
    )


def keep_candidates(spec: ExperimentSpec, folder: RunFolder, rows: Sequence[ScoringRow], context: TrainContext) -> None:
    """Complete the store of a finished run's newest checkpoint for `rows`; every rank calls it.

    One forward pass over the validation split, where the store lacks a row. Raise CheckpointError for a run without a
    checkpoint or a damaged one.
    """
    checkpoint = final_checkpoint(folder)
    dataset = load_dataset(folder.val_data(spec.validation_hash))
    store = folder.candidates(spec.validation_hash)

    def predictor() -> Predictor:
        # Imports torchvision, for a second: a driver that only reads stores needs none of it.
        from detector.models.build import build_detector

        detector = build_detector(spec.model, spec.loss, len(dataset.categories))
        load_checkpoint(checkpoint, detector)
        dtype = autocast_dtype(spec.optim.precision, context.device)
        return Predictor(detector, context.device, dtype, channels_last=spec.runtime.channels_last)

    write_candidates(spec, predictor, checkpoint, dataset, store, rows, context)


def write_candidates(
    spec: ExperimentSpec,
    make_predictor: Callable[[], Predictor],
    checkpoint: Path,
    dataset: Dataset,
    store: Path,
    rows: Sequence[ScoringRow],
    context: TrainContext,
    stop_requested: Callable[[], bool] = lambda: False,
) -> bool:
    """Add to `store` the rows that it lacks: one forward pass over `dataset` for each `MAX_ROWS` rows.

    Every rank must call it. Return False where the store lacked nothing. Parts that are damaged or of other weights are
    removed once the new ones are complete. Memory does not grow with the number of images. Raise TrainingStoppedError
    as `detect`.

    Args:
        make_predictor: called only where rows are missing; its weights are those of `checkpoint`.
    """
    identity: StoreIdentity = first_rank_decides(
        store_identity(spec, checkpoint, dataset) if context.rank == 0 else None, context
    )
    missing: tuple[ScoringRow, ...] = first_rank_decides(
        _missing_rows(store, identity, rows) if context.rank == 0 else None, context
    )
    predictor = make_predictor() if missing else None
    for start in range(0, len(missing), MAX_ROWS):
        assert predictor is not None
        header = PartHeader(
            identity=identity,
            num_images=len(dataset),
            num_classes=len(dataset.categories),
            iou_head=spec.model.iou_head,
            rows=missing[start : start + MAX_ROWS],
            written_on=predictor.precision,
        )
        part: Path = first_rank_decides(next_part(store) if context.rank == 0 else None, context)
        with PartWriter(part, header, rank=context.rank, world_size=context.world_size) as writer:
            for image in _detect_share(
                predictor,
                dataset,
                spec.data,
                header.rows,
                context,
                spec.runtime.evaluation_batch_size,
                loader_processes(spec.runtime.loader_workers, context),
                stop_requested,
            ):
                writer.add(image)
        gather_on_first_rank(None, context)  # all shards are closed
        if context.rank == 0:
            publish_part(part, context.world_size)
    if context.rank == 0 and missing:
        CandidateStore.open(store, identity).remove_unusable()
    first_rank_decides(None, context)  # no rank looks for the store before it has its parts
    return bool(missing)


def _missing_rows(store: Path, identity: StoreIdentity, rows: Sequence[ScoringRow]) -> tuple[ScoringRow, ...]:
    try:
        return CandidateStore.open(store, identity).missing(rows)
    except InputError:
        return tuple(dict.fromkeys(rows))


def _detect_share(
    predictor: Predictor,
    dataset: Dataset,
    data: DataConfig,
    rows: Sequence[ScoringRow],
    context: TrainContext,
    batch_size: int,
    loader_workers: int,
    stop_requested: Callable[[], bool],
) -> Iterator[ImageRows]:
    """Detections of this rank's share of the images; over all ranks each image comes exactly once."""
    oracle = any(row.oracle for row in rows)
    loader = make_eval_loader(
        dataset,
        data,
        batch_size=batch_size,
        rank=context.rank,
        world_size=context.world_size,
        loader_workers=loader_workers,
        pin_memory=context.device.type == "cuda",
    )
    for batch in loader:
        if stop_requested():
            raise TrainingStoppedError("stopped on request while evaluating")
        found = predictor(with_truth(batch, dataset) if oracle else batch, rows)
        sizes = batch.sizes.tolist()
        for place, image in enumerate(batch.image_index.tolist()):
            of_image = [_to_cpu(of_row[place]) for of_row in found]
            yield ImageRows(image, (sizes[place][0], sizes[place][1]), of_image)


def _to_cpu(detections: Detections) -> Detections:
    return Detections(**{field.name: getattr(detections, field.name).cpu() for field in fields(Detections)})


def _to_original_table(dataset: Dataset, image: ImageRows) -> DetectionTable:
    """The first row's detections of an image."""
    height, width = (int(side) for side in dataset.image_sizes[image.image])
    found = image.rows[0]
    return to_table(
        np.full(len(found.scores), image.image, dtype=np.int64),
        to_original_frame(found.boxes, image.size, (height, width)),
        found,
    )


def to_table(image_index: NDArray[np.int64], boxes: Tensor, detections: Detections) -> DetectionTable:
    """The columns of D detections as evaluation takes them.

    Args:
        image_index: (D,) positions in the data set.
        boxes: (D, 4) x1, y1, x2, y2 in the original frame, in place of the detections' own.
        detections: on the CPU.
    """
    return DetectionTable(
        image_index=image_index,
        labels=detections.labels.numpy(),
        boxes_xywh=xywh_from_corners(boxes.numpy().astype(np.float64)),
        scores=detections.scores.numpy().astype(np.float64),
        class_scores=detections.class_scores.numpy().astype(np.float64),
        ious=detections.ious.numpy().astype(np.float64),
    )
