"""The recorded numbers and texts of this folder come out again; README.md says when one may change."""

import json
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.golden import runs

HERE = Path(__file__).resolve().parent


def recorded(file: str, part: str) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((HERE / file).read_text(encoding="utf-8"))
    assert {"versions", "command", "numerics", "rounding", "comparison"} <= set(content["header"])
    return content[part]


@pytest.fixture(scope="module", autouse=True)
def _one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return runs.shapes(tmp_path_factory.mktemp("golden") / "shapes")


def close(value: Any, relative: float, absolute: float) -> Any:
    """A value that compares floats within tolerances, at any depth, and everything else exactly."""
    if isinstance(value, float):
        return pytest.approx(value, rel=relative, abs=absolute)
    if isinstance(value, dict):
        return {key: close(item, relative, absolute) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [close(item, relative, absolute) for item in value]
    return value


def as_json(value: Any) -> Any:
    return json.loads(json.dumps(value, allow_nan=False))


@pytest.mark.parametrize("name", runs.TRAININGS)
def test_losses_gradient_norms_and_learning_rates_of_twenty_steps(name: str, data: Path, tmp_path: Path) -> None:
    expected = recorded("losses.json", "losses")[name]
    found = runs.losses(runs.TRAININGS[name], data, tmp_path)
    assert set(found) == {
        "loss_cls",
        "loss_box",
        "loss_iou",
        "normaliser",
        "images",
        "gradient_norm",
        "learning_rate",
    }
    for column, values in expected.items():
        assert len(values) == runs.STEPS
        assert found[column] == pytest.approx(values, rel=1e-5, abs=1e-12), column


def test_the_training_images_are_the_recorded_ones(data: Path) -> None:
    assert runs.images_sha256(data) == recorded("losses.json", "header")["training_images_sha256"]


def test_every_recorded_training_is_compared() -> None:
    assert set(recorded("losses.json", "losses")) == set(runs.TRAININGS)


def test_detections_under_every_scoring_and_of_the_oracle() -> None:
    expected, found = recorded("detections.json", "detections"), as_json(runs.detections())
    assert set(found) == set(expected)
    assert len(expected) == 11
    for scoring in expected:
        assert found[scoring] == close(expected[scoring], 1e-5, 1e-8), scoring


@pytest.mark.parametrize("name", ["random", "trained"])
def test_metrics_and_intervals_of_recorded_detections(name: str) -> None:
    inputs = recorded("evaluation_inputs.json", "inputs")[name]
    expected, found = recorded("evaluation.json", "metrics")[name], as_json(runs.evaluation(inputs))
    assert set(found) == set(expected)
    for part in expected:
        assert found[part] == close(expected[part], 1e-8, 1e-8), part


def test_rendered_tables_are_the_same_text() -> None:
    expected, found = recorded("tables.json", "tables"), runs.tables()
    assert set(found) == set(expected)
    for file, text in expected.items():
        assert found[file].splitlines() == text["lines"], file


def test_the_store_of_format_1_unpacks(tmp_path: Path) -> None:
    archive = HERE / "store_format_1.tar.xz"
    assert archive.stat().st_size < 2_000_000
    with tarfile.open(archive) as tar:
        tar.extractall(tmp_path, filter="data")
    runs_folder = tmp_path / "data" / "runs"
    for file in (
        "mlflow.db",
        "finished/spec.json",
        "finished/manifest.json",
        "finished/journal.jsonl",
        "finished/tracking.json",
        "finished/checkpoint-000000006/tensors.safetensors",
        "finished/evaluation/6505ae5f0e8a/detections.json",
        "finished/evaluation/6505ae5f0e8a/metrics.json",
        "interrupted/journal.jsonl",
        "interrupted/checkpoint-000000005/metadata.json",
        "interrupted/stop-requested",
        "plain/evaluation/6505ae5f0e8a/metrics.json",
        "sweeps/smoke-table3-87bde055-shapes/trials.json",
        "smoke-ablation-baseline-shapes-6d7f9531426e/evaluation/827ec1f77114/metrics.json",
        "smoke-ablation-bce-shapes-42b82e03cc33/candidates-ab65ddb452e0/shard-00000-of-00001.parquet",
        "smoke-ablation-bce-shapes-42b82e03cc33/oracle/6505ae5f0e8a/metrics.json",
    ):
        assert (runs_folder / file).is_file(), file
    assert not list(tmp_path.rglob("*.png"))
    assert len(list((tmp_path / "data" / "shapes").rglob("*.jpg"))) == 18
