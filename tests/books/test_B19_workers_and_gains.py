"""B19: workers that the plain launcher would not start are refused; a plot that leaves rows out says so."""

from dataclasses import replace
from pathlib import Path

import pytest
from rich.console import Console

from detector.config import ScoringConfig
from detector.data.formats import open_dataset
from detector.errors import ConfigError
from detector.evaluation.bootstrap import Interval
from runyard.driver.run import run_one
from runyard.reports.report import report
from runyard.reports.sweep_plots import plot_gains
from runyard.spec import ExperimentSpec
from tests.books.commands import experiment, output_of
from tests.runyard.finished_runs import finished_sweep


@pytest.mark.processes
def test_B19_the_plain_launcher_refuses_several_workers_at_once(tiny_data: Path, tmp_path: Path) -> None:
    options = ["--data", tiny_data, "--storage", tmp_path / "runs", "--launcher", "local", "--workers", "8"]
    output = output_of(experiment("coco_main.py", "--row", "r50-iou", *options), status=2)
    (line,) = output.splitlines()
    assert line.startswith("error: runtime.workers: 'local' trains in one process (found 8). Leave --workers out")
    assert not (tmp_path / "runs").exists()


def test_B19_so_does_the_driver_without_a_command_line(tiny_spec: ExperimentSpec) -> None:
    spec = replace(tiny_spec, runtime=replace(tiny_spec.runtime, workers=8))
    with pytest.raises(ConfigError, match=r"runtime\.workers: the plain launcher trains in one process \(found 8\)"):
        run_one(spec, launcher="local")
    assert spec.runtime.storage is not None
    assert not spec.runtime.storage.exists()


def test_B19_the_gains_of_more_rows_than_are_shown_say_so(tmp_path: Path) -> None:
    gains = {f"row {number}": {"AP": Interval(0.01 * number, 0.0, 0.1)} for number in range(9)}
    nothing = {"paper": {}, "paper_label": ""}
    shown = plot_gains(gains, tmp_path / "nine.png", title="table", **nothing)
    first = dict(list(gains.items())[:7])
    titled = plot_gains(first, tmp_path / "seven.png", title="table (the first 7 of 9 rows)", **nothing)
    assert shown.read_bytes() == titled.read_bytes()
    unsaid = plot_gains(first, tmp_path / "unsaid.png", title="table", **nothing)
    assert shown.read_bytes() != unsaid.read_bytes()


def test_B19_the_report_of_more_rows_than_its_plot_shows_says_so(
    tiny_spec: ExperimentSpec, tiny_data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = {"baseline": (replace(tiny_spec, model=replace(tiny_spec.model, iou_head=False)), 4.0)}
    for number in range(9):
        scoring = ScoringConfig(confidence="none", nms_iou=0.4 + 0.01 * number)
        rows[f"row {number}"] = (replace(tiny_spec, scoring=scoring), 1.0 + 0.2 * number)
        base = replace(rows["baseline"][0], scoring=replace(scoring, confidence=ScoringConfig().confidence))
        rows[f"baseline {number}"] = (base, 4.0)
    sweep = finished_sweep(tmp_path, open_dataset(tiny_data, "val"), rows)
    report(sweep, Console(width=100))
    assert "gains.png shows the first 7 of 9 rows" in capsys.readouterr().out
