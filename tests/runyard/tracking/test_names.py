"""Names as MLflow takes them."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from runyard.tracking.names import artifact_folder, flat_parameters, tracked_name


@pytest.mark.parametrize("name", ["val/AP", "val/AP50", "val/AP_small", "train/loss", "class/traffic light", "a.b:c-d"])
def test_names_that_mlflow_takes_stay(name: str) -> None:
    assert tracked_name(name) == name


def test_what_it_does_not_take_is_replaced_and_stays_apart() -> None:
    one, other = tracked_name("AP@[.5:.95]"), tracked_name("AP@(.5:.95)")
    assert one.startswith("AP__.5:.95__")
    assert one != other


@given(st.text(max_size=400))
def test_every_name_becomes_one_that_mlflow_takes(name: str) -> None:
    from mlflow.utils.validation import _validate_metric_name

    _validate_metric_name(tracked_name(name))
    assert len(tracked_name(name)) <= 250


@given(st.text(max_size=30), st.text(max_size=30))
def test_two_names_stay_two(one: str, other: str) -> None:
    assert (tracked_name(one) == tracked_name(other)) == (one == other)


def test_artifact_folders_stay_below_the_run() -> None:
    assert artifact_folder("") == ""
    assert artifact_folder("plots/ap") == "plots/ap"
    assert artifact_folder("../../x") == "~2E~2E/~2E~2E/x"
    assert artifact_folder("/etc/x#y") == "etc/x~23y"


def test_nested_parameters_become_flat() -> None:
    nested = {"model": {"backbone": {"name": "resnet50"}, "scales": (1.0, 2.0)}, "seed": 0, "empty": {}, "limit": None}
    assert flat_parameters(nested) == {
        "model.backbone.name": "resnet50", "model.scales": "[1.0, 2.0]", "seed": "0", "limit": "None",
    }  # fmt: skip
    assert flat_parameters({}) == {}


def test_parameters_show_no_credentials() -> None:
    assert flat_parameters({"uri": "http://me:secret@host", "all": ["http://me:secret@host"]}) == {
        "uri": "http://host", "all": '["http://host"]',
    }  # fmt: skip
