"""The main job for real: generated images, Ray Train workers, AP, MLflow."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from mlflow.entities import Run, ViewType
from mlflow.tracking import MlflowClient

from detector.config import BackboneConfig, DataConfig, OptimConfig, RetinaNetConfig
from detector.data.synthetic import generate_shapes
from runyard.driver.run import run_one
from runyard.failures import TrainingError
from runyard.scoring.results import TrialResult
from runyard.spec import ExperimentSpec, RuntimeConfig, SourceConfig
from runyard.tracking.journal import read
from runyard.tracking.stores import resolve_tracking_uri

ROOT = Path(__file__).resolve().parents[2]
RUNTIME_ENV = {"env_vars": {"PYTHONPATH": f"{ROOT / 'platform'}:{ROOT}"}}

pytestmark = pytest.mark.ray


@pytest.fixture(scope="module")
def cluster() -> Iterator[None]:
    import ray

    ray.init(
        address="local",
        num_cpus=2,
        include_dashboard=False,
        object_store_memory=100_000_000,
        runtime_env=RUNTIME_ENV,
        log_to_driver=False,
    )
    yield
    ray.shutdown()


@pytest.fixture(scope="module")
def spec(tmp_path_factory: pytest.TempPathFactory) -> ExperimentSpec:
    folder = tmp_path_factory.mktemp("main_job")
    data = generate_shapes(folder / "shapes", train_images=13, val_images=21, image_size=64, seed=0)
    return ExperimentSpec(
        recipe="tiny",
        model=RetinaNetConfig(
            backbone=BackboneConfig(name="resnet18", weights="none"), fpn_channels=16, tower_depth=1, tower_norm="group"
        ),
        optim=OptimConfig(batch_size=4, epochs=1, milestones=(), warmup_steps=2),
        data=DataConfig(short_side_px=64, long_side_px=64),
        source=SourceConfig(data=data),
        runtime=RuntimeConfig(storage=folder / "ray", workers=2, log_every_steps=1),
    )


@pytest.fixture(scope="module")
def outcome(cluster: None, spec: ExperimentSpec) -> TrialResult:
    return run_one(spec, runtime_env=RUNTIME_ENV)


def test_two_workers_count_21_images_and_leave_a_whole_run_folder(outcome: TrialResult) -> None:
    assert outcome.metrics["val/images"] == 21
    root = outcome.run.root
    assert [path.name for path in outcome.run.checkpoints()] == ["checkpoint-000000004"]
    for path in (root / "spec.json", root / "manifest.json", outcome.evaluation.detections, outcome.evaluation.metrics):
        assert path.stat().st_size > 0
    assert outcome.evaluation.correlation_plot.read_bytes().startswith(b"\x89PNG")


def test_mlflow_has_parameters_curves_artifacts_and_the_true_end(outcome: TrialResult) -> None:
    client = client_of(outcome)
    run = trial_of(client)
    assert run.info.status == "FINISHED"
    assert run.data.params["optim.batch_size"] == "4"
    assert run.data.tags["training_hash"] == outcome.spec.training_hash
    assert run.data.metrics["val/AP"] == pytest.approx(outcome.metrics["val/AP"])
    assert [point.step for point in client.get_metric_history(run.info.run_id, "train/loss")] == [1, 2, 3, 4]
    names = {
        file.path for folder in ("", "plots", "evaluation") for file in client.list_artifacts(run.info.run_id, folder)
    }
    assert {"spec.json", "manifest.json", "plots/correlation.png", "evaluation/detections.json"} <= names


def test_the_plain_launcher_gives_the_same_losses(outcome: TrialResult, spec: ExperimentSpec, storage: Path) -> None:
    alone = run_one(replace(spec, runtime=replace(spec.runtime, storage=storage, workers=1)), launcher="local")
    curves = [
        [
            record.payload["values"]["train/loss"]
            for record in read(o.run.journal)
            if "train/loss" in str(record.payload)
        ]
        for o in (outcome, alone)
    ]
    assert curves[0] == pytest.approx(curves[1], rel=1e-4)
    assert alone.metrics["val/images"] == 21


def test_running_it_again_does_nothing(outcome: TrialResult, spec: ExperimentSpec) -> None:
    before = outcome.evaluation.metrics.stat().st_mtime_ns
    again = run_one(spec)
    assert again.metrics == pytest.approx(outcome.metrics)
    assert again.evaluation.metrics.stat().st_mtime_ns == before
    assert len(all_runs(client_of(outcome))) == 2


def test_an_image_that_breaks_later_is_one_error_and_a_failed_run(
    cluster: None, spec: ExperimentSpec, tmp_path: Path, storage: Path
) -> None:
    data = generate_shapes(tmp_path / "shapes", train_images=8, val_images=2, image_size=64, seed=1)
    broken = sorted((data / "train").iterdir())[3]
    content = broken.read_bytes()
    broken.write_bytes(content[: len(content) // 2])
    runtime = replace(spec.runtime, storage=storage, workers=1, check_images=False)
    damaged = replace(spec, source=SourceConfig(data=data), runtime=runtime)
    with pytest.raises(TrainingError, match=broken.name):
        run_one(damaged, runtime_env=RUNTIME_ENV)
    run = trial_of(MlflowClient(resolve_tracking_uri(None, storage)))
    assert run.info.status == "FAILED"
    assert broken.name in run.data.tags["status_message"]


def client_of(outcome: TrialResult) -> MlflowClient:
    assert outcome.spec.runtime.storage is not None
    return MlflowClient(resolve_tracking_uri(None, outcome.spec.runtime.storage))


def trial_of(client: MlflowClient) -> Run:
    """The tracked run of the only trial; the other one is its sweep's."""
    by_kind = {run.data.tags["kind"]: run for run in all_runs(client)}
    assert len(all_runs(client)) == 2
    assert by_kind["trial"].data.tags["mlflow.parentRunId"] == by_kind["sweep"].info.run_id
    return by_kind["trial"]


def all_runs(client: MlflowClient) -> list[Run]:
    experiments = [experiment.experiment_id for experiment in client.search_experiments()]
    return list(client.search_runs(experiments, run_view_type=ViewType.ALL))
