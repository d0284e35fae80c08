"""Sweeps on real Ray clusters: trainings with their own workers, killed drivers and trials, every slot of a cluster."""

import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from mlflow.tracking import MlflowClient

from runyard.layout import RunFolder
from runyard.spec import ExperimentSpec
from runyard.sweeps.errors import SweepError
from runyard.sweeps.grid import expand
from runyard.sweeps.sweep import run_sweep
from runyard.sweeps.trials import Job
from runyard.tracking.journal import last_status, read

# Whole sweeps on a real cluster, minutes each: run on request.
pytestmark = [pytest.mark.ray, pytest.mark.slow]

ROOT = Path(__file__).resolve().parents[3]
RUNTIME_ENV = {"env_vars": {"PYTHONPATH": f"{ROOT / 'platform'}:{ROOT}"}}


@pytest.fixture
def ray_shut_down() -> Iterator[None]:
    import ray

    yield
    ray.shutdown()


def without_timing(metrics: dict[str, float]) -> dict[str, float]:
    return {name: value for name, value in metrics.items() if name != "val/images_per_s"}


def test_F5_trainings_and_scorings_run_beside_a_training_that_fails(
    rows: dict[str, ExperimentSpec], ray_shut_down: None
) -> None:
    iou = rows["none"]
    broken = replace(iou, seed=1, runtime=replace(iou.runtime, workers=50))
    trials = expand({"none": iou, "0.5": rows["0.5"], "broken": broken})
    with pytest.raises(SweepError) as caught:
        run_sweep(trials, "table", runtime_env=RUNTIME_ENV)
    assert list(caught.value.failures) == ["broken"]
    assert caught.value.failures["broken"].error.startswith("runtime.workers: 50 workers need 50 CPU")

    storage = iou.runtime.storage
    assert storage is not None
    (folder,) = [RunFolder(path) for path in storage.glob(f"tiny-iou-*{iou.training_hash[:12]}")]
    scored = json.loads(folder.evaluation(rows["0.5"].scoring_hash).metrics.read_text())
    assert scored == pytest.approx(without_timing(directly_evaluated(folder, rows["0.5"])), abs=1e-6)
    client = MlflowClient(f"sqlite:///{storage}/mlflow.db")
    runs = client.search_runs([client.get_experiment_by_name("runyard").experiment_id])
    assert {run.info.run_name: run.info.status for run in runs} == {
        "table-shapes": "FAILED", "none": "FINISHED", "0.5": "FINISHED", "broken": "FAILED"
    }  # fmt: skip


def directly_evaluated(folder: RunFolder, spec: ExperimentSpec) -> dict[str, float]:
    """Inference with the final weights under the spec's scoring, in this process."""
    from runyard.training.local import LocalContext
    from runyard.training.worker import train

    metrics = train(spec, folder, LocalContext(use_gpu=False))
    assert metrics is not None
    return metrics


def smoke_command(storage: Path, seeds: int) -> list[str]:
    script = ROOT / "experiments" / "ablate_iou_loss.py"
    rows = ["--rows", "baseline", "bce", "--seeds", str(seeds)]
    return [sys.executable, str(script), "--smoke", *rows, "--storage", str(storage), "--optim.epochs", "6"]


def started(folder: RunFolder) -> int:
    """How many attempts have been made at a run."""
    return sum(record.kind == "event" and record.payload["event"] == "start" for record in read(folder.journal))


def run_folders(storage: Path) -> list[RunFolder]:
    return [RunFolder(path) for path in storage.glob("smoke-ablation-*")]


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_F3_a_killed_driver_leaves_six_runs_of_which_the_same_command_finishes_the_rest(tmp_path: Path) -> None:
    driver = subprocess.Popen(smoke_command(tmp_path, seeds=3), cwd=tmp_path)
    deadline_s = time.monotonic() + 500
    while time.monotonic() < deadline_s and driver.poll() is None:
        folders = run_folders(tmp_path)
        finished = [folder for folder in folders if folder.evaluations()]
        if len(finished) >= 2 and any(folder.checkpoints() for folder in folders if not folder.evaluations()):
            break
        time.sleep(0.2)
    driver.send_signal(signal.SIGKILL)
    assert driver.wait() == -signal.SIGKILL
    finished = [folder for folder in run_folders(tmp_path) if last_status(folder.journal) == "FINISHED"]
    interrupted = [folder for folder in run_folders(tmp_path) if last_status(folder.journal) == "RUNNING"]
    assert len(finished) >= 1
    assert interrupted
    before = {folder.root: folder.evaluations()[0].metrics.stat().st_mtime_ns for folder in finished}

    began_s = time.monotonic()
    assert subprocess.run(smoke_command(tmp_path, seeds=3), cwd=tmp_path).returncode == 0
    print(f"continued in {time.monotonic() - began_s:.0f} s, {len(finished)} of 6 finished before")
    folders = run_folders(tmp_path)
    assert len(folders) == 6
    assert all(len(folder.evaluations()) == 1 for folder in folders)
    assert {folder.root: folder.evaluations()[0].metrics.stat().st_mtime_ns for folder in finished} == before
    assert all(started(folder) == 1 for folder in finished)
    assert tracked_statuses(tmp_path) == Counter({"FINISHED": 7})
    resumed = [folder for folder in interrupted if last_start(folder) > 0]
    assert resumed, "an interrupted training goes on from its last checkpoint"

    before = {folder.root: started(folder) for folder in folders}
    assert subprocess.run(smoke_command(tmp_path, seeds=4), cwd=tmp_path).returncode == 0
    assert len(run_folders(tmp_path)) == 8
    assert {folder.root: started(folder) for folder in folders} == before
    assert tracked_statuses(tmp_path) == Counter({"FINISHED": 9})


def last_start(folder: RunFolder) -> int:
    starts = [r.payload["start_step"] for r in read(folder.journal) if r.payload.get("event") == "start"]
    return int(starts[-1])


def tracked_statuses(storage: Path) -> Counter[str]:
    """Of the sweep's run and of its children, which must have different names."""
    client = MlflowClient(f"sqlite:///{storage}/mlflow.db")
    runs = client.search_runs([client.get_experiment_by_name("runyard").experiment_id])
    assert max(Counter(run.data.tags.get("trial") for run in runs).values()) == 1
    return Counter(run.info.status for run in runs)


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_killed_trial_gives_its_places_back(rows: dict[str, ExperimentSpec], tmp_path: Path) -> None:
    driver = subprocess.Popen(
        [sys.executable, str(ROOT / "experiments" / "ablate_iou_loss.py"), "--smoke", "--rows", "baseline", "bce",
         "--workers", "2", "--storage", str(tmp_path), "--optim.epochs", "12"],
        stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    deadline_s = time.monotonic() + 200
    while time.monotonic() < deadline_s and not any(folder.checkpoints() for folder in run_folders(tmp_path)):
        time.sleep(0.2)
    (trial,) = processes_below(driver.pid, "ray::ImplicitFunc")
    os.kill(trial, signal.SIGKILL)
    _, errors = driver.communicate(timeout=300)
    assert driver.returncode == 1
    assert "1 of 2 trials failed" in errors
    assert Counter(last_status(folder.journal) for folder in run_folders(tmp_path)) == {"FAILED": 1, "FINISHED": 1}


def processes_below(pid: int, name: str) -> list[int]:
    """Children, and theirs, whose command begins with a name."""
    listed = subprocess.run(["ps", "-eo", "pid=,ppid=,args="], capture_output=True, text=True, check=True).stdout
    found: list[int] = []
    family = {pid}
    for line in sorted(listed.splitlines(), key=lambda line: int(line.split()[0])):
        child, parent, command = line.split(maxsplit=2)
        if int(parent) in family:
            family.add(int(child))
            found += [int(child)] * command.startswith(name)
    return found


SECONDS_A_JOB = 6.0


def occupy_a_slot(job: Job) -> None:
    """As a training does: a process of its own, in a place that it asks the cluster for."""
    import ray
    from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

    place = ray.util.placement_group([{"CPU": 1, "accelerator": 1}])
    ray.get(place.ready())
    strategy = PlacementGroupSchedulingStrategy(place)
    began_s = time.time()
    ray.get(ray.remote(time.sleep).options(num_cpus=1, scheduling_strategy=strategy).remote(SECONDS_A_JOB))
    ray.util.remove_placement_group(place)
    job.folder.root.mkdir(parents=True)
    (job.folder.root / "times.json").write_text(json.dumps([began_s, time.time()]))


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_24_trials_keep_every_slot_of_four_nodes_busy(
    spec: ExperimentSpec, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ray_shut_down: None
) -> None:
    import ray
    from ray.cluster_utils import Cluster

    from runyard.sweeps.ray_tune import RayTuneRunner

    # By value: the processes of the cluster cannot import a test.
    ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "object_store_memory": 80_000_000})
    for _ in range(3):
        cluster.add_node(num_cpus=2, resources={"accelerator": 2}, object_store_memory=80_000_000)

    def connect() -> None:
        ray.init(address=cluster.address, runtime_env=RUNTIME_ENV, log_to_driver=False, logging_level="error")

    try:
        runner = RayTuneRunner(spec, tmp_path / "tune", connect, do=occupy_a_slot)
        assert runner.slots == 6
        jobs = [Job(f"{n:02}", f"trial {n}", "train", spec, RunFolder(tmp_path / f"job{n:02}")) for n in range(24)]
        began_s = time.time()
        assert runner.run(jobs, lambda job, state, error: None) == {}
        wall_s = time.time() - began_s
    finally:
        ray.shutdown()
        cluster.shutdown()
    times = sorted(json.loads((job.folder.root / "times.json").read_text()) for job in jobs)
    full_s, last_start_s = times[5][0], times[-1][0]
    window_s = last_start_s - full_s
    busy_s = sum(max(min(end, last_start_s) - max(start, full_s), 0) for start, end in times)
    overhead_s = (6 * window_s - busy_s) / 18
    print(
        f"24 trials of {SECONDS_A_JOB} s on 6 slots: {wall_s:.1f} s; from the 6th start to the last {window_s:.1f} s, "
        f"slots busy {busy_s / (6 * window_s):.0%}, {overhead_s:.2f} s a trial between two trials of a slot"
    )
    assert max(sum(start <= t < end for start, end in times) for t, _ in times) == 6
    assert busy_s / (6 * window_s) > 0.6
