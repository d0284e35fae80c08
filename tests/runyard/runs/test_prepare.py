"""Claims, checks and files of a run before any worker starts."""

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest

from detector.data.cache import load_dataset
from detector.errors import ConfigError, DatasetError
from runyard.runs.prepare import prepare
from runyard.spec import ExperimentSpec, RuntimeConfig, SourceConfig, from_dict, to_dict


def with_runtime(spec: ExperimentSpec, **values: object) -> ExperimentSpec:
    return replace(spec, runtime=replace(spec.runtime, **values))


def test_a_prepared_folder_holds_all_that_workers_need(tiny_spec: ExperimentSpec) -> None:
    prepared = prepare(with_runtime(tiny_spec, name=None))
    assert not prepared.resumed
    assert (prepared.train_images, prepared.val_images) == (21, 5)
    assert prepared.folder.root.name == f"tiny-shapes-{tiny_spec.training_hash[:12]}"
    assert from_dict(json.loads(prepared.folder.spec.read_text())) == prepared.spec
    assert len(load_dataset(prepared.folder.train_data)) == 21
    assert set(prepared.manifest["dataset_fingerprints"]) == {"train", "val"}
    assert prepared.spec.training_hash == tiny_spec.training_hash


def test_the_same_spec_finds_its_folder_again(tiny_spec: ExperimentSpec) -> None:
    first = prepare(tiny_spec)
    again = prepare(with_runtime(tiny_spec, workers=2, log_every_steps=3))
    assert again.folder == first.folder
    assert again.resumed


def test_a_run_that_another_process_began_meanwhile_is_kept(
    tiny_spec: ExperimentSpec, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun = []

    @contextmanager
    def slow(path: Path, *_: object) -> Iterator[None]:
        monkeypatch.undo()
        begun.append(prepare(with_runtime(tiny_spec, log_every_steps=7)))
        yield

    monkeypatch.setattr("runyard.runs.prepare.held", slow)
    again = prepare(tiny_spec)
    assert again.resumed
    assert from_dict(json.loads(again.folder.spec.read_text())) == begun[0].spec


def test_val_limit_limits_what_is_evaluated(tiny_spec: ExperimentSpec) -> None:
    assert prepare(replace(tiny_spec, data=replace(tiny_spec.data, val_limit=2))).val_images == 2


def test_another_selection_for_validation_is_a_new_evaluation_of_the_same_run(tiny_spec: ExperimentSpec) -> None:
    first = prepare(tiny_spec)
    fewer = prepare(replace(tiny_spec, data=replace(tiny_spec.data, val_limit=2)))
    assert fewer.folder == first.folder
    assert fewer.spec.scoring_hash != first.spec.scoring_hash


@pytest.mark.parametrize(
    "uri", ["http://user:opensesame@host:5000", "postgresql://user:opensesame@host/db", "http://opensesame@host"]
)
def test_credentials_of_the_tracking_store_are_written_nowhere(tiny_spec: ExperimentSpec, uri: str) -> None:
    prepared = prepare(with_runtime(tiny_spec, tracking_uri=uri))
    assert prepared.spec.runtime.tracking_uri is not None
    assert "host" in prepared.spec.runtime.tracking_uri
    written = b"".join(path.read_bytes() for path in prepared.folder.root.rglob("*") if path.is_file())
    assert b"opensesame" not in written
    assert "opensesame" not in json.dumps(to_dict(prepared.spec))


@pytest.mark.parametrize(
    ("runtime", "message"),
    [
        ({"name": "../escaped"}, r"runtime.name: cannot be the name of a folder .*Try ~2E~2E~2Fescaped|Try "),
        ({"name": "a b"}, "runtime.name: cannot be the name of a folder"),
        ({"storage": Path("s3://bucket/runs")}, "runtime.storage: must be a folder"),
    ],
)
def test_names_and_places_that_do_not_do_are_refused(tiny_spec: ExperimentSpec, runtime, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        prepare(with_runtime(tiny_spec, **runtime))


def test_a_file_where_the_storage_should_be_is_one_error(tiny_spec: ExperimentSpec, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match=r"runtime.storage: cannot be written"):
        prepare(with_runtime(tiny_spec, storage=tmp_path / "file"))


def test_no_data_and_no_trainable_image_are_said_before_anything_is_written(
    tiny_spec: ExperimentSpec, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match="no data set was named"):
        prepare(replace(tiny_spec, source=SourceConfig()))
    with pytest.raises(DatasetError, match="no image to train on"):
        prepare(replace(tiny_spec, data=replace(tiny_spec.data, min_image_side_px=1000)))
    assert not (tmp_path / "runs").exists()


def test_a_folder_that_cannot_be_read_as_a_run_is_left_alone(tiny_spec: ExperimentSpec) -> None:
    folder = prepare(tiny_spec).folder
    folder.spec.write_text("{")
    with pytest.raises(ConfigError, match="holds a run that cannot be read"):
        prepare(tiny_spec)
    assert folder.spec.read_text() == "{"


def test_relative_paths_become_absolute(tiny_spec: ExperimentSpec, monkeypatch: pytest.MonkeyPatch) -> None:
    assert tiny_spec.source.data is not None
    monkeypatch.chdir(tiny_spec.source.data.parent)
    relative = replace(
        tiny_spec,
        source=SourceConfig(data=Path(tiny_spec.source.data.name)),
        runtime=RuntimeConfig(storage=Path(os.path.relpath(tiny_spec.runtime.storage or ""))),
    )
    prepared = prepare(relative)
    assert prepared.spec.source.data == tiny_spec.source.data.resolve()
    assert prepared.spec.runtime.storage is not None
    assert prepared.spec.runtime.storage.is_absolute()
