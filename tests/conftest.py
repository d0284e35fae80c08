"""Fixtures shared by all tests."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from runyard.spec import ExperimentSpec

# Before anything imports torch, ray or mlflow: tensors are small here and threads only wait for each other, badly so on
# busy cores; no token file in the home folder, no reports to anyone; Ray Train's controller looks at its workers often
# enough that a report costs 0.1 s, not 2 s; a test never joins a cluster that happens to run on this machine.
os.environ |= {
    "OMP_NUM_THREADS": "1",
    "RAY_ADDRESS": "local",
    "RAY_AUTH_MODE": "disabled",
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.1",
    "MLFLOW_DISABLE_TELEMETRY": "true",
}

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(autouse=True)
def _no_tracking_server(monkeypatch: pytest.MonkeyPatch) -> None:
    """None of the user's own; and an MLflow server in this process leaves its name there, for the tests after it."""
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of real data sets: $RUNYARD_SHARED_DATA, else `shared/data` beside the repository."""
    folder = Path(os.environ.get("RUNYARD_SHARED_DATA", ROOT.parent / "shared" / "data"))
    if not folder.is_dir():
        pytest.skip(f"no real data sets at {folder}: set RUNYARD_SHARED_DATA to a folder that holds them")
    return folder


@pytest.fixture(scope="session")
def tiny_data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A generated data set of 21 training and 5 validation images of 64 px."""
    from detector.data.synthetic import generate_shapes

    return generate_shapes(tmp_path_factory.mktemp("data") / "shapes", train_images=21, val_images=5, image_size=64)


@pytest.fixture(scope="session")
def make_tiny_spec(tiny_data: Path) -> "Callable[[Path], ExperimentSpec]":
    """The spec of a run in a storage folder; what is tiny about it stands at `tiny_spec`."""
    from detector.config import BackboneConfig, DataConfig, OptimConfig, RetinaNetConfig
    from runyard.spec import ExperimentSpec, RuntimeConfig, SourceConfig

    return lambda storage: ExperimentSpec(
        recipe="tiny",
        model=RetinaNetConfig(
            backbone=BackboneConfig(name="resnet18", weights="none"), fpn_channels=8, tower_depth=1, tower_norm="group"
        ),
        optim=OptimConfig(batch_size=4, epochs=2, milestones=(1,), warmup_steps=3),
        data=DataConfig(short_side_px=64, long_side_px=64, min_image_side_px=8, train_limit=12),
        source=SourceConfig(data=tiny_data),
        runtime=RuntimeConfig(storage=storage, name="tiny", gpus_per_worker=0, log_every_steps=1),
    )


@pytest.fixture
def tiny_spec(make_tiny_spec: "Callable[[Path], ExperimentSpec]", tmp_path: Path) -> "ExperimentSpec":
    """A run of seconds on one core: 12 images, ResNet-18 from scratch, 2 epochs of 3 steps, every step logged."""
    return make_tiny_spec(tmp_path / "runs")
