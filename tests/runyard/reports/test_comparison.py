"""A sweep's table: what is averaged, what is compared with what, and what may stand beside the paper."""

import csv
import io
from collections.abc import Callable
from dataclasses import astuple, replace
from pathlib import Path

import numpy as np
import pytest

from detector.data.formats import open_dataset
from detector.data.samples import Dataset
from detector.errors import ConfigError
from detector.files import write_json
from runyard.grid import Trial
from runyard.paper import ImageSet, PaperRow, PaperTable
from runyard.reports.comparison import SweepTable, make_table
from runyard.reports.render import cell_text
from runyard.reports.resampling import resampled_ap
from runyard.reports.rows import baseline_of, rows_of
from runyard.runs.folder import RunFolder
from runyard.scoring.results import TrialResult, load_sweep, write_trials
from runyard.spec import ExperimentSpec, PaperReference
from tests.detector.evaluation.paired import paired_bootstrap
from tests.runyard.finished_runs import finished_sweep

GAIN = "AP - baseline"


@pytest.fixture(scope="session")
def val(tiny_data: Path) -> Dataset:
    return open_dataset(tiny_data, "val")


@pytest.fixture
def rows(make_tiny_spec: Callable[[Path], ExperimentSpec], tmp_path: Path) -> dict[str, tuple[ExperimentSpec, float]]:
    spec = replace(make_tiny_spec(tmp_path), paper=PaperReference("Table 2", "bce"))
    baseline = replace(spec, model=replace(spec.model, iou_head=False), paper=PaperReference("Table 2", "baseline"))
    return {"baseline": (baseline, 4.0), "bce": (spec, 1.0)}


def paper_of(images: ImageSet, **changes: object) -> PaperTable:
    rows = {
        "baseline": PaperRow("baseline", {"AP": 34.3, "AP50": 54.5, "APS": 17.2}),
        "bce": PaperRow("BCE loss", {"AP": 35.4, "AP50": 54.1, "APS": 18.9}),
    }
    trained_on = ImageSet("their training images", images.images, images.classes, None)
    table = PaperTable(2, "IoU losses", images, trained_on, "coco", ("AP", "AP50", "APS"), rows)
    return replace(table, **changes)  # type: ignore[arg-type]


def images_of(dataset: Dataset, name: str = "these very images") -> ImageSet:
    return ImageSet(name, len(dataset), len(dataset.categories), len(dataset.labels))


def table_of(sweep: object, paper: PaperTable | None, server: object = None) -> SweepTable:
    resampled = {r.id: resampled_ap(r) for r in sweep.results if r.metrics is not None}  # type: ignore[attr-defined]
    return make_table(sweep, rows_of(sweep.results), paper, resampled, server)  # type: ignore[attr-defined, arg-type]


def cells(table: SweepTable, label: str) -> dict[str, str]:
    (row,) = [row for row in table.rows if row.label.strip() == label]
    return {column: cell_text(value) for column, value in row.cells.items()}


def test_ours_stand_over_the_papers_with_difference_and_interval(rows, val: Dataset, tmp_path: Path) -> None:
    sweep = finished_sweep(tmp_path, val, rows)
    table = table_of(sweep, paper_of(images_of(val)))
    assert [row.label.strip() for row in table.rows] == ["baseline", "- paper", "bce", "- paper"]
    ours = sweep.results[1].metrics["val/AP"]
    assert cells(table, "bce")["AP"] == f"{100 * ours:.1f}"
    assert cell_text(table.rows[3].cells["AP"]) == f"35.4 ({round(100 * ours, 1) - 35.4:+.1f})"
    assert cell_text(table.rows[3].cells[GAIN]) == "+1.1"
    tables = [result.load_detections()[1] for result in sweep.results]
    expected = paired_bootstrap(val, *tables, metrics=("AP",))["AP"]
    assert astuple(table.rows[2].cells[GAIN]) == pytest.approx(astuple(expected), abs=1e-12)
    assert not any("comparable" in note for note in table.notes)


@pytest.mark.parametrize("reason", ["smoke", "settings", "images"])
def test_what_is_not_comparable_has_no_line_of_the_papers(rows, val: Dataset, tmp_path: Path, reason: str) -> None:
    images = images_of(val)
    if reason == "settings":
        spec, noise = rows["bce"]
        rows["bce"] = (replace(spec, paper=replace(spec.paper, changed=("optim.epochs",))), noise)
    if reason == "images":
        images = replace(images, objects=images.objects + 1)
    table = table_of(finished_sweep(tmp_path, val, rows, smoke=reason == "smoke"), paper_of(images))
    kept = ["- paper"] if reason == "settings" else []
    assert [row.label.strip() for row in table.rows] == ["baseline", *kept, "bce"]
    told = {"smoke": "a smoke run", "settings": "other settings (optim.epochs)", "images": "other images"}[reason]
    assert any(told in note for note in table.notes)
    assert table.title.startswith("SMOKE RUN") == (reason == "smoke")
    lines = [line for line in csv.DictReader(io.StringIO(table.csv)) if line["line"] == "bce"]
    assert {line["ours_minus_paper"] for line in lines} == {""}
    assert all(told in line["not_comparable_because"] for line in lines)


def test_test_dev_stands_beside_without_a_difference_until_the_server_has_answered(
    rows, val: Dataset, tmp_path: Path
) -> None:
    test_dev = ImageSet("COCO test-dev", 20_288, 80, None)
    paper = paper_of(test_dev, shown_beside=images_of(val), number=1)
    sweep = finished_sweep(tmp_path, val, rows)
    table = table_of(sweep, paper)
    assert [row.label.strip() for row in table.rows[2:]] == ["bce", "- paper, COCO test-dev"]
    assert cell_text(table.rows[3].cells["AP"]) == "35.4"
    assert all(line["ours_minus_paper"] == "" for line in csv.DictReader(io.StringIO(table.csv)))

    answered = table_of(sweep, paper, {"bce": {"AP": 35.9, "AP50": 54.0}})
    assert cell_text(answered.rows[4].cells["AP"]) == "35.9 (+0.5)"
    assert cell_text(answered.rows[4].cells["AP50"]) == "54.0 (-0.1)"
    assert "server" in answered.rows[4].label
    with pytest.raises(ConfigError, match="unknown row"):
        table_of(sweep, paper, {"r51": {"AP": 35.9}})
    with pytest.raises(ConfigError, match="must be numbers"):
        table_of(sweep, paper, {"bce": {"AP": "35.9"}})


def test_seeds_are_averaged_and_a_missing_one_is_told(rows, val: Dataset, tmp_path: Path) -> None:
    sweep = finished_sweep(tmp_path, val, rows, seeds=3)
    table = table_of(sweep, None)
    aps = [result.metrics["val/AP"] for result in sweep.results if result.row == "bce"]
    mean, std = 100 * np.mean(aps), 100 * np.std(aps, ddof=1)
    assert cells(table, "bce")["AP"] == f"{mean:.1f} ± {std:.1f}"
    assert "Mean ± standard deviation over 3 seeds." in table.notes
    expected = np.mean([r.metrics["val/AP"] * (1 if r.row == "bce" else -1) for r in sweep.results]) * 2
    assert table.rows[1].cells[GAIN].difference == pytest.approx(expected, abs=1e-9)

    sweep.results[-1].evaluation.metrics.unlink()
    again = table_of(load_sweep(sweep.folder.root), None)
    assert [row.label for row in again.rows] == ["baseline", "bce (2 of 3 seeds)"]


def test_the_trials_of_a_row_stand_by_seed(rows, tmp_path: Path) -> None:
    spec, _ = rows["bce"]
    trials = [Trial(replace(spec, seed=seed), "bce") for seed in (2, 0, 1)]
    (row,) = rows_of([TrialResult(trial, RunFolder(tmp_path), {"val/AP": 0.1}) for trial in trials])
    assert row.seeds == (0, 1, 2)
    assert row.spec.seed == 0


def test_a_baseline_is_trained_alike(rows, val: Dataset, tmp_path: Path) -> None:
    spec, noise = rows["bce"]
    rows["longer"] = (replace(spec, optim=replace(spec.optim, epochs=3)), noise)
    lines = rows_of(finished_sweep(tmp_path, val, rows).results)
    found = [baseline_of(line, lines) for line in lines]
    assert [line and line.name for line in found] == [None, "baseline", None]


def test_a_sweep_is_read_back_from_its_folder(rows, val: Dataset, tmp_path: Path) -> None:
    paper = paper_of(images_of(val), shown_beside=images_of(val))
    sweep = finished_sweep(tmp_path, val, rows, paper=(paper,), seeds=2)
    read = load_sweep(sweep.folder.root)
    assert read == sweep
    assert table_of(read, read.paper[0]) == table_of(sweep, paper)


@pytest.mark.parametrize(
    "content", [None, "{", '{"format": 2, "sweep": 1}', '{"format": 2, "sweep": "a", "dataset": "b", "trials": [{}]}']
)
def test_a_folder_that_is_no_sweep_is_refused(tmp_path: Path, content: str | None) -> None:
    folder = tmp_path / "sweeps" / "a"
    folder.mkdir(parents=True)
    if content is not None:
        (folder / "trials.json").write_text(content)
    with pytest.raises(ConfigError, match="is not the folder of a sweep"):
        load_sweep(folder)


def test_an_unknown_metric_of_an_old_evaluation_is_not_available(rows, val: Dataset, tmp_path: Path) -> None:
    sweep = finished_sweep(tmp_path, val, rows)
    write_json(sweep.results[0].evaluation.metrics, {"val/AP": 0.1}, indent=2)
    table = table_of(load_sweep(sweep.folder.root), None)
    assert cells(table, "baseline")["AP50"] == "n/a"


def test_a_baseline_is_scored_alike_and_on_the_same_images(rows, val: Dataset, tmp_path: Path) -> None:
    spec, noise = rows["bce"]
    for name, changed in (
        ("other nms", replace(spec, scoring=replace(spec.scoring, nms_iou=0.6))),
        ("other loss", replace(spec, loss=replace(spec.loss, focal_gamma=1.0))),
        ("other iou loss", replace(spec, loss=replace(spec.loss, iou_loss="l2"))),
    ):
        rows[name] = (changed, noise)
    sweep = finished_sweep(tmp_path, val, rows)
    lines = rows_of(sweep.results)
    with_baseline = [line.name for line in lines if baseline_of(line, lines)]
    assert with_baseline == ["bce", "other iou loss"]
    other = finished_sweep(tmp_path / "elsewhere", val.subset(np.arange(4)), {"baseline": rows["baseline"]})
    mixed = [*rows_of(other.results), *lines[1:2]]
    assert baseline_of(mixed[1], mixed) is None


def test_voc_shows_coco_ap_beside_and_the_interval_of_it(rows, val: Dataset, tmp_path: Path) -> None:
    rows = {row: (replace(spec, protocol="voc"), noise) for row, (spec, noise) in rows.items()}
    sweep = finished_sweep(tmp_path, val, rows)
    table = table_of(sweep, paper_of(images_of(val), protocol="voc07", number=5, columns=("AP", "AP50")))
    assert table.columns == ("AP", "AP50", "COCO AP", "COCO AP - baseline")
    found = sweep.results[1].metrics
    assert cells(table, "bce")["AP"] == f"{100 * found['val/VOC07_AP']:.1f}"
    assert cells(table, "bce")["COCO AP"] == f"{100 * found['val/AP']:.1f}"
    lines = {(r["line"], r["metric"]): r for r in csv.DictReader(io.StringIO(table.csv))}
    assert lines["bce", "AP"]["ours_minus_baseline"] == ""
    expected = 100 * (found["val/AP"] - sweep.results[0].metrics["val/AP"])
    assert float(lines["bce", "COCO AP"]["ours_minus_baseline"]) == pytest.approx(expected, abs=1e-3)


def test_what_was_trained_on_other_images_is_not_comparable(rows, val: Dataset, tmp_path: Path) -> None:
    paper = paper_of(images_of(val), trained_on=ImageSet("more images", len(val) + 1, len(val.categories), None))
    table = table_of(finished_sweep(tmp_path, val, rows), paper)
    assert [row.label for row in table.rows] == ["baseline", "bce"]
    assert any("trained on other images" in note for note in table.notes)


def test_the_server_is_not_compared_where_settings_differ(rows, val: Dataset, tmp_path: Path) -> None:
    spec, noise = rows["bce"]
    rows["bce"] = (replace(spec, paper=replace(spec.paper, changed=("optim.epochs",))), noise)
    paper = paper_of(ImageSet("COCO test-dev", 20_288, 80, None), shown_beside=images_of(val), number=1)
    table = table_of(finished_sweep(tmp_path, val, rows), paper, {"bce": {"AP": 35.9}})
    assert not any("server" in row.label for row in table.rows)


def test_runs_may_lie_in_several_storages(rows, val: Dataset, tmp_path: Path) -> None:
    sweep = finished_sweep(tmp_path / "a", val, rows)
    other = finished_sweep(tmp_path / "b", val, {"baseline": rows["baseline"]})
    mixed = replace(sweep, results=(*other.results, sweep.results[1]))
    write_trials(mixed)
    assert load_sweep(sweep.folder.root).results == mixed.results


def test_a_sweep_that_misses_results_says_which(rows, val: Dataset, tmp_path: Path) -> None:
    sweep = finished_sweep(tmp_path, val, rows)
    sweep.results[1].evaluation.metrics.unlink()
    assert "No results yet: bce." in table_of(load_sweep(sweep.folder.root), None).notes
