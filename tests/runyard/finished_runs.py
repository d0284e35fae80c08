"""Sweeps that look finished: real evaluations of made-up detections, in the folders where runs would leave them."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from detector.checkpoint import save_checkpoint
from detector.data.box_geometry import corners_from_xywh
from detector.data.cache import save_dataset
from detector.data.fingerprint import fingerprint
from detector.data.samples import Dataset
from detector.evaluation.metrics import score_detections
from detector.evaluation.results import DetectionTable
from detector.files import write_json
from detector.models.detector import Detections, ScoringRow
from detector.rescoring.columns import ImageRows
from detector.rescoring.header import PartHeader
from detector.rescoring.store import PartWriter, next_part, publish_part
from runyard.grid import Trial, expand
from runyard.paper import PaperTable
from runyard.runs.folder import RunFolder, SweepFolder
from runyard.scoring.inference import store_identity
from runyard.scoring.metrics import write_evaluation
from runyard.scoring.results import SweepResult, TrialResult, stored_detections, write_trials
from runyard.spec import ExperimentSpec


def detections(dataset: Dataset, noise_px: float, seed: int = 0) -> DetectionTable:
    """Every object found once, `noise_px` off, and as many boxes where nothing is."""
    random = np.random.default_rng(seed)
    count = len(dataset.labels)
    owner = np.repeat(np.arange(len(dataset)), np.diff(dataset.offsets))
    found = dataset.boxes_xywh + random.normal(0, noise_px, (count, 4)) * [1, 1, 0, 0]
    wrong = np.column_stack([random.uniform(0, 40, (count, 2)), np.full((count, 2), 9.0)])
    images = np.concatenate([owner, owner])
    labels = np.concatenate([dataset.labels, random.integers(0, len(dataset.categories), count)])
    scores = random.uniform(0.05, 1, 2 * count)
    return DetectionTable(images, labels, np.concatenate([found, wrong]), scores, class_scores=scores)


def finished_sweep(
    storage: Path,
    dataset: Dataset,
    rows: Mapping[str, tuple[ExperimentSpec, float]],
    *,
    paper: tuple[PaperTable, ...] = (),
    seeds: int = 1,
    smoke: bool = False,
) -> SweepResult:
    """A sweep whose rows have these specs, and detections so many pixels off; written down as `run_sweep` does."""
    results = []
    for trial in expand({row: spec for row, (spec, _) in rows.items()}, seeds=seeds):
        folder = RunFolder(storage / f"{trial.spec.recipe}-{trial.spec.training_hash[:12]}")
        runtime = replace(trial.spec.runtime, storage=storage, name=folder.root.name)
        spec = replace(trial.spec, runtime=runtime)
        if not folder.val_data(spec.validation_hash).exists():
            save_selection(dataset, folder.train_data)
            save_selection(dataset, folder.val_data(spec.validation_hash))
            save_checkpoint(folder.checkpoint(2), torch.nn.Linear(1, 1), None, {"step": 2})
        store_detections(spec, folder, dataset, detections(dataset, rows[trial.row][1], seed=spec.seed))
        _, table = stored_detections(spec, folder)
        metrics = score_detections(dataset, table, spec.protocol)
        write_evaluation(folder.evaluation(spec.scoring_hash), dataset, table, metrics)
        results.append(TrialResult(Trial(spec, trial.row), folder, metrics))
    sweep = SweepResult(
        "table-x", dataset.name, SweepFolder.in_storage(storage, "table-x"), tuple(results), smoke, paper
    )
    write_trials(sweep)
    return sweep


def save_selection(dataset: Dataset, path: Path) -> None:
    """The columns of a data set with their provenance, as `prepare` leaves them."""
    save_dataset(dataset, path)
    content = {"name": dataset.name, "images": len(dataset), "fingerprint": fingerprint(dataset), "skipped": []}
    write_json(path.with_suffix(".json"), content, indent=2)


def store_detections(
    spec: ExperimentSpec, folder: RunFolder, dataset: Dataset, table: DetectionTable, *, oracle: bool = False
) -> None:
    """A part of the run's store that answers the spec's scoring with `table`; images have their original size."""
    row = ScoringRow(spec.scoring, oracle)
    identity = store_identity(spec, folder.checkpoints()[0], dataset)
    header = PartHeader(identity, len(dataset), len(dataset.categories), spec.model.iou_head, (row,))
    part = next_part(folder.candidates(spec.validation_hash))
    with PartWriter(part, header) as writer:
        for image in range(len(dataset)):
            height, width = dataset.image_sizes[image].tolist()
            of_image = table.select(table.image_index == image)
            writer.add(ImageRows(image, (height, width), [_by_rank(of_image)]))
    publish_part(part)


def _by_rank(table: DetectionTable) -> Detections:
    order = np.argsort(-table.scores, kind="stable")
    boxes, scores, class_scores, ious = (
        torch.tensor(values[order], dtype=torch.float32)
        for values in (corners_from_xywh(table.boxes_xywh), table.scores, table.class_scores, table.ious)
    )
    labels = torch.tensor(table.labels[order])
    return Detections(boxes, scores, labels, class_scores, ious, torch.full_like(labels, -1))
