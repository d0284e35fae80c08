"""B9: a second driver is refused before it touches anything."""

import hashlib
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest

from runyard.driver.run import run_one
from runyard.locks import LockHeldError
from runyard.reports.report import Report
from runyard.runs.folder import SweepFolder
from runyard.runs.prepare import locate, prepare
from runyard.spec import ExperimentSpec, to_dict
from runyard.training import local
from tests.runyard.conftest import Work

pytestmark = pytest.mark.processes

ROOT = Path(__file__).resolve().parents[2]
HOLDER = """
import sys
from pathlib import Path
from runyard.locks import held
with held(Path(sys.argv[1]), "running this experiment"):
    print("held", flush=True)
    sys.stdin.read()
"""


@contextmanager
def held_by_another_process(lock: Path) -> Iterator[int]:
    """The id of a process that holds the lock."""
    environment = os.environ | {"PYTHONPATH": f"{ROOT / 'platform'}:{ROOT}"}
    command = [sys.executable, "-c", HOLDER, str(lock)]
    with subprocess.Popen(command, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "held\n"
        yield holder.pid
        holder.communicate()


def contents(folder: Path) -> dict[Path, str]:
    files = (path for path in folder.rglob("*") if path.is_file() and path.suffix != ".lock")
    return {path: hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def other(spec: ExperimentSpec) -> ExperimentSpec:
    """The same training, asked for with other settings of running and another scoring."""
    scoring = replace(spec.scoring, alpha=0.1)
    return replace(spec, scoring=scoring, runtime=replace(spec.runtime, log_every_steps=7, experiment="another"))


def test_B9_a_second_driver_of_a_sweep_leaves_its_run_alone(spec: ExperimentSpec, work: Work) -> None:
    prepared = prepare(spec)
    storage = prepared.folder.root.parent
    lock = SweepFolder.in_storage(storage, "tiny-shapes").lock
    before = contents(storage)
    with (
        held_by_another_process(lock) as process,
        pytest.raises(LockHeldError, match=f"another process is running this sweep .process {process} "),
    ):
        run_one(other(spec), launcher="local", finish=lambda result: Report(), do=work)
    assert work.done == []
    assert {path: value for path, value in contents(storage).items() if path.name != "storage.json"} == {
        path: value for path, value in before.items() if path.name != "storage.json"
    }


def test_B9_a_second_process_of_a_run_leaves_it_alone(
    spec: ExperimentSpec, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = prepare(spec).folder
    before = contents(folder.root)
    (tmp_path / "spec.json").write_text(json.dumps(to_dict(replace(other(spec), scoring=spec.scoring))))
    with held_by_another_process(folder.lock):
        assert local.main([str(tmp_path / "spec.json")]) == 2
    assert "another process is running this experiment" in capsys.readouterr().err
    assert contents(folder.root) == before


def test_B9_a_run_that_another_process_is_beginning_is_left_alone(spec: ExperimentSpec) -> None:
    _, folder = locate(spec)
    with held_by_another_process(folder.lock), pytest.raises(LockHeldError):
        prepare(spec)
    assert contents(folder.root) == {}
