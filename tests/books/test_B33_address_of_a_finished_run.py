"""B33: the address of a finished run is printed without another look-up, whatever has become of the store."""

import socket
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from runyard.driver.browse import how_to_browse
from runyard.driver.run import run_sweep
from runyard.grid import Trial
from runyard.spec import ExperimentSpec
from runyard.tracking.mlflow_tracker import MlflowTracker


def test_B33_no_store_is_contacted_for_the_address(tiny_spec: ExperimentSpec) -> None:
    """A server that accepts and never answers costs 10 s a look-up."""
    with socket.create_server(("127.0.0.1", 0)) as silent:
        uri = f"http://127.0.0.1:{silent.getsockname()[1]}"
        spec = replace(tiny_spec, runtime=replace(tiny_spec.runtime, tracking_uri=uri))
        began_s = time.monotonic()
        assert how_to_browse(spec, None) == f"open {uri}"
        assert how_to_browse(spec, "7") == f"open {uri}/#/experiments/7?workflowType=machine_learning"
        assert time.monotonic() - began_s < 1
        silent.settimeout(0.2)
        with pytest.raises(TimeoutError):
            silent.accept()


def test_B33_a_working_folder_that_is_gone_does_not_fail_a_finished_run(
    tiny_spec: ExperimentSpec, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    (tmp_path / "here").rmdir()
    relative = replace(tiny_spec, runtime=replace(tiny_spec.runtime, storage=Path("runs")))
    for spec in (tiny_spec, relative):
        assert how_to_browse(spec, "7")


@pytest.mark.parametrize("answers", [True, False])
def test_B33_a_sweep_knows_its_experiment_if_the_store_took_all_records(
    make_tiny_spec: Callable[[Path], ExperimentSpec], empty_store: Path, tmp_path: Path, answers: bool
) -> None:
    spec = make_tiny_spec(tmp_path / "runs")
    spec = replace(spec, optim=replace(spec.optim, epochs=1, milestones=()))
    uri = f"sqlite:///{tmp_path / 'store.db'}"
    if answers:
        (tmp_path / "store.db").write_bytes(empty_store.read_bytes())
    else:
        with socket.create_server(("127.0.0.1", 0)) as free:
            uri = f"http://127.0.0.1:{free.getsockname()[1]}"
    spec = replace(spec, runtime=replace(spec.runtime, tracking_uri=uri))
    result = run_sweep([Trial(spec, "row")], "one", launcher="local")
    if answers:
        assert result.experiment_id == MlflowTracker(uri, spec.runtime.experiment).experiment_id()
        assert f"/#/experiments/{result.experiment_id}?" in how_to_browse(result.results[0].spec, result.experiment_id)
    else:
        assert result.experiment_id is None
