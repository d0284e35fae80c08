"""B28: options given twice or empty, and a run whose specification was edited, are refused."""

import json
import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from detector.errors import ConfigError
from runyard.commandline.command import Command, Table, build, parse
from runyard.commandline.options import Options
from runyard.driver.run import run_one
from runyard.runs.finished import finished_run
from runyard.runs.prepare import prepare
from runyard.scoring.results import TrialResult
from runyard.spec import ExperimentSpec
from tests.runyard.conftest import Work


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--rows", "a", "b", "a"), "rows: is given twice .*'a'"),
        (("--name", ""), "runtime.name: expected a text that is not empty"),
        (("--experiment", ""), "runtime.experiment: expected a text that is not empty"),
        (("--storage", ""), "runtime.storage: expected the path of a folder"),
        (("--vary", "seed=1", "--vary", "seed=2"), "vary: names a field twice"),
        (("--vary", "scoring.nms_iou=0.5,0.5"), "expected different values"),
    ],
)
def test_B28_options_that_are_empty_or_given_twice_are_refused(arguments: Sequence[str], message: str) -> None:
    table = Table("table", lambda row: ExperimentSpec(seed=ord(row)), ("a", "b"), lambda spec: spec)

    def command_of(arguments: Sequence[str]) -> Command:
        return build(table, *parse(table, "", Options, arguments))

    assert command_of(()).name == "table"
    with pytest.raises(ConfigError, match=message):
        command_of(arguments)


EDITS = {
    "training": ("data", "short_side_px", 48),
    "scoring": ("scoring", "alpha", 0.25),
    "validation": ("data", "val_limit", 5),
    "protocol": (None, "protocol", "voc"),
}


def edit(path: Path, section: str | None = "data", name: str = "short_side_px", value: Any = 48) -> str:
    """Change one setting in the file, as a hand would."""
    content = json.loads(path.read_text())
    (content if section is None else content[section])[name] = value
    path.write_text(json.dumps(content))
    return path.read_text()


def test_B28_a_run_with_an_edited_specification_is_refused(spec: ExperimentSpec, work: Work) -> None:
    folder = prepare(spec).folder
    edited = edit(folder.spec)
    for asked in (spec, replace(spec, data=replace(spec.data, short_side_px=48))):
        named = replace(asked, runtime=replace(asked.runtime, name=folder.root.name))
        with pytest.raises(ConfigError, match="changed after the run was begun"):
            prepare(named)
    with pytest.raises(ConfigError, match="changed after the run was begun"):
        run_one(spec, launcher="local", do=work)
    assert work.done == []
    assert folder.spec.read_text() == edited


def test_B28_a_finished_run_with_an_edited_specification_is_not_scored(finished: TrialResult, tmp_path: Path) -> None:
    copy = shutil.copytree(finished.run.root, tmp_path / "runs" / "copy")
    assert finished_run(copy).training_hash == finished.spec.training_hash
    edit(copy / "spec.json")
    with pytest.raises(ConfigError, match="changed after the run was begun"):
        finished_run(copy)


@pytest.mark.parametrize("edited", EDITS.values(), ids=EDITS)
def test_B28_an_edit_of_any_setting_that_changes_results_is_noticed(
    spec: ExperimentSpec, work: Work, edited: tuple[str | None, str, Any]
) -> None:
    folder = prepare(spec).folder
    edit(folder.spec, *edited)
    with pytest.raises(ConfigError, match="changed after the run was begun"):
        prepare(spec)
    with pytest.raises(ConfigError, match="changed after the run was begun"):
        run_one(spec, launcher="local", do=work)
    assert work.done == []
