"""Results of a sweep as they lie in the run folders: what tables are made from, right after a sweep or years later."""

import json
import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from detector.data.cache import load_dataset
from detector.data.samples import Dataset
from detector.errors import ConfigError, InputError
from detector.evaluation.results import DetectionTable
from detector.files import write_json
from detector.rescoring.store import CandidateStore
from runyard.failures import Failure
from runyard.grid import Trial, labels
from runyard.paper import PaperTable
from runyard.runs.finished import final_checkpoint
from runyard.runs.folder import EvaluationFolder, RunFolder, SweepFolder
from runyard.runs.prepare import selection_of
from runyard.runs.storage import FORMAT, require_format
from runyard.scoring.inference import store_identity
from runyard.scoring.rescore import score_one, score_store
from runyard.spec import ExperimentSpec, from_dict, to_dict


@dataclass(frozen=True)
class TrialResult:
    """Outcome of a trial."""

    trial: Trial
    """Its spec has absolute paths and the run's name in it."""
    run: RunFolder
    """Folder of the training that it shares with the trials of the same training hash."""
    metrics: dict[str, float] | None = None
    """None where there are none yet."""
    failure: Failure | None = None
    """The first one, where something failed this time."""
    oracle: bool = False
    """Whether the same outputs are ranked by the true IoU in place of the predicted one; not a trial of the sweep."""

    @property
    def id(self) -> str:
        """The trial's, or an id of its own for the oracle."""
        return f"{self.trial.id}-oracle" if self.oracle else self.trial.id

    @property
    def spec(self) -> ExperimentSpec:
        """Spec of the trial."""
        return self.trial.spec

    @property
    def row(self) -> str:
        """The table's row."""
        return self.trial.row

    @property
    def evaluation(self) -> EvaluationFolder:
        """Folder of metrics and resamples."""
        folder = self.run.oracle if self.oracle else self.run.evaluation
        return folder(self.spec.scoring_hash)

    @property
    def val_data(self) -> Path:
        """Saved columns of the images that it was evaluated on."""
        return self.run.val_data(self.spec.validation_hash)

    @property
    def data_fingerprints(self) -> tuple[str, str]:
        """Fingerprints of the training and of the evaluated images; empty texts where a folder tells none."""
        return tuple(_fingerprint(path) for path in (self.run.train_data, self.val_data))  # type: ignore[return-value]

    def load_detections(self) -> tuple[Dataset, DetectionTable]:
        """The evaluated images and their detections, from the run's store; InputError where it is gone or damaged."""
        return stored_detections(self.spec, self.run, oracle=self.oracle)


@dataclass(frozen=True)
class SweepResult:
    """All trials of a sweep, in the order of the table."""

    name: str
    dataset: str
    folder: SweepFolder
    results: tuple[TrialResult, ...]
    smoke: bool = False
    """Whether everything was made tiny: the numbers mean nothing then."""
    paper: tuple[PaperTable, ...] = ()
    """Tables of the paper that the rows reproduce."""
    experiment_id: str | None = None
    """Id in the tracking store; None where the store does not have all records, or was not asked."""

    @cached_property
    def labels(self) -> dict[str, str]:
        """Text of each trial, by trial id."""
        return labels(result.trial for result in self.results)

    @property
    def failures(self) -> dict[str, Failure]:
        """Failures by the trials' labels."""
        return {self.labels[result.id]: result.failure for result in self.results if result.failure is not None}


def stored_detections(spec: ExperimentSpec, run: RunFolder, *, oracle: bool = False) -> tuple[Dataset, DetectionTable]:
    """The evaluated images of a finished run and their detections under the spec's scoring, in original pixels.

    Raises InputError where the run's store is gone, damaged or without this scoring.
    """
    dataset = load_dataset(run.val_data(spec.validation_hash))
    identity = store_identity(spec, final_checkpoint(run), dataset)
    store = CandidateStore.open(run.candidates(spec.validation_hash), identity)
    return dataset, score_store(store, dataset, spec.scoring, oracle=oracle)


def read_result(trial: Trial, run: RunFolder, failure: Failure | None = None) -> TrialResult:
    """Result of a trial with the metrics that its evaluation has by now."""
    return TrialResult(trial, run, _read_metrics(run.evaluation(trial.spec.scoring_hash)), failure)


def write_trials(sweep: SweepResult) -> None:
    """Write down which trials there are and where their results lie, for `load_sweep`."""
    trials = [
        {
            "id": result.id,
            "row": result.row,
            "label": sweep.labels[result.id],
            "seed": result.spec.seed,
            "run": os.path.relpath(result.run.root, sweep.folder.root),
            "evaluation": result.evaluation.root.relative_to(result.run.root).as_posix(),
            "spec": to_dict(result.spec),
        }
        for result in sweep.results
    ]
    content = {
        "format": FORMAT,
        "sweep": sweep.name,
        "dataset": sweep.dataset,
        "smoke": sweep.smoke,
        "trials": trials,
        "paper": [table.to_dict() for table in sweep.paper],
    }
    write_json(sweep.folder.trials, content, indent=2)


def load_sweep(path: Path) -> SweepResult:
    """The sweep of a folder that a driver has written, with the metrics that its trials have by now.

    Raises ConfigError where it is not such a folder. Trials without metrics are kept, and have None.
    """
    folder = SweepFolder(path.expanduser().resolve())
    try:
        content = json.loads(folder.trials.read_text())
        found = content.get("format", 1)
    except (OSError, ValueError, AttributeError) as error:
        raise _not_a_sweep(folder, error) from error
    require_format(found, folder.root)
    try:
        results = tuple(_loaded(entry, folder.root) for entry in content["trials"])
        paper = tuple(PaperTable.from_dict(table) for table in content["paper"])
        return SweepResult(content["sweep"], content["dataset"], folder, results, content["smoke"], paper)
    except (KeyError, TypeError, InputError) as error:
        raise _not_a_sweep(folder, error) from error


def oracle_of(result: TrialResult) -> TrialResult | None:
    """The row that ranks a run's outputs by their true IoU, scored now if need be; None where the store lacks it.

    It is the headroom: what a perfect IoU head would give with these weights, at the alpha that the store declares.
    """
    spec = result.spec
    try:
        dataset = load_dataset(result.val_data)
        identity = store_identity(spec, final_checkpoint(result.run), dataset)
        store = CandidateStore.open(result.run.candidates(spec.validation_hash), identity)
        ranked = replace(spec.scoring, confidence="alpha")
        declared = [row.scoring for row in store.rows if row.oracle]
        scoring = next((s for s in declared if s == replace(ranked, alpha=s.alpha)), None)
        if scoring is None:
            return None
        label = f"oracle IoU, alpha {scoring.alpha:g}"
        trial = Trial(replace(spec, scoring=scoring, paper=replace(spec.paper, row=label)), label)
        oracle = TrialResult(trial, result.run, oracle=True)
        metrics = _read_metrics(oracle.evaluation)
        if metrics is None:
            metrics = score_one(
                store.folder,
                result.val_data,
                scoring,
                oracle.evaluation.root,
                oracle=True,
                protocol=spec.protocol,
                expect=identity,
            )
        return replace(oracle, metrics=metrics)
    except InputError:
        return None


def merge_results(trials: Sequence[Trial], known: Sequence[TrialResult]) -> tuple[TrialResult, ...]:
    """One result a trial, in the order of `trials`; those of `known` as they are, with the trial as it is now."""
    by_id = {result.id: result for result in known}
    return tuple(replace(by_id[trial.id], trial=trial) for trial in trials if trial.id in by_id)


def _read_metrics(evaluation: EvaluationFolder) -> dict[str, float] | None:
    if not evaluation.metrics.exists():
        return None
    try:
        metrics: dict[str, float] = json.loads(evaluation.metrics.read_text())
    except ValueError as error:
        remedy = "Remove it: the same command then evaluates the run again"
        raise ConfigError(f"not valid JSON ({error})", file=evaluation.metrics, remedy=remedy) from error
    return metrics


def _fingerprint(data: Path) -> str:
    try:
        return str(selection_of(data)["fingerprint"])
    except ConfigError:
        return ""


def _loaded(entry: dict[str, Any], sweep: Path) -> TrialResult:
    trial = Trial(from_dict(entry["spec"]), str(entry["row"]))
    return read_result(trial, RunFolder((sweep / entry["run"]).resolve()))


def _not_a_sweep(folder: SweepFolder, error: Exception) -> ConfigError:
    return ConfigError(
        f"is not the folder of a sweep ({type(error).__name__}: {error})",
        file=folder.root,
        remedy="Give the folder below <storage>/sweeps that holds trials.json",
    )
