"""B17: scorings need neither the training's devices nor its images."""

import os
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from runyard.driver.jobs import Job
from runyard.driver.plan import make_plan
from runyard.driver.run import run_sweep
from runyard.grid import Trial, expand
from runyard.reports.report import Report
from runyard.runs.data import OpenedData
from runyard.runs.folder import RunFolder
from runyard.scoring.results import TrialResult
from runyard.spec import ExperimentSpec
from runyard.training.launch import Launcher


@pytest.fixture
def copied(finished: TrialResult, tiny_data: Path, tmp_path: Path) -> ExperimentSpec:
    """The finished run in a storage and with a data set of the test's own."""
    storage = shutil.copytree(finished.run.root.parent, tmp_path / "runs")
    data = shutil.copytree(tiny_data, tmp_path / "data" / tiny_data.name)
    spec = finished.spec
    return replace(spec, source=replace(spec.source, data=data), runtime=replace(spec.runtime, storage=storage))


def test_B17_another_alpha_reads_the_validation_images_alone(copied: ExperimentSpec) -> None:
    data = copied.source.data
    assert data is not None
    shutil.rmtree(data / "train")
    (data / "annotations" / "instances_train.json").unlink()
    other = replace(copied, scoring=replace(copied.scoring, alpha=0.3))
    result = run_sweep([Trial(other, "0.3")], "again", launcher="local", finish=lambda result: Report())
    assert result.results[0].metrics is not None
    assert result.results[0].metrics["val/images"] == 5


def test_B17_results_that_are_there_need_no_images_at_all(copied: ExperimentSpec) -> None:
    assert copied.source.data is not None
    shutil.rmtree(copied.source.data)
    copied.source.data.mkdir()
    (result,) = run_sweep([Trial(copied, "0.5")], "again", launcher="local", finish=lambda r: Report()).results
    assert result.metrics is not None


def test_B17_scorings_run_where_there_is_no_gpu(copied: ExperimentSpec) -> None:
    alphas = {str(alpha): replace(copied, scoring=replace(copied.scoring, alpha=alpha)) for alpha in (0.1, 0.9)}
    run_sweep(expand(alphas), "stored", launcher="local", finish=lambda result: Report())
    on_gpus = replace(copied.runtime, gpus_per_worker=8, workers=50)
    stricter = {
        row: replace(spec, runtime=on_gpus, scoring=replace(spec.scoring, score_threshold=0.01))
        for row, spec in alphas.items()
    }
    plan = make_plan(expand(stricter), OpenedData())
    assert [[job.kind for job in stage] for stage in plan.stages] == [[], [], ["score", "score"]]
    result = run_sweep(expand(stricter), "stricter", launcher="local", finish=lambda result: Report())
    assert all(trial.metrics for trial in result.results)


def leave_a_file(job: Job, launcher: Launcher) -> None:
    """Work that a process of the cluster can import by value."""
    job.folder.root.mkdir(parents=True)
    (job.folder.root / "scored").touch()


@pytest.fixture
def one_cpu() -> Iterator[None]:
    import ray

    root = Path(__file__).resolve().parents[2]
    environment = {"env_vars": {"PYTHONPATH": os.pathsep.join([str(root / "platform"), str(root)])}}
    ray.init(num_cpus=1, num_gpus=0, runtime_env=environment, include_dashboard=False, log_to_driver=False)
    yield
    ray.shutdown()


@pytest.mark.ray
def test_B17_a_cluster_without_gpus_scores_what_was_trained_on_gpus(
    spec: ExperimentSpec, tmp_path: Path, one_cpu: None
) -> None:
    import sys

    import ray

    from runyard.driver.ray_tune import RayTuneRunner

    ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])
    on_gpus = replace(spec, runtime=replace(spec.runtime, gpus_per_worker=8, workers=50))
    jobs = [Job(f"{n}", f"row {n}", "score", on_gpus, RunFolder(tmp_path / f"run{n}")) for n in range(2)]
    runner = RayTuneRunner(tmp_path / "tune", lambda: None, do=leave_a_file)
    assert runner.run(jobs, lambda job, state, error: None) == {}
    assert all((job.folder.root / "scored").exists() for job in jobs)
