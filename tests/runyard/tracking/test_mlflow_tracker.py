"""The tracker on real stores."""

import time
from pathlib import Path

import pytest
from mlflow.tracking import MlflowClient

from runyard.tracking.mlflow_tracker import MetricValue, MlflowTracker
from runyard.tracking.runs import TrackedRun, source_tags
from runyard.tracking.stores import TrackingError, TrackingRefusedError, TrackingUnavailableError

from .conftest import FaultyServer, in_four_processes  # type: ignore[import-not-found]

RUN = TrackedRun(identity="coco r50-0123", name="coco r50", tags={"recipe": "coco", "paper@table": "1"})


def test_a_fresh_sqlite_file_survives_four_processes_at_once(
    empty_database: Path, empty_database_exits: list[int]
) -> None:
    assert empty_database_exits == [0, 0, 0, 0]
    experiment = MlflowClient(f"sqlite:///{empty_database}").get_experiment_by_name("first")
    assert experiment.artifact_location == (empty_database.parent / "mlartifacts" / "first").as_uri()


def test_one_identity_opened_by_four_processes_is_one_run(tracking_uri: str) -> None:
    statuses = in_four_processes(lambda: MlflowTracker(tracking_uri, "shared").open_run(RUN))
    assert statuses == [0, 0, 0, 0]
    tracker = MlflowTracker(tracking_uri, "shared")
    assert len(MlflowClient(tracking_uri).search_runs([tracker.experiment_id()])) == 1


def test_a_run_is_found_again_by_its_identity(tracking_uri: str) -> None:
    tracker = MlflowTracker(tracking_uri, "experiment")
    run_id = tracker.open_run(RUN, start_time_s=1000.0)
    assert MlflowTracker(tracking_uri, "experiment").open_run(RUN) == run_id
    assert tracker.open_run(TrackedRun("other", "coco r50")) != run_id
    run = MlflowClient(tracking_uri).get_run(run_id)
    assert run.info.start_time == 1_000_000
    assert run.info.run_name == "coco r50"
    assert run.data.tags["recipe"] == "coco"
    assert run.data.tags["runyard.run_id"] == "coco~20r50-0123"


def test_children_hang_below_their_parent(tracking_uri: str) -> None:
    tracker = MlflowTracker(tracking_uri, "experiment")
    parent = tracker.open_run(TrackedRun("sweep", "Table 2"))
    children = [tracker.open_run(TrackedRun(f"trial-{n}", f"trial {n}", parent="sweep")) for n in range(2)]
    client = MlflowClient(tracking_uri)
    found = client.search_runs([tracker.experiment_id()], f"tags.mlflow.parentRunId = '{parent}'")
    assert {run.info.run_id for run in found} == set(children)


def test_quotes_in_an_identity_do_no_harm(tracking_uri: str) -> None:
    tracker = MlflowTracker(tracking_uri, "experiment")
    hostile = TrackedRun("' OR tags.x = 'y", "hostile")
    assert tracker.open_run(hostile) == tracker.open_run(hostile)
    assert tracker.open_run(RUN) != tracker.open_run(hostile)


def test_metrics_keep_step_and_time_and_count_once(tracking_uri: str) -> None:
    tracker = MlflowTracker(tracking_uri, "experiment")
    run_id = tracker.open_run(RUN)
    points = [MetricValue("val/AP", step / 10, step, 100.0 + step) for step in range(3)]
    tracker.log_metrics(run_id, points)
    tracker.log_metrics(run_id, points)
    history = MlflowClient(tracking_uri).get_metric_history(run_id, "val/AP")
    assert [(point.step, point.value, point.timestamp) for point in history] == [
        (0, 0.0, 100_000), (1, 0.1, 101_000), (2, 0.2, 102_000),
    ]  # fmt: skip


def test_more_points_than_one_batch_may_hold(tracking_uri: str) -> None:
    tracker = MlflowTracker(tracking_uri, "experiment")
    run_id = tracker.open_run(RUN)
    tracker.log_metrics(run_id, [MetricValue("loss", 1.0, step, 1.0) for step in range(2500)])
    assert len(MlflowClient(tracking_uri).get_metric_history(run_id, "loss")) == 2500


def test_files_and_folders_as_artifacts(tracking_uri: str, tmp_path: Path) -> None:
    (tmp_path / "gallery").mkdir()
    (tmp_path / "gallery" / "one.png").write_bytes(b"1")
    tracker = MlflowTracker(tracking_uri, "experiment")
    run_id = tracker.open_run(RUN)
    tracker.log_artifact(run_id, tmp_path / "gallery" / "one.png")
    tracker.log_artifact(run_id, tmp_path / "gallery", "../../galleries")
    client = MlflowClient(tracking_uri)
    assert [file.path for file in client.list_artifacts(run_id)] == ["one.png", "~2E~2E"]
    assert [file.path for file in client.list_artifacts(run_id, "~2E~2E/~2E~2E/galleries")] == [
        "~2E~2E/~2E~2E/galleries/one.png"
    ]
    assert (tmp_path / "store" / "mlartifacts" / "experiment" / run_id / "artifacts" / "one.png").is_file()


@pytest.mark.parametrize("status", ["FINISHED", "FAILED", "KILLED"])
def test_the_final_status_is_true_and_can_be_taken_back(tracking_uri: str, status: str) -> None:
    tracker = MlflowTracker(tracking_uri, "experiment")
    run_id = tracker.open_run(RUN)
    client = MlflowClient(tracking_uri)
    assert client.get_run(run_id).info.status == "RUNNING"
    tracker.set_status(run_id, status, "at http://me:secret@host", time_s=5.0)  # type: ignore[arg-type]
    run = client.get_run(run_id)
    assert (run.info.status, run.info.end_time) == (status, 5000)
    assert run.data.tags["status_message"] == "at http://host"
    tracker.set_status(run_id, "RUNNING")
    run = client.get_run(run_id)
    assert run.info.status == "RUNNING"
    assert "status_message" not in run.data.tags


def test_a_deleted_experiment_is_a_clear_error(tracking_uri: str) -> None:
    client = MlflowClient(tracking_uri)
    client.delete_experiment(client.get_experiment_by_name("first").experiment_id)
    with pytest.raises(TrackingRefusedError, match=r"experiment: the experiment was deleted .found 'first'.*restore"):
        MlflowTracker(tracking_uri, "first").experiment_id()


def test_a_folder_that_cannot_be_written_is_a_clear_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(TrackingError, match="cannot be created"):
        MlflowTracker(f"sqlite:///{tmp_path}/file/mlflow.db", "experiment").experiment_id()


def test_a_file_that_is_no_database_is_a_clear_error(tmp_path: Path) -> None:
    (tmp_path / "mlflow.db").write_text("no database" * 1000)
    with pytest.raises(TrackingError, match="expected a SQLite file, found other content"):
        MlflowTracker(f"sqlite:///{tmp_path}/mlflow.db", "experiment").experiment_id()


def test_a_missing_database_driver_is_a_clear_error() -> None:
    with pytest.raises(TrackingRefusedError, match="database driver") as caught:
        MlflowTracker("postgresql+psycopg2://me:secret@127.0.0.1:1/mlflow", "experiment").experiment_id()
    assert "secret" not in str(caught.value)


def test_a_closed_port_is_told_at_once() -> None:
    started = time.monotonic()
    with pytest.raises(
        TrackingUnavailableError, match=r"^http://127.0.0.1:9: .* cannot be reached \(connection refused\)"
    ):
        MlflowTracker("http://127.0.0.1:9", "experiment").experiment_id()
    assert time.monotonic() - started < 3


@pytest.mark.usefixtures("impatient")
def test_a_server_that_never_answers_is_told_in_time(server: FaultyServer) -> None:
    server.fault = "hangs"
    started = time.monotonic()
    with pytest.raises(TrackingUnavailableError, match="no answer in time"):
        MlflowTracker(server.uri, "experiment").experiment_id()
    assert time.monotonic() - started < 4


@pytest.mark.parametrize(
    ("fault", "kind", "message"),
    [
        ("fails", TrackingUnavailableError, "500"),
        ("wants credentials", TrackingRefusedError, "MLFLOW_TRACKING_USERNAME"),
        ("refuses its name", TrackingRefusedError, "--allowed-hosts"),
    ],
)
def test_a_server_that_refuses(server: FaultyServer, fault: str, kind: type[TrackingError], message: str) -> None:
    server.fault = fault
    with pytest.raises(kind, match=message):
        MlflowTracker(server.uri, "experiment").experiment_id()


def test_everything_over_http_too(server: FaultyServer, tmp_path: Path) -> None:
    (tmp_path / "plot.png").write_bytes(b"1")
    tracker = MlflowTracker(server.uri, "over http")
    run_id = tracker.open_run(RUN)
    assert tracker.open_run(RUN) == run_id
    tracker.log_params(run_id, {"model": {"name": "x"}})
    point = MetricValue("val/AP", 0.1234567890123456, 1, 1.001)
    tracker.log_metrics(run_id, [point])
    tracker.log_metrics(run_id, [point])
    tracker.log_artifact(run_id, tmp_path / "plot.png", "plots #1")
    tracker.set_status(run_id, "FINISHED")
    client = MlflowClient(server.uri)
    assert [p.value for p in client.get_metric_history(run_id, "val/AP")] == [point.value]
    assert [file.path for file in client.list_artifacts(run_id, "plots~20~231")] == ["plots~20~231/plot.png"]
    assert client.get_run(run_id).info.status == "FINISHED"


def test_a_new_store_holds_our_experiment_alone_and_nothing_lies_in_the_working_directory(
    empty_database: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    client = MlflowClient(f"sqlite:///{empty_database}")  # created by a tracker, opened again
    assert [experiment.name for experiment in client.search_experiments()] == ["first"]
    (experiment,) = client.search_experiments()
    assert experiment.tags["mlflow.experimentKind"] == "custom_model_development"
    assert list(tmp_path.iterdir()) == []


def test_user_and_source_of_a_run_are_shown_as_mlflow_shows_its_own(tracking_uri: str) -> None:
    tags = source_tags(user="ada", command="experiments/coco_main.py", git_commit="0123abc")
    run_id = MlflowTracker(tracking_uri, "experiment").open_run(TrackedRun("run", "run", tags=tags))
    run = MlflowClient(tracking_uri).get_run(run_id)
    assert run.info.user_id == "ada"
    assert run.data.tags["mlflow.user"] == "ada"
    assert run.data.tags["mlflow.source.name"] == "experiments/coco_main.py"
    assert run.data.tags["mlflow.source.git.commit"] == "0123abc"
    assert source_tags(user="ada", command="x.py", git_commit=None).keys() == {
        "mlflow.user",
        "mlflow.source.name",
        "mlflow.source.type",
    }
