"""One job by itself: what it leaves, and what it leaves alone."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from detector.data.formats import open_dataset
from detector.errors import CandidateStoreError
from detector.files import write_json
from runyard.driver.jobs import Job, perform
from runyard.runs.folder import RunFolder
from runyard.spec import ExperimentSpec
from tests.runyard.finished_runs import finished_sweep


def test_an_evaluation_that_another_process_scored_meanwhile_is_left_alone(
    spec: ExperimentSpec, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = RunFolder(tmp_path / "run")
    evaluation = folder.evaluation(spec.scoring_hash)

    @contextmanager
    def slow(*_: object, **__: object) -> Iterator[None]:
        write_json(evaluation.metrics, {"val/AP": 0.5})
        yield

    monkeypatch.setattr("runyard.driver.jobs.held", slow)
    perform(Job("id", "0.5", "score", spec, folder), "local")
    assert json.loads(evaluation.metrics.read_text()) == {"val/AP": 0.5}
    assert not evaluation.journal.exists()


def test_a_damaged_store_is_removed_for_the_next_attempt_to_write_anew(
    spec: ExperimentSpec, tiny_data: Path, tmp_path: Path
) -> None:
    (result,) = finished_sweep(tmp_path, open_dataset(tiny_data, "val"), {"iou": (spec, 1.0)}).results
    result.evaluation.metrics.unlink()
    store = result.run.candidates(result.spec.validation_hash)
    (shard,) = store.rglob("shard-*")
    shard.write_bytes(shard.read_bytes()[:1000])
    with pytest.raises(CandidateStoreError, match="cut off"):
        perform(Job("id", "iou", "score", result.spec, result.run), "local")
    assert not store.exists()
    assert not result.evaluation.metrics.exists()
