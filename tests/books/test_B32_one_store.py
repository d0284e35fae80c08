"""B32: a sweep and its runs have one store, whatever the storage folder is called; `runyard sync` finds it."""

import json
from pathlib import Path

import pytest
from mlflow.tracking import MlflowClient

from runyard import cli
from runyard.runs.folder import RunFolder, SweepFolder
from runyard.tracking.journal import Journal
from runyard.tracking.mlflow_tracker import MlflowTracker
from runyard.tracking.runs import TrackedRun
from runyard.tracking.stores import resolve_tracking_uri, sqlite_file
from runyard.tracking.sync import remember_run, storage_of, sync
from runyard.tracking.uploader import JournalUploader


def write_journal(path: Path) -> None:
    with Journal(path) as journal:
        journal.append("metrics", {"step": 1, "values": {"val/AP": 0.5}})
        journal.append("status", {"status": "FINISHED"})


def test_B32_sync_of_a_sweep_uses_the_storage_folders_store_and_uploads_its_trials(
    tmp_path: Path, empty_database: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    storage = tmp_path / "runs"
    sweep = SweepFolder.in_storage(storage, "table-2")
    trained = RunFolder(storage / "tiny-0123")
    scored = trained.evaluation("abcdef")
    children = [
        (trained.journal, TrackedRun("table-2/a", "a", parent="table-2")),
        (scored.journal, TrackedRun("table-2/b", "b", parent="table-2")),
        (storage / "never-started" / "journal.jsonl", TrackedRun("table-2/c", "c", parent="table-2")),
    ]
    remember_run(sweep, "experiment", TrackedRun("table-2", "table-2"), children)
    for journal in (sweep.journal, trained.journal, scored.journal):
        write_journal(journal)
    (storage / "mlflow.db").write_bytes(empty_database.read_bytes())
    assert cli.main(["sync", str(sweep.root)]) == 0
    assert capsys.readouterr().out == "6 records uploaded\n"
    assert sorted(storage.rglob("mlflow.db")) == [storage / "mlflow.db"]
    client = MlflowClient(f"sqlite:///{storage}/mlflow.db")
    runs = client.search_runs([client.get_experiment_by_name("experiment").experiment_id])
    (parent,) = [run for run in runs if run.info.run_name == "table-2"]
    parents = {run.info.run_name: run.data.tags.get("mlflow.parentRunId") for run in runs}
    assert parents == {"table-2": None, "a": parent.info.run_id, "b": parent.info.run_id}
    assert {run.info.status for run in runs} == {"FINISHED"}


def test_B32_a_sweep_whose_storage_has_moved_is_synced(tmp_path: Path, tracking_uri: str) -> None:
    sweep = SweepFolder.in_storage(tmp_path / "old", "s")
    child = tmp_path / "old" / "run" / "journal.jsonl"
    remember_run(sweep, "experiment", TrackedRun("s", "s"), [(child, TrackedRun("s/a", "a", parent="s"))])
    write_journal(child)
    write_journal(sweep.journal)
    (tmp_path / "old").rename(tmp_path / "new")
    assert sync(SweepFolder.in_storage(tmp_path / "new", "s"), tracking_uri) == 4


def test_B32_the_storage_folder_of_every_kind_of_run() -> None:
    storage = Path("/data/runs")
    run = RunFolder(storage / "tiny-0123")
    for folder in (run, run.evaluation("ab"), SweepFolder.in_storage(storage, "s")):
        assert storage_of(folder.root) == storage


@pytest.mark.parametrize("name", ["a%20b", "a b", "50%", "what?", "no #1", "ünï"])
def test_B32_any_storage_folder_holds_its_own_store_and_artifacts(
    tmp_path: Path, empty_database: Path, name: str
) -> None:
    storage = tmp_path / name
    storage.mkdir()
    (storage / "mlflow.db").write_bytes(empty_database.read_bytes())
    uri = resolve_tracking_uri(None, storage)
    assert resolve_tracking_uri(uri, Path("/elsewhere")) == uri
    assert sqlite_file(uri) == storage / "mlflow.db"
    path = storage / "run" / "journal.jsonl"
    with Journal(path) as journal:
        (storage / "run" / "plot.png").write_bytes(b"1")
        journal.append("artifact", {"path": storage / "run" / "plot.png", "artifact_path": "plots"})
    assert JournalUploader(path, MlflowTracker(uri, "experiment"), TrackedRun("run", "run")).upload() == 1
    assert (storage / "mlflow.db").read_bytes() != empty_database.read_bytes()
    assert [entry.name for entry in tmp_path.iterdir()] == [name]
    (stored,) = (storage / "mlartifacts").rglob("plot.png")
    assert stored.read_bytes() == b"1"
    client = MlflowClient(uri)
    (run,) = client.search_runs([client.get_experiment_by_name("experiment").experiment_id])
    assert [file.path for file in client.list_artifacts(run.info.run_id, "plots")] == ["plots/plot.png"]
    assert json.loads(run.data.tags["runyard.artifacts_left"]) == []
