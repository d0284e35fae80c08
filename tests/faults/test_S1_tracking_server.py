"""S1: MLflow's own server on loopback, away, failing or hanging: training goes on, all is told later, once."""

import logging
import re
import shlex
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import pytest
from mlflow.entities import Run, ViewType
from mlflow.tracking import MlflowClient

from runyard import cli
from runyard.driver.run import run_one
from runyard.runs.folder import RunFolder
from runyard.spec import ExperimentSpec
from runyard.tracking.journal import Journal, effective_metrics, read
from runyard.tracking.mlflow_tracker import MlflowTracker
from runyard.tracking.replay import POLL_VARIABLE, JournalReplayer
from runyard.tracking.runs import TrackedRun
from runyard.tracking.stores import TrackingUnavailableError
from runyard.tracking.uploader import JournalUploader

STEPS = list(range(1, 13))


@pytest.fixture(autouse=True)
def _frequent_rounds(monkeypatch: pytest.MonkeyPatch) -> None:
    """These trainings take seconds."""
    monkeypatch.setenv(POLL_VARIABLE, "0.5")


@pytest.fixture
def spec(tiny_spec: ExperimentSpec, server, request: pytest.FixtureRequest) -> ExperimentSpec:
    """Four epochs of three steps, tracked by the server, in an experiment of the test's own."""
    return replace(
        tiny_spec,
        optim=replace(tiny_spec.optim, epochs=4),
        runtime=replace(tiny_spec.runtime, tracking_uri=server.uri, experiment=request.node.name),
    )


@pytest.fixture
def folder(spec: ExperimentSpec) -> RunFolder:
    assert spec.runtime.storage is not None
    return RunFolder(spec.runtime.storage / "tiny")


def runs_of(spec: ExperimentSpec) -> list[Run]:
    """All that the server shows of the test's experiment."""
    assert spec.runtime.tracking_uri is not None
    client = MlflowClient(spec.runtime.tracking_uri)
    found = client.get_experiment_by_name(spec.runtime.experiment)
    return list(client.search_runs([found.experiment_id], run_view_type=ViewType.ACTIVE_ONLY))


def assert_all_is_told(spec: ExperimentSpec, folder: RunFolder) -> None:
    """One run below one sweep's, finished, with every point of every curve once and in the order of its steps."""
    by_kind = {run.data.tags["kind"]: run for run in runs_of(spec)}
    assert len(runs_of(spec)) == 2
    run, parent = by_kind["trial"], by_kind["sweep"]
    assert [run.info.status, parent.info.status] == ["FINISHED", "FINISHED"]
    assert run.data.tags["mlflow.parentRunId"] == parent.info.run_id
    assert run.data.params["optim.epochs"] == "4"
    client = MlflowClient(spec.runtime.tracking_uri)
    curves = effective_metrics(folder.journal)
    assert [step for step, _ in curves["train/loss"]] == STEPS
    for name, curve in curves.items():
        told = client.get_metric_history(run.info.run_id, name)
        assert [(point.step, point.value) for point in told] == curve, name
        assert [point.timestamp for point in told] == sorted(point.timestamp for point in told)
    names = {file.path for place in ("", "evaluation") for file in client.list_artifacts(run.info.run_id, place)}
    assert {"spec.json", "manifest.json", "evaluation/detections.json"} <= names


@contextmanager
def meanwhile(change: Callable[[], None]) -> Iterator[None]:
    """Does something beside the training; what it raises is raised."""
    raised: list[BaseException] = []

    def work() -> None:
        try:
            change()
        except BaseException as error:
            raised.append(error)

    thread = threading.Thread(target=work)
    thread.start()
    try:
        yield
    finally:
        thread.join()
    if raised:
        raise raised[0]


def test_S1_down_at_the_start_and_there_before_the_end(
    server, spec: ExperimentSpec, folder: RunFolder, wait_until, last_step, caplog: pytest.LogCaptureFixture
) -> None:
    def come() -> None:
        wait_until(lambda: last_step(folder) >= 4)
        server.start()

    server.stop()
    with caplog.at_level(logging.WARNING, "runyard.tracking.replay"), meanwhile(come):
        run_one(spec, launcher="local")
    assert_all_is_told(spec, folder)
    assert caplog.text.count("cannot be reached (connection refused)") == 1
    assert caplog.text.count("answers again") == 1


@pytest.mark.usefixtures("impatient")
@pytest.mark.parametrize("fault", ["is down", "fails", "hangs"])
def test_S1_gone_in_the_middle_and_back(
    server, spec: ExperimentSpec, folder: RunFolder, wait_until, last_step, fault: str
) -> None:
    def fail_for_a_while() -> None:
        wait_until(lambda: last_step(folder) >= 2)
        reached = server.requests
        if fault == "is down":
            server.stop()
        else:
            server.fault = fault
        wait_until(lambda: last_step(folder) >= 8)
        if fault == "is down":
            server.start()
        else:
            assert server.requests > reached
            server.fault = None

    with meanwhile(fail_for_a_while):
        run_one(spec, launcher="local")
    assert_all_is_told(spec, folder)


@pytest.mark.usefixtures("impatient")
@pytest.mark.parametrize("fault", ["is down", "fails", "hangs"])
def test_S1_gone_to_the_end_and_told_by_sync_or_by_the_same_command(
    server,
    spec: ExperimentSpec,
    folder: RunFolder,
    capsys: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
    fault: str,
) -> None:
    if fault == "is down":
        server.stop()
    else:
        server.fault = fault
    began = time.monotonic()
    run_one(spec, launcher="local")
    assert time.monotonic() - began < 60
    (told,) = re.findall(r"^  runyard (sync .*)$", capsys.readouterr().out, flags=re.MULTILINE)
    sweep = folder.root.parent / "sweeps" / "tiny-shapes"
    assert shlex.split(told) == ["sync", str(sweep), "--tracking-uri", server.uri]
    assert cli.main(shlex.split(told)) == 2
    assert "cannot be reached" in capsys.readouterr().err
    caplog.clear()
    run_one(spec, launcher="local")
    assert "cannot be reached" in caplog.text
    assert "did not reach" in capsys.readouterr().out
    if fault == "is down":
        server.start()
    server.fault = None
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "60")
    if fault == "fails":
        run_one(spec, launcher="local")
        assert "did not reach" not in capsys.readouterr().out
    else:
        assert cli.main(shlex.split(told)) == 0
    assert_all_is_told(spec, folder)
    capsys.readouterr()
    assert cli.main(shlex.split(told)) == 0
    assert capsys.readouterr().out == "0 records uploaded\n"


def test_S1_training_never_waits_for_a_server_that_never_answers(
    server, spec: ExperimentSpec, folder: RunFolder
) -> None:
    """A request is given up after 10 s: a training that waited for a single one would take longer than that."""
    server.fault = "hangs"
    run_one(spec, launcher="local")
    times = [record.time_s for record in read(folder.journal) if "train/loss" in record.payload.get("values", ())]
    assert len(times) == len(STEPS)
    assert max(late - early for early, late in pairwise(times)) < 8


@pytest.mark.usefixtures("impatient")
@pytest.mark.parametrize("found_by", ["the same driver", "another one"])
def test_S1_a_request_that_was_given_up_and_carried_out_later_makes_no_second_run(
    server, spec: ExperimentSpec, tmp_path: Path, wait_until, found_by: str
) -> None:
    """The worst moment for a server to hang: it makes the run, long after somebody else has made it again."""
    tracker = MlflowTracker(server.uri, spec.runtime.experiment)
    tracker.experiment_id()
    run = TrackedRun("run-0123", "run")
    server.fault, server.fault_at = "hangs", "runs/create"
    with Journal(tmp_path / "j") as journal:
        for step in STEPS:
            journal.append("metrics", {"step": step, "values": {"train/loss": 1 / step}})
        with pytest.raises(TrackingUnavailableError, match="no answer in time"):
            JournalUploader(tmp_path / "j", tracker, run).upload()
        server.fault_at = "nowhere"  # the first request still hangs
        uploader = JournalUploader(tmp_path / "j", MlflowTracker(server.uri, spec.runtime.experiment), run)
        assert uploader.upload() == len(STEPS)
        assert len(runs_of(spec)) == 1
        server.fault = None
        wait_until(lambda: len(runs_of(spec)) == 2)
        # That one sees the latecomer when the run ends, another one when it opens the run.
        journal.append("status", {"status": "FINISHED", "message": ""})
        last = uploader if found_by == "the same driver" else JournalUploader(tmp_path / "j", tracker, run)
        assert last.upload() == 1
    (kept,) = runs_of(spec)
    history = MlflowClient(server.uri).get_metric_history(kept.info.run_id, "train/loss")
    assert [point.step for point in history] == STEPS
    assert kept.info.status == "FINISHED"


def test_S1_the_trials_of_a_sweep_make_one_parent_when_the_server_comes(
    server, spec: ExperimentSpec, tmp_path: Path
) -> None:
    tracker = MlflowTracker(server.uri, spec.runtime.experiment)
    # Slow enough for all of them to find no parent.
    server.fault, server.fault_at = "hangs", "runs/create"
    replayer = JournalReplayer(lambda: tracker, poll_s=0.02, first_retry_s=0.1)
    for number in range(8):
        path = tmp_path / str(number) / "journal.jsonl"
        with Journal(path) as journal:
            journal.append("status", {"status": "FINISHED", "message": ""})
        child = TrackedRun(f"trial-{number}", f"trial {number}", parent="sweep")
        replayer.follow(path, child)
    time.sleep(1.0)
    server.fault = None
    assert replayer.close(60) == 0
    runs = runs_of(spec)
    (parent,) = [run for run in runs if "mlflow.parentRunId" not in run.data.tags]
    assert {run.data.tags.get("mlflow.parentRunId") for run in runs} == {None, parent.info.run_id}
    assert len(runs) == 9
