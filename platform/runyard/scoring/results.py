"""A sweep's results as they lie in the run folders: what a table is made from, right after a sweep or years later."""

import json
import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from detector.config import ScoringConfig
from detector.data.cache import load_dataset
from detector.data.samples import Dataset
from detector.errors import ConfigError, InputError
from detector.evaluation.results import DetectionTable, read_coco_results
from detector.files import write_json
from detector.rescoring.header import StoreIdentity
from detector.rescoring.store import CandidateStore
from runyard.driver.errors import Failure
from runyard.paper import PaperTable
from runyard.runs.finished import final_checkpoint
from runyard.runs.folder import EvaluationFolder, RunFolder, SweepFolder
from runyard.scoring.inference import store_identity
from runyard.scoring.rescore import score_one, score_store
from runyard.spec import ExperimentSpec, from_dict, to_dict


@dataclass(frozen=True)
class TrialResult:
    """What became of a trial."""

    id: str
    row: str
    """The table's row."""
    line: str
    """The row and the axes' values; trials of one line differ in their seeds alone."""
    label: str
    spec: ExperimentSpec
    """With absolute paths and the run's name in it."""
    folder: RunFolder
    """Of the training that it shares with the trials of the same training hash."""
    evaluation: EvaluationFolder
    metrics: dict[str, float] | None
    """None where there are none."""
    failure: Failure | None = None
    """The first one, where something failed this time."""
    oracle: bool = False
    """Not a trial of the sweep: the same candidates ranked by the true IoU in place of the predicted one."""

    @property
    def val_data(self) -> Path:
        """The validation images that it was evaluated on."""
        return self.folder.val_data(self.spec.validation_hash)

    @property
    def candidates(self) -> Path:
        """The store that rescored rows come from."""
        return self.folder.candidates(self.spec.validation_hash)

    def load_detections(self) -> tuple[Dataset, DetectionTable]:
        """The validation split and what was found in it, from the result file or from the run's candidates."""
        dataset = load_dataset(self.val_data)
        if self.evaluation.detections.exists():
            return dataset, read_coco_results(self.evaluation.detections, dataset)
        identity = store_identity(self.spec, final_checkpoint(self.folder), dataset)
        store = CandidateStore.open(self.candidates, identity)
        return dataset, score_store(store, dataset, self.spec.scoring, oracle=self.oracle)


@dataclass(frozen=True)
class SweepResult:
    """All trials of a sweep, in the order of the table."""

    name: str
    dataset: str
    folder: SweepFolder
    results: tuple[TrialResult, ...]
    smoke: bool
    """Everything was made tiny: the numbers mean nothing."""
    paper: tuple[PaperTable, ...]
    """The paper's tables that the rows reproduce."""

    @property
    def failures(self) -> dict[str, Failure]:
        """By the trials' labels."""
        return {result.label: result.failure for result in self.results if result.failure is not None}


def together(earlier: Sequence[TrialResult], now: Sequence[TrialResult]) -> tuple[TrialResult, ...]:
    """The trials of a sweep that goes on with a part of its grid: all there ever were, those of `now` as they are now.

    In the earlier order, new ones behind the trial they follow in `now`. Of a trial's two labels the longer is kept:
    the larger grid tells apart what the smaller has one of.
    """
    merged = {result.id: result for result in earlier}
    order = list(merged)
    place = 0
    for result in now:
        if result.id in merged:
            known = merged[result.id]
            place = order.index(result.id) + 1
            if len(known.label) > len(result.label):
                result = replace(result, line=known.line, label=known.label)
        else:
            order.insert(place, result.id)
            place += 1
        merged[result.id] = result
    return tuple(merged[trial_id] for trial_id in order)


def write_trials(sweep: SweepResult) -> None:
    """Writes down which trials there are and where their results lie, for `load_sweep`."""
    rows = [
        {
            "id": result.id,
            "row": result.row,
            "line": result.line,
            "label": result.label,
            "seed": result.spec.seed,
            "run": os.path.relpath(result.folder.root, sweep.folder.root),
            "evaluation": result.evaluation.root.relative_to(result.folder.root).as_posix(),
            "spec": to_dict(result.spec),
        }
        for result in sweep.results
    ]
    content = {
        "sweep": sweep.name,
        "dataset": sweep.dataset,
        "smoke": sweep.smoke,
        "trials": rows,
        "paper": [table.to_dict() for table in sweep.paper],
    }
    write_json(sweep.folder.trials, content, indent=2)


def load_sweep(path: Path) -> SweepResult:
    """The sweep of a folder that `run_sweep` has written, with the metrics that its trials have by now.

    Raises ConfigError where it is no such folder. Trials without metrics are kept, and have None.
    """
    folder = SweepFolder(path.expanduser().resolve())
    try:
        content = json.loads(folder.trials.read_text())
        results = tuple(_loaded(entry, folder.root) for entry in content["trials"])
        paper = tuple(PaperTable.from_dict(table) for table in content["paper"])
        return SweepResult(content["sweep"], content["dataset"], folder, results, content["smoke"], paper)
    except (OSError, ValueError, KeyError, TypeError, InputError) as error:
        raise ConfigError(
            f"is not the folder of a sweep ({type(error).__name__}: {error})", file=folder.root,
            remedy="Give the folder below <storage>/sweeps that holds trials.json",
        ) from error  # fmt: skip


def read_metrics(evaluation: EvaluationFolder) -> dict[str, float] | None:
    """None where there are none."""
    return json.loads(evaluation.metrics.read_text()) if evaluation.metrics.exists() else None


def oracle_of(result: TrialResult) -> TrialResult | None:
    """The row that ranks a run's candidates by their true IoU, scored now if need be; None where it has no such
    store, or a damaged one.

    It is the headroom: what a perfect IoU head would give with these weights, at the alpha that the store declares.
    """
    try:
        identity = store_identity(result.spec, final_checkpoint(result.folder), load_dataset(result.val_data))
        declared = [row.scoring for row in CandidateStore.open(result.candidates, identity).rows if row.oracle]
        ours = replace(result.spec.scoring, confidence="alpha")
        scoring = next((s for s in declared if s == replace(ours, alpha=s.alpha)), None)
        return None if scoring is None else _scored_by_truth(result, scoring, identity)
    except InputError:
        return None


def _scored_by_truth(result: TrialResult, scoring: ScoringConfig, identity: StoreIdentity) -> TrialResult:
    label = f"oracle IoU, alpha {scoring.alpha:g}"
    spec = replace(result.spec, scoring=scoring, paper=replace(result.spec.paper, row=label))
    evaluation = EvaluationFolder(result.folder.oracle.root / spec.scoring_hash[:12])
    metrics = read_metrics(evaluation)
    if metrics is None:
        metrics = score_one(
            result.candidates,
            result.val_data,
            scoring,
            evaluation.root,
            oracle=True,
            protocol=spec.protocol,
            expect=identity,
        )
    return replace(
        result, id=f"{result.id}-oracle", row=label, line=label, label=label, spec=spec, evaluation=evaluation,
        metrics=metrics, failure=None, oracle=True,
    )  # fmt: skip


def _loaded(entry: dict[str, Any], sweep: Path) -> TrialResult:
    spec = from_dict(entry["spec"])
    folder = RunFolder((sweep / entry["run"]).resolve())
    evaluation = folder.evaluation(spec.scoring_hash)
    return TrialResult(
        entry["id"], entry["row"], entry["line"], entry["label"], spec, folder, evaluation, read_metrics(evaluation)
    )
