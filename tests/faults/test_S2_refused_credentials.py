"""S2: a tracking server that refuses us is told of once and early, is not asked again, and no password is written."""

import logging
import re
import threading
from dataclasses import replace
from pathlib import Path

import pytest
from mlflow.tracking import MlflowClient

from runyard import cli
from runyard.driver.run import run_one
from runyard.runs.folder import RunFolder
from runyard.spec import ExperimentSpec
from runyard.tracking.journal import last_status, read
from runyard.tracking.stores import TrackingRefusedError

MAIN = Path(__file__).resolve().parents[2] / "experiments" / "coco_main.py"
PASSWORD = "opensesame"


def files_with_the_password(folder: Path) -> list[Path]:
    return [path for path in folder.rglob("*") if path.is_file() and PASSWORD.encode() in path.read_bytes()]


@pytest.mark.parametrize(
    ("fault", "code"), [("wants credentials", "UNAUTHENTICATED"), ("forbids", "PERMISSION_DENIED")]
)
def test_S2_refused_at_the_start_is_one_line_before_any_worker_starts(
    server, runs, only_run, tmp_path: Path, fault: str, code: str
) -> None:
    server.fault = fault
    reached = server.requests
    uri = f"http://me:{PASSWORD}@127.0.0.1:{server.port}"
    command = [MAIN, "--smoke", "--launcher", "local", "--storage", tmp_path / "runs", "--name", "run"]
    process = runs.command([*command, "--tracking-uri", uri])
    output, _ = process.communicate(timeout=120)
    assert process.returncode == 2, output
    (told,) = [line for line in output.splitlines() if line.startswith("error: ")]
    assert told == (
        f"error: {server.uri}: the tracking server refuses these credentials ({code}). "
        "Set MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD, or MLFLOW_TRACKING_TOKEN"
    )
    assert output.count("MLFLOW_TRACKING_PASSWORD") == 1
    assert server.requests == reached + 2, "one request finds the server, and one the refusal"
    folder = only_run(tmp_path / "runs")
    assert not any(record.payload.get("event") == "start" for record in read(folder.journal))
    assert PASSWORD not in output
    assert files_with_the_password(tmp_path) == []


@pytest.fixture
def spec(tiny_spec: ExperimentSpec, server, request: pytest.FixtureRequest) -> ExperimentSpec:
    uri = f"http://me:{PASSWORD}@127.0.0.1:{server.port}"
    return replace(
        tiny_spec, runtime=replace(tiny_spec.runtime, tracking_uri=uri, experiment=request.node.name, name="tiny")
    )


@pytest.fixture(autouse=True)
def _environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """The driver moves a URI's credentials there; rounds are frequent enough for a training of seconds."""
    monkeypatch.setenv("RUNYARD_TRACKING_POLL_S", "0.5")
    for name in ("MLFLOW_TRACKING_USERNAME", "MLFLOW_TRACKING_PASSWORD"):
        monkeypatch.setenv(name, "to be removed")
        monkeypatch.delenv(name)


def test_S2_leave_to_look_but_not_to_write_is_told_before_any_worker_starts(server, spec: ExperimentSpec) -> None:
    server.fault, server.fault_at = "forbids", "runs/"
    with pytest.raises(TrackingRefusedError, match=r"refuses these credentials \(PERMISSION_DENIED\)"):
        run_one(spec, launcher="local")
    assert spec.runtime.storage is not None
    folder = RunFolder(spec.runtime.storage / "tiny")
    assert not any(record.payload.get("event") == "start" for record in read(folder.journal))
    assert last_status(spec.runtime.storage / "sweeps" / "tiny-shapes" / "journal.jsonl") == "FAILED"


def test_S2_a_token_that_expires_while_training_is_told_once_and_training_goes_on(
    server, spec: ExperimentSpec, tmp_path: Path, wait_until, last_step, caplog, capsys
) -> None:
    assert spec.runtime.storage is not None
    folder = RunFolder(spec.runtime.storage / "tiny")

    def expire() -> None:
        wait_until(lambda: last_step(folder) >= 2)
        server.fault = "wants credentials"

    thread = threading.Thread(target=expire)
    thread.start()
    with caplog.at_level(logging.INFO):
        outcome = run_one(spec, launcher="local")
    thread.join()
    assert outcome.metrics["val/images"] == 5
    assert last_status(folder.journal) == "FINISHED"
    assert caplog.text.count("refuses these credentials") == 1
    assert "runyard sync" in caplog.text
    shown = capsys.readouterr()
    assert re.search(r"\d+ records did not reach", shown.out)

    server.fault = None
    assert cli.main(["sync", str(folder.root), "--tracking-uri", spec.runtime.tracking_uri]) == 0
    client = MlflowClient(server.uri)
    experiment = client.get_experiment_by_name(spec.runtime.experiment).experiment_id
    (run,) = client.search_runs([experiment], "tags.kind = 'trial'")
    history = client.get_metric_history(run.info.run_id, "train/loss")
    assert [point.step for point in history] == list(range(1, 7))
    assert run.info.status == "FINISHED"
    # What was logged, printed, written and uploaded.
    assert PASSWORD not in caplog.text + shown.out + shown.err + str(run.data.params) + str(run.data.tags)
    assert files_with_the_password(tmp_path) == []
    downloaded = Path(client.download_artifacts(run.info.run_id, "", str(tmp_path)))
    assert (downloaded / "manifest.json").is_file()
    assert files_with_the_password(tmp_path) == []
