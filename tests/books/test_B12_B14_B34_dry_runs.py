"""B12, B14, B34: a dry run reads no image and writes nothing, and what it prints can be trained."""

import json
import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from detector.errors import DatasetError
from runyard import cli
from runyard.commandline.command import Table, build, parse
from runyard.commandline.options import Options
from runyard.driver.command import run_command
from runyard.runs.attempts import read_attempts
from runyard.runs.folder import RunFolder
from runyard.spec import ExperimentSpec
from runyard.tracking.journal import last_status
from runyard.training import local


def dry_run(spec: ExperimentSpec, *arguments: str) -> None:
    table = Table("table", lambda row: spec, ("tiny",), lambda smoke: smoke)
    options, given = parse(table, "", Options, ["--dry-run", *arguments])
    run_command(table, build(table, options, given), options, {})


@pytest.fixture
def unreadable_images(tiny_data: Path, tmp_path: Path) -> Path:
    """The data set with no image that can be decoded."""
    copy = shutil.copytree(tiny_data, tmp_path / "data")
    for path in (*(copy / "train").iterdir(), *(copy / "val").iterdir()):
        path.write_bytes(b"no image")
    return copy


@pytest.mark.parametrize("options", [(), ("--no-check-images",)])
def test_B12_a_dry_run_decodes_nothing_and_writes_nothing(
    make_tiny_spec, unreadable_images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str], options: Sequence[str],
) -> None:  # fmt: skip
    folder = tmp_path / "elsewhere"
    folder.mkdir()
    monkeypatch.chdir(folder)
    spec = make_tiny_spec(tmp_path / "runs")
    dry_run(spec, "--data", str(unreadable_images), "--images-per-second", "0.01", *options)
    described = json.loads(capsys.readouterr().out)
    assert described["estimated_gpu_hours"] == round(spec.optim.epochs * 12 / 0.01 / 3600, 2)
    assert described["each_training"][0]["spec"]["runtime"]["check_images"] == (not options)
    assert list(folder.iterdir()) == []
    assert not (tmp_path / "runs").exists()


def test_B14_the_plain_launcher_trains_what_a_dry_run_prints(
    spec: ExperimentSpec, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    dry_run(spec)
    file = tmp_path / "spec.json"
    file.write_text(capsys.readouterr().out)
    assert local.main([str(file)]) == 0
    assert json.loads(capsys.readouterr().out)["val/images"] == 5
    assert spec.runtime.storage is not None
    (folder,) = (RunFolder(path.parent) for path in spec.runtime.storage.glob("*/spec.json"))
    assert folder.root.name.endswith(spec.training_hash[:12])
    assert last_status(folder.journal) == "FINISHED"
    assert len(read_attempts(folder)) == 1
    assert cli.main(["sync", str(folder.root)]) == 0
    uploaded = capsys.readouterr().out
    assert uploaded.endswith("records uploaded\n")
    assert int(uploaded.split()[0]) > 3


def test_B14_a_dry_run_of_several_trainings_is_refused_with_a_remedy(
    spec: ExperimentSpec, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    dry_run(spec, "--seeds", "2")
    file = tmp_path / "spec.json"
    file.write_text(capsys.readouterr().out)
    assert local.main([str(file)]) == 2
    assert "expected a dry run of one training, found 2. Choose one of them" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["data", "train_annotations", "val_images"])
def test_B34_a_dry_run_refuses_a_path_that_does_not_exist(spec: ExperimentSpec, tmp_path: Path, name: str) -> None:
    gone = replace(spec, source=replace(spec.source, **{name: tmp_path / "gone"}))
    with pytest.raises(DatasetError, match=rf"gone: no such file or folder|source\.{name}"):
        dry_run(gone)
