"""S5: names that climb, hide, end strings, read as options, of runs, classes, images, artifacts: all stay in place."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
from mlflow.tracking import MlflowClient

from detector.data.cache import load_dataset
from detector.errors import ConfigError
from runyard.driver.run import run_one
from runyard.runs.folder import RunFolder, SweepFolder
from runyard.runs.names import safe_name
from runyard.runs.prepare import prepare
from runyard.spec import ExperimentSpec, SourceConfig, from_dict
from runyard.tracking.mlflow_tracker import MlflowTracker
from runyard.tracking.runs import TrackedRun

HOSTILE = [
    "../../x",
    "/etc/x",
    "..%2f",
    "C:\\x",
    "a\0b",
    "x" * 300,
    "#frag",
    "\u202eevil\u202c",
    "e\u0301",
    "é",
    "🦈",
    "CON",
    "con.txt",
    "-rf",
    "..",
    ".",
    "",
    " ",
    "~",
    "~h0123456789abcdef",
    "name.",
    "a/b",
    "a~2Fb",
    "\ud800",
    "AUX.",
    "🦈" * 90,
]


@pytest.mark.parametrize("text", HOSTILE)
def test_S5_a_hostile_name_becomes_one_plain_file_that_can_be_created(text: str, tmp_path: Path) -> None:
    name = safe_name(text)
    path = tmp_path / name
    path.write_text("content")
    assert [entry.name for entry in tmp_path.iterdir()] == [name]
    assert path.resolve().parent == tmp_path.resolve()
    assert name.isascii()
    assert not name.startswith(("-", "."))
    assert not name.endswith(".")
    assert not set(name) & set('/\\:%#?*"<>| \0')


def test_S5_names_of_different_hostile_texts_differ() -> None:
    assert len({safe_name(text) for text in HOSTILE}) == len(HOSTILE)


@pytest.mark.parametrize("name", [name for name in HOSTILE if name and safe_name(name) != name])
def test_S5_a_run_cannot_be_called_so_and_is_offered_a_name_that_says_the_same(
    tiny_spec: ExperimentSpec, name: str, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match=r"runtime\.name: cannot be the name of a folder") as refused:
        prepare(replace(tiny_spec, runtime=replace(tiny_spec.runtime, name=name)))
    offered = str(refused.value).rpartition("Try ")[2]
    assert offered == safe_name(name)
    assert not list(tmp_path.rglob("spec.json"))


@pytest.mark.parametrize("name", HOSTILE)
def test_S5_sweeps_and_pictures_stay_where_they_belong(name: str, tmp_path: Path) -> None:
    sweep = SweepFolder.in_storage(tmp_path, name).root
    assert sweep.resolve().parent == (tmp_path / "sweeps").resolve()
    evaluation = RunFolder(tmp_path).evaluation("0" * 16)
    assert evaluation.gallery_image(name).resolve().parent == (evaluation.root / "gallery").resolve()


def test_S5_artifacts_and_identities_stay_in_their_run(tracking_uri: str, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("content")
    before = {path for path in tmp_path.rglob("*")}
    tracker = MlflowTracker(tracking_uri, "experiment")
    ids = {name: tracker.open_run(TrackedRun(name, name or "unnamed")) for name in HOSTILE if name != "\ud800"}
    assert len(set(ids.values())) == len(ids)
    for name in ids:
        if "\0" not in name:
            tracker.log_artifact(ids[name], tmp_path / "file", name)
    store = tmp_path / "store"
    strays = [path for path in tmp_path.rglob("*") if path not in before and not path.is_relative_to(store)]
    assert strays == []
    artifacts = store / "mlartifacts" / "experiment"
    assert {path.name for path in artifacts.iterdir()} == set(ids.values()) - {ids["a\0b"]}


def test_S5_a_data_set_of_hostile_names_is_trained_on_and_nothing_leaves_the_run(
    tiny_spec: ExperimentSpec, tracking_uri: str, tmp_path: Path
) -> None:
    assert tiny_spec.source.data is not None
    data = shutil.copytree(tiny_spec.source.data, tmp_path / "data" / "-rf #frag \u202e🦈")
    rename_all(data)
    before = {path for path in tmp_path.rglob("*")}
    spec = replace(
        tiny_spec,
        source=SourceConfig(data=data),
        runtime=replace(tiny_spec.runtime, tracking_uri=tracking_uri, name=None),
    )
    outcome = run_one(spec, launcher="local")
    assert outcome.metrics["val/images"] == 5
    root = outcome.run.root
    assert root.parent == tmp_path / "runs"
    assert root.name.isascii()
    allowed = (tmp_path / "runs", tmp_path / "store")
    strays = [p for p in tmp_path.rglob("*") if p not in before and not any(p.is_relative_to(a) for a in allowed)]
    assert strays == []
    assert all(path.name.isascii() for path in root.rglob("*"))
    # What they were called is kept: in the columns, in the specification, in the results.
    assert set(load_dataset(outcome.run.val_data(outcome.spec.validation_hash)).class_names) <= set(HOSTILE)
    assert from_dict(json.loads(outcome.run.spec.read_text())).source.data == data
    client = MlflowClient(tracking_uri)
    (run,) = client.search_runs([client.get_experiment_by_name("runyard").experiment_id], "tags.kind = 'trial'")
    assert run.info.status == "FINISHED"
    assert run.data.tags["dataset"] == str(data)
    assert any(name.startswith("val/class_AP/") for name in run.data.metrics)


def rename_all(data: Path) -> None:
    """Gives classes and image files of a COCO folder hostile names, where the file system takes them."""
    files = [name for name in HOSTILE if name not in ("", ".", "..", "\ud800") and not set("/\0") & set(name)]
    files = [name for name in files if len(name.encode()) <= 250]
    for split in ("train", "val"):
        path = data / "annotations" / f"instances_{split}.json"
        content = json.loads(path.read_text())
        classes = iter(HOSTILE)
        for category in content["categories"]:
            category["name"] = next(classes)
        for image, name in zip(content["images"], files, strict=False):
            (data / split / image["file_name"]).rename(data / split / f"{name}.png")
            image["file_name"] = f"{name}.png"
        path.write_text(json.dumps(content))
