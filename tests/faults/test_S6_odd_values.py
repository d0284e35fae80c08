"""S6: parameters over MLflow's limits, names that it refuses, NaN and infinity: kept in another form, nothing stops."""

import json
import math
from dataclasses import replace
from pathlib import Path

import pytest
from mlflow.tracking import MlflowClient

from runyard.driver.run import run_one
from runyard.spec import ExperimentSpec
from runyard.tracking.journal import Journal, effective_metrics
from runyard.tracking.mlflow_tracker import MetricValue, MlflowTracker
from runyard.tracking.runs import TrackedRun
from runyard.tracking.uploader import JournalUploader
from runyard.training import worker

RUN = TrackedRun(identity="coco r50-0123", name="coco r50")


def test_S6_odd_metrics_are_kept_under_names_and_forms_that_pass(tracking_uri: str) -> None:
    tracker = MlflowTracker(tracking_uri, "experiment")
    run_id = tracker.open_run(RUN)
    values = {"AP@[.5:.95]": 0.5, "val/AP": math.nan, "loss": math.inf, "../../x": 1.0, "": 2.0}
    tracker.log_metrics(run_id, [MetricValue(name, value, 7, 1.0) for name, value in values.items()])
    run = MlflowClient(tracking_uri).get_run(run_id)
    originals = {value: key.removeprefix("original_name/") for key, value in run.data.tags.items() if "name/" in key}
    assert run.data.metrics == {originals["AP@[.5:.95]"]: 0.5, originals["../../x"]: 1.0, originals[""]: 2.0}
    assert run.data.tags["non_finite/val/AP"] == "nan at step 7"
    assert run.data.tags["non_finite/loss"] == "inf at step 7"


def test_S6_parameters_long_ones_apart_changed_ones_as_tags(tracking_uri: str) -> None:
    tracker = MlflowTracker(tracking_uri, "experiment")
    run_id = tracker.open_run(RUN)
    many = {f"p{number}": number for number in range(250)}
    tracker.log_params(run_id, {"runtime": {"workers": 2}, "classes": ["x" * 50] * 20, "many": many})
    tracker.log_params(run_id, {"runtime": {"workers": 4}})
    client = MlflowClient(tracking_uri)
    run = client.get_run(run_id)
    assert run.data.params["runtime.workers"] == "2"
    assert run.data.tags["changed/runtime.workers"] == "4"
    assert run.data.params["many.p249"] == "249"
    assert "classes" not in run.data.params
    assert [file.path for file in client.list_artifacts(run_id, "params")] == ["params/long_values.json"]


@pytest.mark.parametrize("length", [250, 251, 500, 501, 6_000, 6_001, 100_000])
def test_S6_a_parameter_of_any_length_is_there_whole(tracking_uri: str, tmp_path: Path, length: int) -> None:
    """MLflow's limit was 250 characters, then 500, and is 6,000 now."""
    with Journal(tmp_path / "j") as journal:
        journal.append("params", {"classes": "x" * length, "seed": 0})
        journal.append("metrics", {"step": 1, "values": {"train/loss": 1.0}})
    assert JournalUploader(tmp_path / "j", MlflowTracker(tracking_uri, "experiment"), RUN).upload() == 2
    client = MlflowClient(tracking_uri)
    (run,) = client.search_runs([client.get_experiment_by_name("experiment").experiment_id])
    assert run.data.params["seed"] == "0"
    if length <= 500:
        assert run.data.params["classes"] == "x" * length
    else:
        artifact = client.download_artifacts(run.info.run_id, "params/long_values.json", str(tmp_path))
        assert json.loads(Path(artifact).read_text()) == {"classes": "x" * length}
    assert run.data.metrics == {"train/loss": 1.0}


def test_S6_a_run_with_odd_metrics_trains_and_is_tracked(
    tiny_spec: ExperimentSpec, tracking_uri: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    odd = {"AP@[.5:.95]": 0.25, "val/nothing": math.nan, "val/endless": -math.inf}
    score = worker.score_detections
    monkeypatch.setattr(worker, "score_detections", lambda *arguments: score(*arguments) | odd)
    spec = replace(tiny_spec, runtime=replace(tiny_spec.runtime, tracking_uri=tracking_uri))
    outcome = run_one(spec, launcher="local")
    assert effective_metrics(outcome.run.journal)["AP@[.5:.95]"] == [(6, 0.25)]
    client = MlflowClient(tracking_uri)
    (run,) = client.search_runs([client.get_experiment_by_name("runyard").experiment_id], "tags.kind = 'trial'")
    assert run.info.status == "FINISHED"
    (name,) = [tag.removeprefix("original_name/") for tag, value in run.data.tags.items() if value == "AP@[.5:.95]"]
    assert run.data.metrics[name] == 0.25
    assert run.data.tags["non_finite/val/nothing"] == "nan at step 6"
    assert run.data.tags["non_finite/val/endless"] == "-inf at step 6"
    assert not {"val/nothing", "val/endless"} & set(run.data.metrics)
