"""B5: a run that is scored twice by one entry point has two tracked records, each with its own numbers."""

from dataclasses import replace

from mlflow.tracking import MlflowClient

from detector.config import ScoringConfig
from runyard.commandline.command import Table, build, parse
from runyard.commandline.options import Options
from runyard.driver.run import run_sweep
from runyard.reports.report import Report
from runyard.spec import ExperimentSpec
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
