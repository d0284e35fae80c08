"""B29: a database whose Python driver is missing names the extra that installs it."""

import importlib.util
import tomllib
from pathlib import Path

import pytest

from runyard.tracking import stores
from runyard.tracking.mlflow_tracker import MlflowTracker
from runyard.tracking.stores import TrackingRefusedError, check_store, resolve_tracking_uri

EXTRAS = tomllib.loads((Path(__file__).resolve().parents[2] / "pyproject.toml").read_text())["project"][
    "optional-dependencies"
]


@pytest.mark.parametrize(
    ("uri", "driver", "extra"),
    [
        ("postgresql+psycopg2://me:secret@127.0.0.1:1/mlflow", "psycopg2", "postgres"),
        ("mysql+pymysql://me:secret@127.0.0.1:1/mlflow", "pymysql", "mysql"),
    ],
)
def test_B29_a_missing_driver_names_the_extra(uri: str, driver: str, extra: str) -> None:
    if importlib.util.find_spec(driver) is not None:
        pytest.skip(f"{driver} is installed")
    for use in (lambda: check_store(uri), MlflowTracker(uri, "experiment").experiment_id):
        with pytest.raises(TrackingRefusedError, match=rf"pip install 'runyard\[{extra}\]'") as caught:
            use()
        assert "secret" not in str(caught.value)
    assert any(requirement.lower().startswith(driver) for requirement in EXTRAS[extra])


@pytest.mark.parametrize(("scheme", "ours"), [("postgresql", "psycopg2"), ("mysql", "pymysql")])
def test_B29_a_plain_uri_uses_the_driver_of_the_extra(
    scheme: str, ours: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    installed = {ours}
    monkeypatch.setattr(stores, "_is_installed", installed.__contains__)
    assert resolve_tracking_uri(f"{scheme}://db/mlflow", tmp_path) == f"{scheme}+{ours}://db/mlflow"
    installed |= {"psycopg", "MySQLdb"}
    assert resolve_tracking_uri(f"{scheme}://db/mlflow", tmp_path) == f"{scheme}://db/mlflow"
