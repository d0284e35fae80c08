"""Sweeps that look finished: real evaluations of made-up detections, in the folders where runs would leave them."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np

from detector.data.cache import save_dataset
from detector.data.samples import Dataset
from detector.evaluation.metrics import score_detections
from detector.evaluation.results import DetectionTable
from runyard.grid import expand
from runyard.paper import PaperTable
from runyard.runs.folder import RunFolder, SweepFolder
from runyard.scoring.metrics import write_evaluation
from runyard.scoring.results import SweepResult, TrialResult, write_trials
from runyard.spec import ExperimentSpec


def detections(dataset: Dataset, noise_px: float, seed: int = 0) -> DetectionTable:
    """Every object found once, `noise_px` off, and as many boxes where nothing is."""
    random = np.random.default_rng(seed)
    count = len(dataset.labels)
    owner = np.repeat(np.arange(len(dataset)), np.diff(dataset.offsets))
    found = dataset.boxes_xywh + random.normal(0, noise_px, (count, 4)) * [1, 1, 0, 0]
    wrong = np.column_stack([random.uniform(0, 40, (count, 2)), np.full((count, 2), 9.0)])
    return DetectionTable(
        np.concatenate([owner, owner]),
        np.concatenate([dataset.labels, random.integers(0, len(dataset.categories), count)]),
        np.concatenate([found, wrong]),
        random.uniform(0.05, 1, 2 * count),
    )


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
        val_data = folder.val_data(trial.spec.validation_hash)
        if not val_data.exists():
            save_dataset(dataset, val_data)
            save_dataset(dataset, folder.train_data)
        spec = replace(trial.spec, runtime=replace(trial.spec.runtime, storage=storage, name=folder.root.name))
        evaluation = folder.evaluation(spec.scoring_hash)
        table = detections(dataset, rows[trial.row][1], seed=spec.seed)
        metrics = score_detections(dataset, table, spec.protocol)
        write_evaluation(evaluation, dataset, table, metrics)
        results.append(TrialResult(trial.id, trial.row, trial.line, trial.label, spec, folder, evaluation, metrics))
    sweep = SweepResult("table-x", dataset.name, SweepFolder.of(storage, "table-x"), tuple(results), smoke, paper)
    write_trials(sweep)
    return sweep
