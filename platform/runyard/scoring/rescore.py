"""Every alpha from one forward pass: write a checkpoint's candidate store, and score it row by row without the network.

Functions take paths and plain values, return plain values and can be pickled, so that rows may be scored in parallel by
whoever starts the processes. A row's detections are those of direct inference (`training.evaluation.detect`), bit for
bit on one machine; what a row costs is reading the store once and AP.
"""

# D detections, I images of a group, S survivors of a group

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from detector.checkpoint import checkpoint_fingerprint, load_checkpoint
from detector.config import ScoringConfig
from detector.data.cache import load_dataset
from detector.data.fingerprint import fingerprint
from detector.data.samples import Dataset
from detector.data.transforms import to_original_frame
from detector.engine import autocast_dtype
from detector.errors import DatasetError, InputError
from detector.evaluation.metrics import score_detections
from detector.evaluation.results import DetectionTable
from detector.files import write_json
from detector.models.confidence import combine_scores
from detector.models.postprocess import probability
from detector.models.retinanet import RetinaNet
from detector.rescoring.header import MAX_ROWS, StoreHeader, StoreIdentity
from detector.rescoring.kept_pairs import ScoringRow, survivors
from detector.rescoring.oracle import truth_boxes
from detector.rescoring.store import CandidateGroup, CandidateStore, CandidateWriter, publish_store
from runyard.context import TrainContext, first_rank_decides, gather_on_first_rank
from runyard.runs.folder import EvaluationFolder
from runyard.scoring.inference import forward_passes, to_table
from runyard.scoring.metrics import write_evaluation
from runyard.spec import ExperimentSpec


def store_identity(spec: ExperimentSpec, checkpoint: Path, dataset: Dataset) -> StoreIdentity:
    """What a store of this checkpoint's outputs on `dataset` must say of itself."""
    return StoreIdentity(
        dataset=fingerprint(dataset),
        checkpoint=checkpoint_fingerprint(checkpoint),
        short_side_px=spec.data.short_side_px,
        long_side_px=spec.data.long_side_px,
    )


def write_candidates(
    spec: ExperimentSpec,
    checkpoint: Path,
    dataset_path: Path,
    folder: Path,
    rows: Sequence[ScoringRow],
    context: TrainContext,
) -> None:
    """One forward pass over the data set, whose candidates end up in the store `folder`, complete for `rows`.

    Every rank must call it. A store that is there already, whole, of the same identity and for these rows, is left as
    it is. Any other is replaced once the new one is complete, which then is for the earlier one's rows as well, where
    the identity is the same. Memory does not grow with the number of images.
    """
    dataset = load_dataset(dataset_path)
    identity = store_identity(spec, checkpoint, dataset) if context.rank == 0 else None
    identity = first_rank_decides(identity, context)
    rows = first_rank_decides(_rows_to_write(folder, identity, rows) if context.rank == 0 else None, context)
    if not rows:
        return
    model = RetinaNet(spec.model, len(dataset.categories))
    load_checkpoint(checkpoint, model)
    if spec.runtime.channels_last:
        model = model.to(memory_format=torch.channels_last)
    model = model.to(context.device).eval()
    dtype = autocast_dtype(spec.optim.precision, context.device)
    header = StoreHeader(
        identity=identity,
        num_images=len(dataset),
        num_classes=len(dataset.categories),
        iou_head=spec.model.iou_head,
        rows=tuple(rows),
        written_on=f"{context.device.type} {dtype or torch.float32}",
    )
    with CandidateWriter(folder, header, rank=context.rank, world_size=context.world_size) as writer:
        for batch in forward_passes(
            model,
            dataset,
            spec.data,
            context,
            batch_size=spec.runtime.evaluation_batch_size,
            loader_workers=spec.runtime.loader_workers,
            autocast_dtype=dtype,
            channels_last=spec.runtime.channels_last,
        ):
            truth = [truth_boxes(dataset, *image) for image in zip(batch.images, batch.sizes, strict=True)]
            found = survivors(batch.outputs, batch.anchors, batch.anchor_valid, batch.image_sizes, rows, truth)
            for image, size, of_image in zip(batch.images, batch.sizes, found, strict=True):
                writer.add(image, size, of_image)
    gather_on_first_rank(None, context)  # all shards are closed
    if context.rank == 0:
        publish_store(folder, context.world_size)
    first_rank_decides(None, context)  # nobody looks for the store before it has its name


def score_store(
    store: CandidateStore, dataset: Dataset, scoring: ScoringConfig, *, oracle: bool = False
) -> DetectionTable:
    """The detections that `detect` finds with the store's checkpoint under `scoring`, in original pixels.

    Args:
        dataset: the one that the store was made from.
        oracle: the true IoU takes the predicted one's place; it is then what the table's `ious` hold.

    Raises ConfigError where the store is not complete for `scoring`, DatasetError where `dataset` cannot be its own.
    """
    row = store.header.row_of(scoring, oracle)
    found = (store.header.num_images, store.header.num_classes)
    if found != (len(dataset), len(dataset.categories)):
        raise DatasetError(
            f"has {len(dataset)} images and {len(dataset.categories)} classes, "
            f"but the candidates are of {found[0]} images and {found[1]} classes",
            file=dataset.name, remedy="Name the data set that the store was made from",
        )  # fmt: skip
    tables = [_score_group(group, row, dataset, scoring, oracle) for group in store.groups()]
    return DetectionTable.concatenate(tables)


def score_one(
    store_folder: Path,
    dataset_path: Path,
    scoring: ScoringConfig,
    out_folder: Path,
    *,
    oracle: bool = False,
    protocol: str = "coco",
    detections: bool = False,
    expect: StoreIdentity | None = None,
) -> dict[str, float]:
    """One row of the table: writes its metrics to `out_folder` and returns them.

    With `detections` the result file is written too: it costs more than all the rest, and the store has it all.

    The metrics are those of `training.scoring.score_detections`: AP, AP of every class, correlation of confidence and
    true IoU. Raises InputErrors as `CandidateStore.open` and `score_store`; nothing is then written.
    """
    store = CandidateStore.open(store_folder, expect)
    dataset = load_dataset(dataset_path)
    table = score_store(store, dataset, scoring, oracle=oracle)
    metrics = score_detections(dataset, table, protocol)
    folder = EvaluationFolder(out_folder)
    if detections:
        write_evaluation(folder, dataset, table, metrics)
    else:
        write_json(folder.metrics, metrics, indent=2)
    return metrics


def _rows_to_write(folder: Path, identity: StoreIdentity, rows: Sequence[ScoringRow]) -> tuple[ScoringRow, ...]:
    """The rows that a new store is to be for; none where the present one will do."""
    try:
        header = CandidateStore.open(folder, identity).header
    except InputError:
        return tuple(rows)
    missing = [row for row in rows if not header.holds(row)]
    together = (*header.rows, *missing)
    return () if not missing else together if len(together) <= MAX_ROWS else tuple(rows)


def _score_group(
    group: CandidateGroup, row: int, dataset: Dataset, scoring: ScoringConfig, oracle: bool
) -> DetectionTable:
    pairs = group.pairs
    chosen = ((pairs.rows >> row) & 1).bool().nonzero()[:, 0]
    ious: Tensor | None = pairs.true_ious if oracle else pairs.iou_logits
    if ious is not None:
        ious = ious[chosen] if oracle else probability(ious[chosen])
    class_scores = probability(pairs.cls_logits[chosen])
    scores = combine_scores(class_scores[:, None], ious, scoring)[:, 0]
    # Survivors stand by anchor and class, and a stable sort leaves equal scores so.
    owner = np.repeat(np.arange(len(group.images)), group.counts)[chosen.numpy()]
    order = np.lexsort((-scores.numpy(), owner))
    starts = np.searchsorted(owner, np.arange(len(group.images)))
    rank = np.arange(len(owner)) - starts[owner]  # `owner` is ascending, ordered or not
    order = order[(rank < scoring.max_detections) & (scores.numpy()[order] > np.float32(scoring.score_threshold))]
    kept = torch.from_numpy(order)
    found = chosen[kept]
    return to_table(
        group.images[owner[order]],
        _original_frame(pairs.boxes[found], owner[order], group.sizes, dataset.image_sizes[group.images]),
        pairs.labels[found],
        scores[kept],
        class_scores[kept],
        torch.full_like(scores[kept], torch.nan) if ious is None else ious[kept],
    )


def _original_frame(
    boxes: Tensor, owner: NDArray[np.int64], resized: NDArray[np.int64], original: NDArray[np.int64]
) -> Tensor:
    """`to_original_frame` for boxes of several images: those of equal sizes together, as few sizes differ."""
    moved = torch.empty_like(boxes)
    frames, frame_of = np.unique(np.concatenate([resized, original], axis=1), axis=0, return_inverse=True)
    for number, (height, width, *size) in enumerate(frames.tolist()):
        rows = torch.from_numpy(np.flatnonzero(frame_of[owner] == number))
        moved[rows] = to_original_frame(boxes[rows], (height, width), (size[0], size[1]))
    return moved
