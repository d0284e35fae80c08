"""Endings of a run, as its journal says them."""

from pathlib import Path

import pytest

from runyard.spec import ExperimentSpec
from runyard.tracking.journal import read
from runyard.tracking.outcome import journaled


@pytest.mark.parametrize(
    ("error", "status", "message"),
    [
        (RuntimeError("boom"), "FAILED", "RuntimeError: boom"),
        (KeyboardInterrupt(), "KILLED", "KeyboardInterrupt"),
        (SystemExit(143), "KILLED", "SystemExit"),
    ],
)
def test_an_ending_is_told_by_its_error_and_keeps_no_artifact(
    tmp_path: Path, error: BaseException, status: str, message: str
) -> None:
    path = tmp_path / "journal.jsonl"

    def end() -> None:
        with journaled(path, ExperimentSpec()) as artifacts:
            artifacts.append((tmp_path / "plot.png", "plots"))
            raise error

    with pytest.raises(type(error)):
        end()
    records = list(read(path))
    assert [record.kind for record in records] == ["status", "params", "status"]
    assert [record.payload for record in records if record.kind == "status"] == [
        {"status": "RUNNING", "message": ""},
        {"status": status, "message": message},
    ]


def test_what_went_well_is_finished_after_its_artifacts(tmp_path: Path) -> None:
    path = tmp_path / "journal.jsonl"
    with journaled(path, ExperimentSpec(), (tmp_path / "spec.json",)) as artifacts:
        artifacts.append((tmp_path / "plot.png", "plots"))
    records = list(read(path))
    assert [record.kind for record in records] == ["status", "params", "artifact", "artifact", "status"]
    assert [record.payload["path"] for record in records[2:4]] == ["spec.json", "plot.png"]
    assert records[-1].payload["status"] == "FINISHED"
