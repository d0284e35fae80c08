"""S7: clocks that go back or differ, and two runs in the same second: names and curves do not depend on them."""

import time
from dataclasses import replace

import pytest
from mlflow.tracking import MlflowClient

from runyard.driver.run import run_one
from runyard.runs.prepare import prepare
from runyard.spec import ExperimentSpec
from runyard.tracking.journal import effective_metrics, read


def test_S7_two_runs_in_the_same_second_have_two_names_and_a_run_keeps_its_own(
    tiny_spec: ExperimentSpec, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(time, "time", lambda: 1_700_000_000.0)
    specs = [replace(tiny_spec, seed=seed, runtime=replace(tiny_spec.runtime, name=None)) for seed in (0, 1)]
    names = [prepare(spec).folder.root.name for spec in specs]
    assert len(set(names)) == 2
    monkeypatch.setattr(time, "time", lambda: 1_800_000_000.0)
    assert [prepare(spec).folder.root.name for spec in specs] == names


def test_S7_a_run_that_goes_on_where_it_is_an_hour_earlier_is_the_same_run(
    tiny_spec: ExperimentSpec, tracking_uri: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on another machine whose clock is slow."""
    spec = replace(tiny_spec, runtime=replace(tiny_spec.runtime, tracking_uri=tracking_uri))
    once = run_one(replace(spec, runtime=replace(spec.runtime, name="never-interrupted")), launcher="local")

    from runyard.training import worker

    checkpoint = worker._Loop._checkpoint

    def interrupted(loop: worker._Loop) -> None:
        checkpoint(loop)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(worker._Loop, "_checkpoint", interrupted)
        with pytest.raises(KeyboardInterrupt):
            run_one(spec, launcher="local")
    with monkeypatch.context() as patch:
        now = time.time
        patch.setattr(time, "time", lambda: now() - 3600)
        outcome = run_one(spec, launcher="local")
    curves = [effective_metrics(o.run.journal)["train/loss"] for o in (once, outcome)]
    assert curves[0] == curves[1]
    assert [record.seq for record in read(outcome.run.journal)] == sorted(
        record.seq for record in read(outcome.run.journal)
    )
    client = MlflowClient(tracking_uri)
    found = client.search_runs([client.get_experiment_by_name("runyard").experiment_id])
    names = {run.info.run_id: run.info.run_name for run in found}
    trials = {names[run.data.tags["mlflow.parentRunId"]]: run for run in found if run.data.tags["kind"] == "trial"}
    assert sorted(trials) == ["never-interrupted-shapes", "tiny-shapes"]
    assert len(found) == 4
    assert {run.info.status for run in found} == {"FINISHED"}
    history = client.get_metric_history(trials["tiny-shapes"].info.run_id, "train/loss")
    assert sorted((point.step, point.value) for point in history) == curves[0]
