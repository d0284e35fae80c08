"""One job by itself: what it leaves, and what it leaves alone."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from detector.files import write_json
from runyard.driver.jobs import Job, perform
from runyard.runs.folder import RunFolder
from runyard.spec import ExperimentSpec


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
