"""From the journal to the store: once, in order, whatever fails in between."""

import json
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from mlflow.entities import Run
from mlflow.tracking import MlflowClient

from detector.errors import InputError
from runyard.runs.folder import RunFolder
from runyard.tracking.journal import Journal, JournalError, JournalReader, Record
from runyard.tracking.mlflow_tracker import MlflowTracker
from runyard.tracking.replay import JournalReplayer
from runyard.tracking.runs import TrackedRun
from runyard.tracking.sync import remember_run, sync
from runyard.tracking.uploader import JournalUploader
from tests.runyard.tracking.conftest import FaultyServer

RUN = TrackedRun(identity="run-0123", name="run")


def log_steps(journal: Journal, steps: range, value: float = 1.0) -> None:
    for step in steps:
        journal.append("metrics", {"step": step, "values": {"train/loss": value / (1 + step)}})


def only_run(uri: str, experiment: str = "experiment") -> Run:
    client = MlflowClient(uri)
    (run,) = client.search_runs([client.get_experiment_by_name(experiment).experiment_id])
    return run


def steps_of(uri: str, run: Run, metric: str = "train/loss") -> list[int]:
    return [point.step for point in MlflowClient(uri).get_metric_history(run.info.run_id, metric)]


def eventually(condition: Callable[[], bool], timeout_s: float = 30.0) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def replayer(journal: Path, uri: str, experiment: str = "experiment") -> JournalReplayer:
    following = JournalReplayer(lambda: MlflowTracker(uri, experiment), poll_s=0.02, first_retry_s=0.05)
    following.follow(journal, RUN)
    return following


def test_a_whole_run_arrives_in_order_and_ends_truthfully(tracking_uri: str, tmp_path: Path) -> None:
    path = tmp_path / "run" / "journal.jsonl"
    with Journal(path) as journal:
        journal.append("params", {"model": {"name": "resnet50"}})
        journal.append("tag", {"key": "table", "value": "1"})
        uploading = replayer(path, tracking_uri)
        log_steps(journal, range(30))
        (tmp_path / "run" / "plot.png").write_bytes(b"1")
        journal.append("artifact", {"path": tmp_path / "run" / "plot.png", "artifact_path": "plots"})
        journal.append("status", {"status": "FINISHED", "message": "done"})
        assert uploading.close() == 0
    run = only_run(tracking_uri)
    assert steps_of(tracking_uri, run) == list(range(30))
    assert run.data.params == {"model.name": "resnet50"}
    assert run.data.tags["table"] == "1"
    assert run.info.status == "FINISHED"
    assert run.info.start_time <= run.info.end_time
    client = MlflowClient(tracking_uri)
    assert [file.path for file in client.list_artifacts(run.info.run_id, "plots")] == ["plots/plot.png"]


def test_replaying_again_adds_nothing(tracking_uri: str, tmp_path: Path) -> None:
    path = tmp_path / "journal.jsonl"
    with Journal(path) as journal:
        log_steps(journal, range(5))
        journal.append("status", {"status": "FINISHED"})
    assert replayer(path, tracking_uri).close() == 0
    assert replayer(path, tracking_uri).close() == 0
    assert steps_of(tracking_uri, only_run(tracking_uri)) == list(range(5))


def test_a_driver_that_dies_between_upload_and_position_repeats_nothing(
    tracking_uri: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "journal.jsonl"
    with Journal(path) as journal:
        log_steps(journal, range(5))
        dying = JournalUploader(path, MlflowTracker(tracking_uri, "experiment"), RUN)
        monkeypatch.setattr(dying, "_position", lambda _: {})
        assert dying.upload() == 5
        log_steps(journal, range(5, 8))
    assert JournalUploader(path, MlflowTracker(tracking_uri, "experiment"), RUN).upload() == 8
    assert steps_of(tracking_uri, only_run(tracking_uri)) == list(range(8))


@pytest.mark.parametrize("restarted", [False, True])
def test_steps_logged_again_after_a_resume_are_kept_once(tracking_uri: str, tmp_path: Path, restarted: bool) -> None:
    path = tmp_path / "journal.jsonl"
    uploader = JournalUploader(path, MlflowTracker(tracking_uri, "experiment"), RUN)
    with Journal(path) as journal:
        journal.append("rewind", {"step": 0})
        log_steps(journal, range(1, 8))
        journal.append("status", {"status": "FAILED", "message": "worker lost"})
        uploader.upload()
        assert only_run(tracking_uri).info.status == "FAILED"
        if restarted:
            uploader = JournalUploader(path, MlflowTracker(tracking_uri, "experiment"), RUN)
        journal.append("rewind", {"step": 4})
        log_steps(journal, range(5, 11), value=2.0)
        uploader.upload()
        assert only_run(tracking_uri).info.status == "RUNNING"
        journal.append("rewind", {"step": 9})
        journal.append("status", {"status": "FINISHED"})
        uploader.upload()
    run = only_run(tracking_uri)
    assert steps_of(tracking_uri, run) == list(range(1, 11))
    assert run.data.tags["resumed_at_steps"] == "4, 9"
    assert run.info.status == "FINISHED"


def test_a_folder_trained_anew_is_another_run(tracking_uri: str, tmp_path: Path) -> None:
    path = tmp_path / "journal.jsonl"
    for _ in range(2):
        with Journal(path) as journal:
            log_steps(journal, range(3))
        assert JournalUploader(path, MlflowTracker(tracking_uri, "experiment"), RUN).upload() == 3
        path.unlink()
        time.sleep(0.002)
    client = MlflowClient(tracking_uri)
    runs = client.search_runs([client.get_experiment_by_name("experiment").experiment_id])
    assert [steps_of(tracking_uri, run) for run in runs] == [[0, 1, 2], [0, 1, 2]]


def test_a_run_deleted_by_hand_ends_the_upload_and_nothing_else(
    tracking_uri: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with Journal(tmp_path / "j") as journal:
        uploading = replayer(tmp_path / "j", tracking_uri)
        log_steps(journal, range(10))
        eventually(lambda: uploading._left() == 0)
        MlflowClient(tracking_uri).delete_run(only_run(tracking_uri).info.run_id)
        log_steps(journal, range(10, 20))
        eventually(lambda: "was deleted" in caplog.text)
        assert uploading.close() == 10
    assert caplog.text.count("was deleted") == 1


def test_a_fault_of_our_own_does_not_reach_training(
    tracking_uri: str, tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: Any) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr(JournalUploader, "_upload_metrics", broken)
    with Journal(tmp_path / "j") as journal:
        uploading = replayer(tmp_path / "j", tracking_uri)
        log_steps(journal, range(10))
        assert uploading.close() == 10
    assert "ZeroDivisionError" in caplog.text


def test_an_artifact_that_cannot_be_stored_holds_up_nothing(tracking_uri: str, tmp_path: Path) -> None:
    blocked = tmp_path / "store" / "mlartifacts"
    blocked.write_text("a file where the artifacts' folder should be")
    path = tmp_path / "run" / "journal.jsonl"
    with Journal(path) as journal:
        (tmp_path / "run" / "plot.png").write_bytes(b"1")
        journal.append("artifact", {"path": tmp_path / "run" / "plot.png"})
        journal.append("artifact", {"path": tmp_path / "run" / "gone.png"})
        log_steps(journal, range(3))
        journal.append("status", {"status": "FINISHED"})
    assert replayer(path, tracking_uri).close() == 1
    run = only_run(tracking_uri)
    assert run.info.status == "FINISHED"
    assert steps_of(tracking_uri, run) == [0, 1, 2]
    assert json.loads(run.data.tags["runyard.artifacts_left"]) == [1]
    blocked.unlink()
    assert replayer(path, tracking_uri).close() == 0
    assert [file.path for file in MlflowClient(tracking_uri).list_artifacts(run.info.run_id)] == ["plot.png"]


def test_sync_closes_a_run_whose_process_is_gone_as_killed(tracking_uri: str, tmp_path: Path) -> None:
    folder = RunFolder(tmp_path / "run")
    remember_run(folder, "experiment", TrackedRun("run-0123", "run", parent="sweep", tags={"table": "2"}))
    with Journal(folder.journal) as journal:
        log_steps(journal, range(3))
        assert sync(folder, tracking_uri) == 3
        client = MlflowClient(tracking_uri)
        child = "tags.`runyard.run_id` = 'run-0123'"
        experiment_id = client.get_experiment_by_name("experiment").experiment_id
        assert client.search_runs([experiment_id], child)[0].info.status == "RUNNING"
    assert sync(folder, tracking_uri) == 1
    (run,) = client.search_runs([experiment_id], child)
    assert run.info.status == "KILLED"
    assert "mlflow.parentRunId" in run.data.tags
    assert sync(folder, tracking_uri) == 0


def test_sync_of_a_folder_without_a_run_is_a_clear_error(tracking_uri: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"tracking\.json"):
        sync(RunFolder(tmp_path), tracking_uri)
    (tmp_path / "tracking.json").write_text("[]")
    with pytest.raises(InputError, match=r"tracking\.json"):
        sync(RunFolder(tmp_path), tracking_uri)


def test_no_journal_makes_no_run(tracking_uri: str, tmp_path: Path) -> None:
    assert replayer(tmp_path / "none", tracking_uri).close() == 0
    assert MlflowClient(tracking_uri).get_experiment_by_name("experiment") is None


def test_tracking_does_not_hold_the_journals_lock(tracking_uri: str, tmp_path: Path) -> None:
    uploading = replayer(tmp_path / "j", tracking_uri)
    with Journal(tmp_path / "j", lock_timeout_s=0), pytest.raises(JournalError):
        Journal(tmp_path / "j", lock_timeout_s=0)
    assert uploading.close() == 0
    assert not uploading._thread.is_alive()


def test_a_trial_that_trains_costs_one_request_a_round(server: FaultyServer, tmp_path: Path) -> None:
    trials = [tmp_path / str(number) / "journal.jsonl" for number in range(4)]
    following = JournalReplayer(lambda: MlflowTracker(server.uri, "requests"), poll_s=3600)
    journals = [Journal(path) for path in trials]
    for number, (path, journal) in enumerate(zip(trials, journals, strict=True)):
        log_steps(journal, range(2))
        following.follow(path, TrackedRun(f"sweep/{number}", str(number), parent="sweep"))
    eventually(lambda: following._left() == 0)
    for round_ in range(3):
        for journal in journals:
            log_steps(journal, range(10 * round_ + 2, 10 * round_ + 12))
        before = server.requests
        following._changed.set()  # instead of waiting for an hour
        eventually(lambda: following._left() == 0)
        assert server.requests - before == len(trials)
    for journal in journals:
        journal.close()
    assert following.close() == 0
    client = MlflowClient(server.uri)
    for run in client.search_runs([client.get_experiment_by_name("requests").experiment_id]):
        if "mlflow.parentRunId" in run.data.tags:
            assert steps_of(server.uri, run) == list(range(32))
            assert run.data.tags["runyard.journal_seq"] == "32"


def test_one_thread_follows_all_journals_and_reads_finished_ones_no_more(
    tracking_uri: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    reads: list[Path] = []
    poll = JournalReader.poll

    def counted(reader: JournalReader) -> list[Record]:
        reads.append(reader.path)
        return poll(reader)

    threads = threading.active_count()
    following = JournalReplayer(lambda: MlflowTracker(tracking_uri, "experiment"), poll_s=0.05)
    paths = {name: tmp_path / name / "journal.jsonl" for name in ("done", "failed", "training")}
    with Journal(paths["training"]) as training:
        log_steps(training, range(1))
        for name, status in (("done", "FINISHED"), ("failed", "FAILED")):
            with Journal(paths[name]) as journal:
                log_steps(journal, range(1))
                journal.append("status", {"status": status})
        for name, path in paths.items():
            following.follow(path, TrackedRun(f"sweep/{name}", name, parent="sweep"))
        eventually(lambda: following._left() == 0)
        assert threading.active_count() <= threads + 1
        monkeypatch.setattr(JournalReader, "poll", counted)
        reads.clear()
        eventually(lambda: reads.count(paths["training"]) >= 3)
        assert paths["done"] not in reads
        assert paths["failed"] in reads  # it may be tried again
        monkeypatch.undo()
        # What comes after the end is uploaded when the sweep closes.
        with Journal(paths["done"]) as journal:
            journal.append("tag", {"key": "note", "value": "late"})
    assert following.close() == 0
    client = MlflowClient(tracking_uri)
    runs = client.search_runs([client.get_experiment_by_name("experiment").experiment_id], "tags.note = 'late'")
    assert [run.info.run_name for run in runs] == ["done"]


def test_a_sweep_ends_in_the_store_after_its_trials(
    tracking_uri: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ended: list[str] = []
    set_status = MlflowTracker.set_status

    def recorded(tracker: MlflowTracker, run_id: str, *arguments: Any) -> None:
        ended.append(MlflowClient(tracking_uri).get_run(run_id).info.run_name)
        set_status(tracker, run_id, *arguments)

    monkeypatch.setattr(MlflowTracker, "set_status", recorded)
    following = JournalReplayer(lambda: MlflowTracker(tracking_uri, "experiment"), poll_s=3600)
    runs = [TrackedRun("sweep", "sweep"), TrackedRun("sweep/trial", "trial", parent="sweep")]
    with Journal(tmp_path / "sweep") as sweep, Journal(tmp_path / "trial") as trial:
        for run, journal in zip(runs, (sweep, trial), strict=True):
            log_steps(journal, range(1))
            following.follow(journal.path, run)
        eventually(lambda: following._left() == 0)
        for journal in (sweep, trial):
            journal.append("status", {"status": "FINISHED"})
    assert following.close() == 0
    assert ended == ["trial", "sweep"]


def test_a_run_that_was_deleted_leaves_the_other_trials_tracked(
    tracking_uri: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    following = JournalReplayer(lambda: MlflowTracker(tracking_uri, "experiment"), poll_s=0.02)
    paths = [tmp_path / name / "journal.jsonl" for name in ("one", "two")]
    with Journal(paths[0]) as one, Journal(paths[1]) as two:
        for path, journal in zip(paths, (one, two), strict=True):
            log_steps(journal, range(3))
            following.follow(path, TrackedRun(path.parent.name, path.parent.name))
        eventually(lambda: following._left() == 0)
        client = MlflowClient(tracking_uri)
        experiment_id = client.get_experiment_by_name("experiment").experiment_id
        (deleted,) = client.search_runs([experiment_id], "tags.`runyard.run_id` = 'one'")
        client.delete_run(deleted.info.run_id)
        for journal in (one, two):
            log_steps(journal, range(3, 6))
        eventually(lambda: "was deleted" in caplog.text)
    assert following.close() == 3
    assert steps_of(tracking_uri, only_run(tracking_uri)) == list(range(6))
