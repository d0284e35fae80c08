"""F7: SIGTERM with time to act on it: a checkpoint is written, the run is KILLED, the exit status is not 0."""

import signal
import sqlite3
import time
from pathlib import Path

import pytest

from runyard.spec import ExperimentSpec
from runyard.tracking.journal import effective_metrics, last_status

MAIN = Path(__file__).resolve().parents[2] / "experiments" / "coco_main.py"


@pytest.mark.parametrize("launcher", ["local", pytest.param("ray", marks=[pytest.mark.ray, pytest.mark.slow])])
def test_F7_the_driver_of_an_experiment_ends_as_killed_and_goes_on(
    runs, wait_until, last_step, only_run, events, storage: Path, launcher: str
) -> None:
    command = [MAIN, "--smoke", "--launcher", launcher, "--storage", storage, "--name", "run"]
    command += ["--workers", "2"] if launcher == "ray" else []
    process = runs.command(command) if launcher == "local" else runs.fresh_command(command)
    wait_until(lambda: last_step(only_run(storage)) >= 2 or process.poll() is not None, timeout_s=200)
    folder = only_run(storage)
    process.send_signal(signal.SIGTERM)
    signalled = time.monotonic()
    output, _ = process.communicate(timeout=100)
    assert process.returncode == 143, output
    assert time.monotonic() - signalled < 60, "it ended by running out of patience"
    assert "interrupted; the same command goes on where this one stopped" in output
    assert last_status(folder.journal) == "KILLED"
    assert tracked_statuses(storage) == ["KILLED", "KILLED"]
    stopped_after = last_step(folder)
    assert 2 <= stopped_after < 8
    assert folder.checkpoints()[0] == folder.checkpoint(stopped_after)

    again = runs.command(command) if launcher == "local" else runs.fresh_command(command)
    output, _ = again.communicate(timeout=200)
    assert again.returncode == 0, output
    assert events(folder, "start")[-1].payload["start_step"] == stopped_after
    assert [step for step, _ in effective_metrics(folder.journal)["train/loss"]] == list(range(1, 9))
    assert last_status(folder.journal) == "FINISHED"
    assert tracked_statuses(storage) == ["FINISHED", "FINISHED"]


def tracked_statuses(storage: Path) -> list[str]:
    """Statuses of the tracked runs: a sweep's and its trial's."""
    with sqlite3.connect(storage / "mlflow.db") as database:
        return [status for (status,) in database.execute("SELECT status FROM runs").fetchall()]


def test_F7_both_ranks_of_a_plain_run_stop_after_the_same_step_though_one_was_asked(
    runs, wait_until, last_step, tiny_spec: ExperimentSpec
) -> None:
    folder = runs.folder(tiny_spec)
    processes = runs.ranks(tiny_spec)
    wait_until(lambda: last_step(folder) >= 1 or processes[0].poll() is not None)
    processes[1].send_signal(signal.SIGTERM)
    outputs = [process.communicate(timeout=100)[0] for process in processes]
    assert [process.returncode for process in processes] == [143, 143], outputs
    assert folder.checkpoints()[0] == folder.checkpoint(last_step(folder))


def test_F7_ctrl_c_does_the_same_with_its_own_exit_status(
    runs, wait_until, last_step, tiny_spec: ExperimentSpec
) -> None:
    folder = runs.folder(tiny_spec)
    process = runs.fresh_command(["-m", "runyard.training.local", runs.spec_file(tiny_spec)])
    wait_until(lambda: last_step(folder) >= 1 or process.poll() is not None)
    process.send_signal(signal.SIGINT)
    output, _ = process.communicate(timeout=100)
    assert process.returncode == 130, output
    assert "Traceback" not in output
    assert folder.checkpoints()[0] == folder.checkpoint(last_step(folder))
