"""B5: a run that is scored twice by one entry point has two tracked records, each with its own numbers."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
from mlflow.tracking import MlflowClient

from detector.config import ScoringConfig
from runyard.commandline.command import Table, build, parse
from runyard.commandline.options import Options
from runyard.driver.run import run_one, run_sweep
from runyard.reports.report import Report
from runyard.runs.folder import RunFolder
from runyard.scoring.results import TrialResult
from runyard.spec import ExperimentSpec, to_dict
from runyard.training import local
from tests.runyard.conftest import Work


def test_B5_two_scorings_of_one_run_are_two_records(spec: ExperimentSpec, work: Work) -> None:
    recipe = replace(spec, scoring=ScoringConfig(alpha=0.5))
    table = Table("table1", lambda row: recipe, ("r50-iou",), lambda smoke: smoke)
    found = {}
    for alpha in ("0.5", "0.1"):
        options, given = parse(table, "", Options, ["--scoring.alpha", alpha])
        command = build(table, options, given)
        found[alpha] = run_sweep(
            command.trials, command.name, launcher="local", finish=lambda result: Report(), do=work
        ).results[0]
    assert found["0.5"].run == found["0.1"].run
    assert sum(label.startswith("outputs") for label in work.done) == 1, "the second command only scores"

    client = MlflowClient(f"sqlite:///{spec.runtime.storage}/mlflow.db")
    runs = client.search_runs([client.get_experiment_by_name("runyard").experiment_id])
    trials = {run.data.params["scoring.alpha"]: run for run in runs if run.data.tags["kind"] == "trial"}
    assert set(trials) == {"0.5", "0.1"}
    for alpha, result in found.items():
        assert trials[alpha].data.metrics == result.metrics
        assert trials[alpha].data.tags["scoring_hash"] == result.spec.scoring_hash
    assert trials["0.5"].data.metrics != trials["0.1"].data.metrics


def test_B5_the_plain_launcher_writes_no_second_evaluation_into_the_runs_own_journal(
    finished: TrialResult, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    storage = Path(shutil.copytree(finished.run.root.parent, tmp_path / "runs"))
    folder = RunFolder(storage / finished.run.root.name)
    other = replace(
        finished.spec,
        scoring=replace(finished.spec.scoring, alpha=0.1),
        runtime=replace(finished.spec.runtime, storage=storage),
    )
    (tmp_path / "spec.json").write_text(json.dumps(to_dict(other)))
    before = folder.journal.read_bytes()

    assert local.main([str(tmp_path / "spec.json")]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "the run was begun with another evaluation: scoring.alpha: 0.5 -> 0.1" in line
    assert "ablate_alpha.py --checkpoint-run" in line
    assert "--launcher local" in line
    assert folder.journal.read_bytes() == before
    assert len(folder.evaluations()) == 1

    # As the message says: the sweep's command scores it, and then its numbers can be asked for.
    scored = run_one(other, launcher="local", finish=lambda result: Report())
    assert folder.journal.read_bytes() == before
    capsys.readouterr()
    assert local.main([str(tmp_path / "spec.json")]) == 0
    assert json.loads(capsys.readouterr().out) == scored.metrics
