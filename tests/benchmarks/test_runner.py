"""The command line: what is run, what is written, how a comparison fails."""

import importlib
import json
import os
from pathlib import Path

import pytest
import torch

from benchmarks import __main__ as command
from benchmarks import average_precision, machine, runner
from benchmarks.intervals import Goal
from benchmarks.rows import NotRun, Row
from benchmarks.runner import COMPARISONS, has_failed, run, run_apart
from benchmarks.settings import GPU, H100, Settings

SETTINGS = Settings(torch.device("cpu"), quick=True)


def test_every_comparison_has_its_function() -> None:
    for place in COMPARISONS.values():
        module, _, function = place.partition(":")
        assert callable(getattr(importlib.import_module(f"benchmarks.{module}"), function))


def test_a_comparison_is_printed_and_written(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    target = tmp_path / "new" / "results.json"
    page = target.with_suffix(".md")
    options = ["--quick", "--cpu", "--only", "p9", "--json", str(target), "--markdown", str(page)]
    assert command.main(options) == 0
    assert "COCO AP" in capsys.readouterr().out
    assert "| P9 | COCO AP; reduced: 20 images" in page.read_text()
    content = json.loads(target.read_text())
    assert content["command"].startswith("python -m benchmarks --quick")
    assert content["machine"]["torch"] == torch.__version__.partition("+")[0]
    (row,) = content["rows"]
    assert row["key"] == "P9"
    assert row["verdict"] == "no goal"
    assert row["size"].startswith("reduced:")
    assert "equal" in row["checked"]


def test_goals_say_what_they_are_about() -> None:
    thorough = Settings(torch.device("cpu"))
    assert thorough.goal(2.0, at_least=True) == Goal(2.0, at_least=True)
    assert thorough.goal(2.0, at_least=True, on=GPU) == Goal(2.0, at_least=True, needs="a GPU")
    assert thorough.goal(2.0, at_least=True, on=H100) == Goal(2.0, at_least=True, needs="an H100")
    assert SETTINGS.goal(2.0, at_least=True) is None


def test_an_unknown_comparison_is_a_usage_error(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        command.main(["--only", "P9,P99"])
    assert "no comparison P99; there are P1, P2" in capsys.readouterr().err


def test_a_failed_comparison_becomes_a_row(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(settings: Settings) -> list[Row]:
        raise RuntimeError("no such thing")

    monkeypatch.setattr(average_precision, "measure", fail)
    rows = run("P9", SETTINGS)
    assert rows == [NotRun("P9", "average precision", "failed: RuntimeError: no such thing")]
    assert has_failed(rows)
    assert not has_failed([NotRun("P5", "two workers", "needs two GPUs")])


def test_large_temporaries_are_measured_with_and_without_their_page_faults() -> None:
    rows = run_apart("P11", SETTINGS)
    notes = [row.note for row in rows if isinstance(row, Row)]
    assert notes == ["", "both spared the page faults of large temporaries"]
    assert [row.reason for row in rows if isinstance(row, NotRun)] == ["needs a GPU"]


def test_a_comparison_that_dies_becomes_a_row(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runner, "run", _die)
    (row,) = run_apart("P9", SETTINGS)
    assert isinstance(row, NotRun)
    assert row.reason.startswith("failed: BrokenProcessPool")


def _die(key: str, settings: Settings) -> list[Row]:
    os._exit(1)


def test_the_machine_is_described_without_names_and_paths() -> None:
    found = machine.describe()
    assert {"processor", "cores", "memory_gib", "torch", "date"} <= found.keys()
    assert "/" not in json.dumps({key: found[key] for key in ("processor", "system", "python", "torch")})
    json.dumps(found)


def test_a_machine_is_busy_from_a_share_of_its_processors_on(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.cpu_count", lambda: 10)
    assert machine.is_busy(1.6)
    assert not machine.is_busy(1.4)
    assert not machine.is_busy(None)
