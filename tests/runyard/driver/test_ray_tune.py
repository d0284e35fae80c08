"""Sweeps on real Ray clusters: trainings with their own workers, scorings beside them, every slot of a cluster."""

import json
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from mlflow.tracking import MlflowClient

from runyard.driver.jobs import Job
from runyard.driver.run import run_sweep
from runyard.failures import SweepError
from runyard.grid import expand
from runyard.runs.folder import RunFolder
from runyard.spec import ExperimentSpec
from runyard.training.launch import Launcher

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
    broken = replace(iou, optim=replace(iou.optim, learning_rate=1e30, clip_norm=0.0))
    trials = expand({"none": iou, "0.5": rows["0.5"], "broken": broken})
    with pytest.raises(SweepError) as caught:
        run_sweep(trials, "table", runtime_env=RUNTIME_ENV)
    assert list(caught.value.failures) == ["broken"]
    assert caught.value.failures["broken"].error.startswith("NonFiniteLossError: ")

    storage = iou.runtime.storage
    assert storage is not None
    (folder,) = [RunFolder(path) for path in storage.glob(f"tiny-iou-*{iou.training_hash[:12]}")]
    scored = json.loads(folder.evaluation(rows["0.5"].scoring_hash).metrics.read_text())
    assert scored == pytest.approx(without_timing(directly_evaluated(folder, rows["0.5"])), abs=1e-6)
    client = MlflowClient(f"sqlite:///{storage}/mlflow.db")
    runs = client.search_runs([client.get_experiment_by_name("runyard").experiment_id])
    expected = {"table-shapes": "FAILED", "none": "FINISHED", "0.5": "FINISHED", "broken": "FAILED"}
    assert {run.info.run_name: run.info.status for run in runs} == expected


def directly_evaluated(folder: RunFolder, spec: ExperimentSpec) -> dict[str, float]:
    """Inference with the final weights under the spec's scoring, in this process."""
    from runyard.training.local import LocalContext
    from runyard.training.worker import train

    metrics = train(spec, folder, LocalContext(use_gpu=False))
    assert metrics is not None
    return metrics


SECONDS_A_JOB = 6.0


def occupy_a_slot(job: Job, launcher: Launcher) -> None:
    """As a training does: a process of its own, in a place that it asks the cluster for."""
    import ray
    from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

    place = ray.util.placement_group([{"CPU": 1, "accelerator": 1}])
    ray.get(place.ready())
    strategy = PlacementGroupSchedulingStrategy(place)
    began_s = time.time()

    @ray.remote(num_cpus=1, scheduling_strategy=strategy)
    def hold() -> None:
        time.sleep(SECONDS_A_JOB)

    ray.get(hold.remote())
    ended_s = time.time()  # before the place is given back, and another takes it
    ray.util.remove_placement_group(place)
    job.folder.root.mkdir(parents=True)
    (job.folder.root / "times.json").write_text(json.dumps([began_s, ended_s]))


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_24_trials_keep_every_slot_of_four_nodes_busy(
    spec: ExperimentSpec, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ray_shut_down: None
) -> None:
    import ray
    from ray.cluster_utils import Cluster

    from runyard.driver.ray_tune import RayTuneRunner, training_slots

    # By value: the processes of the cluster cannot import a test.
    ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "object_store_memory": 80_000_000})
    for _ in range(3):
        cluster.add_node(num_cpus=2, resources={"accelerator": 2}, object_store_memory=80_000_000)

    def connect() -> None:
        ray.init(address=cluster.address, runtime_env=RUNTIME_ENV, log_to_driver=False, logging_level="error")

    try:
        runner = RayTuneRunner(tmp_path / "tune", connect, do=occupy_a_slot)
        assert training_slots(spec, 0) == 6
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
