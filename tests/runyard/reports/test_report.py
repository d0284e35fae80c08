"""Report of a sweep: files that hold the same numbers, plots that are pictures, and `runyard table` again."""

import csv
import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from PIL import Image
from rich.console import Console

from detector.config import ScoringConfig
from detector.data.formats import open_dataset
from detector.data.samples import Dataset
from detector.errors import ConfigError
from runyard import cli
from runyard.paper import ImageSet, PaperRow, PaperTable
from runyard.reports.report import Report, read_server_results, report
from runyard.scoring.results import SweepResult
from runyard.spec import ExperimentSpec, PaperReference
from tests.runyard.finished_runs import finished_sweep

ALPHAS = {"1.0": 3.0, "0.5": 1.0, "0.1": 2.0}


@pytest.fixture
def sweep(make_tiny_spec: Callable[[Path], ExperimentSpec], tiny_data: Path, tmp_path: Path) -> SweepResult:
    val: Dataset = open_dataset(tiny_data, "train")
    spec = make_tiny_spec(tmp_path)
    baseline = replace(spec, model=replace(spec.model, iou_head=False), paper=PaperReference("Table 3", "baseline"))
    rows = {"baseline": (baseline, 4.0)}
    for alpha, noise in ALPHAS.items():
        scoring = ScoringConfig(confidence="alpha", alpha=float(alpha))
        rows[alpha] = (replace(spec, scoring=scoring, paper=PaperReference("Table 3", alpha)), noise)
    images = ImageSet("these", len(val), len(val.categories), len(val.labels))
    printed = {row: PaperRow(row, {"AP": 30.0, "AP50": 50.0}) for row in rows}
    paper = PaperTable(3, "alpha", images, images, "coco", ("AP", "AP50"), printed)
    return finished_sweep(tmp_path, val, rows, paper=(paper,))


def test_everything_is_written_and_says_the_same(sweep: SweepResult, capsys: pytest.CaptureFixture[str]) -> None:
    made = report(sweep, Console(width=60))
    artifacts = made.artifacts
    out = capsys.readouterr().out
    files = {path.name: folder for path, folder in artifacts}
    assert files == {
        **dict.fromkeys(("table3.md", "table3.csv", "table3.tex", "report.md"), "results"),
        **dict.fromkeys(("alpha.png", "gains.png", "ap_by_iou.png", "confidence.png"), "plots"),
    }
    assert {path for path, _ in artifacts} == set(sweep.folder.results.iterdir())
    ap = f"{100 * sweep.results[2].metrics['val/AP']:.1f}"
    page = (sweep.folder.results / "report.md").read_text()
    for text in (out, page, *((sweep.folder.results / f"table3{suffix}").read_text() for suffix in (".md", ".tex"))):
        assert ap in text
    assert made.summary in page
    aps = [result.metrics["val/AP"] for result in sweep.results]
    assert (list(made.metrics.values())[: len(aps)], made.results) == (aps, len(made.metrics))
    assert "…" not in out  # nothing is cut off on a narrow terminal
    assert "Best alpha on one half of the images" in page
    assert "0.5, with COCO AP" in page
    assert "Pearson" in page
    assert all(f"| {name} |" in page for name in ("ellipse", "rectangle"))
    with (sweep.folder.results / "table3.csv").open() as stream:
        lines = {(line["line"], line["metric"]): line for line in csv.DictReader(stream)}
    assert float(lines["0.5", "AP"]["ours"]) == pytest.approx(100 * sweep.results[2].metrics["val/AP"], abs=1e-4)
    assert float(lines["0.5", "AP"]["low"]) < float(lines["0.5", "AP"]["ours_minus_baseline"])
    for path, folder in artifacts:
        if folder == "plots":
            with Image.open(path) as image:
                assert len(image.convert("L").getcolors(256)) > 20
                assert min(image.size) > 400


def test_the_command_makes_it_again(sweep: SweepResult, capsys: pytest.CaptureFixture[str]) -> None:
    report(sweep, Console())
    resampling, _, first = capsys.readouterr().out.partition("\n")
    assert resampling == "  resampling the images of 4 evaluations for the intervals"
    assert cli.main(["table", str(sweep.folder.root)]) == 0
    assert capsys.readouterr().out == first


def test_a_sweep_without_results_says_so(sweep: SweepResult, capsys: pytest.CaptureFixture[str]) -> None:
    bare = replace(sweep, results=tuple(replace(result, metrics=None) for result in sweep.results))
    assert report(bare, Console(width=200)) == Report()
    assert "no trial has results yet" in capsys.readouterr().out


def test_the_servers_answers_are_checked(tmp_path: Path) -> None:
    file = tmp_path / "server.json"
    for content in ("{", "[]", '{"r50-iou": 36.9}'):
        file.write_text(content)
        with pytest.raises(ConfigError):
            read_server_results(file)
    file.write_text(json.dumps({"r50-iou": {"AP": 36.9}}))
    assert read_server_results(file) == {"r50-iou": {"AP": 36.9}}


def test_a_wrong_folder_is_one_message(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["table", str(tmp_path)]) == 2
    told = capsys.readouterr()
    assert "is not the folder of a sweep" in told.err
    assert told.out == ""


def test_detections_that_are_gone_cost_a_plot_not_the_tables(
    sweep: SweepResult, capsys: pytest.CaptureFixture[str]
) -> None:
    report(sweep, Console(width=200))
    iou = sweep.results[2]
    shutil.rmtree(iou.run.candidates(iou.spec.validation_hash))
    sweep.results[3].evaluation.resampled.unlink()
    capsys.readouterr()
    report(sweep, Console(width=200))
    out = capsys.readouterr().out
    assert "0.1: no interval, its detections are gone" in out
    assert "0.5: no heat map, its detections are gone" in out
    assert "alpha 0.5" in (sweep.folder.results / "table3.md").read_text()


def test_a_servers_results_need_table_1(sweep: SweepResult) -> None:
    with pytest.raises(ConfigError, match="Table 1 only"):
        report(sweep, Console(), {"0.5": {"AP": 36.0}})
