"""Fixtures shared by all tests."""

import os
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.architecture.ids import WHOLE_COLLECTION

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


# The folders whose tests take longest, first: what is left at the end then divides evenly.
FIRST = ("e2e", "faults", "benchmarks")
STARTS_RAY = "mark.ray"


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Note the ids of a whole collection, before any is deselected; sort the tests, the long ones first."""
    if [Path(argument).resolve() for argument in config.args] == [ROOT / "tests"]:
        config.stash[WHOLE_COLLECTION] = [item.nodeid for item in items]
    folders = [*FIRST, *sorted({_folder(item.path) for item in items} - set(FIRST))]
    items.sort(key=lambda item: folders.index(_folder(item.path)))


def _folder(path: Path) -> str:
    """The folder below tests/ in which a test lies."""
    return path.relative_to(ROOT / "tests").parts[0]


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: object) -> object:
    """With -n: the tests of a file run in one worker, where they share its fixtures, and all that start Ray in one.

    Two clusters at once would want four cores and 2 GB of memory.
    """
    from xdist.scheduler import LoadScopeScheduling

    class ByFile(LoadScopeScheduling):
        def _split_scope(self, nodeid: str) -> str:
            file = nodeid.partition("::")[0]
            return "ray" if STARTS_RAY in (ROOT / file).read_text() else file

    config.option.loadscopereorder = False
    return ByFile(config, log)


@pytest.fixture(autouse=True)
def _no_tracking_server(monkeypatch: pytest.MonkeyPatch) -> None:
    """Unset the user's tracking server, and the one that an MLflow server in this process leaves to later tests."""
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of real data sets: $RUNYARD_SHARED_DATA, else `shared/data` beside the repository."""
    folder = Path(os.environ.get("RUNYARD_SHARED_DATA", ROOT.parent / "shared" / "data"))
    if not folder.is_dir():
        pytest.skip(f"no real data sets at {folder}: set RUNYARD_SHARED_DATA to a folder that holds them")
    return folder


@pytest.fixture(scope="session")
def session_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of this test session, the same in all its worker processes."""
    folder = tmp_path_factory.getbasetemp()
    return folder.parent if "PYTEST_XDIST_WORKER" in os.environ else folder


@pytest.fixture(scope="session")
def empty_store(session_folder: Path) -> Path:
    """MLflow's SQLite file without runs, with an experiment named 'first', made once a session: copy it.

    Its tables take MLflow a second of a core and hundreds of syncs to make: half a minute on a busy disk.
    """
    from filelock import FileLock

    from runyard.tracking.mlflow_tracker import MlflowTracker

    store = session_folder / "empty_store.db"
    with FileLock(store.with_suffix(".lock")):
        if not store.exists():
            memory = Path("/dev/shm")
            with tempfile.TemporaryDirectory(dir=memory if memory.is_dir() else None) as folder:
                MlflowTracker(f"sqlite:///{folder}/empty.db", "first").experiment_id()
                shutil.copy(f"{folder}/empty.db", store)
    return store


@pytest.fixture
def storage(empty_store: Path, tmp_path: Path) -> Path:
    """A storage folder of the test's own, with an empty MLflow store."""
    folder = tmp_path / "storage"
    folder.mkdir()
    shutil.copy(empty_store, folder / "mlflow.db")
    return folder


@pytest.fixture(scope="session")
def tiny_data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A generated data set of 21 training and 5 validation images of 64 px."""
    from detector.data.synthetic import generate_shapes

    return generate_shapes(tmp_path_factory.mktemp("data") / "shapes", train_images=21, val_images=5, image_size=64)


@pytest.fixture(scope="session")
def make_tiny_spec(tiny_data: Path) -> "Callable[[Path], ExperimentSpec]":
    """Function that makes the spec of `tiny_spec` for a storage folder."""
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
