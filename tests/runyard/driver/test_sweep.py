"""A sweep's bookkeeping, with work that takes no time: what is done, what is left, and what MLflow is told."""

import json
import shutil
from collections import Counter
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import pytest
from mlflow.entities import Run
from mlflow.tracking import MlflowClient
from runyard.driver.errors import SweepError
from runyard.driver.sweep import Finish, run_sweep
from runyard.runs.attempt import journaled, only_process

from detector.config import ScoringConfig
from detector.data.cache import load_dataset
from detector.errors import ConfigError, DatasetError
from detector.files import write_json
from runyard.driver.plan import OpenedData, make_plan
from runyard.failures import NonFiniteLossError
from runyard.grid import expand
from runyard.reports.report import Report
from runyard.runs.folder import RunFolder, SweepFolder
from runyard.scoring.results import SweepResult, load_sweep
from runyard.spec import ExperimentSpec
from runyard.tracking.journal import Journal

Rows = Mapping[str, ExperimentSpec]


def sweep(rows: Rows, *, finish: Finish | None = None, seeds: int = 1) -> SweepResult:
    return run_sweep(expand(rows, seeds=seeds), "table", launcher="local", finish=finish or (lambda result: Report()))


def tracked(rows: Rows) -> tuple[Run, dict[str, Run]]:
    """The sweep's run and its children by name, no two of which have one name."""
    storage = next(iter(rows.values())).runtime.storage
    client = MlflowClient(f"sqlite:///{storage}/mlflow.db")
    experiment = client.get_experiment_by_name("runyard")
    runs = client.search_runs([experiment.experiment_id])
    (parent,) = [run for run in runs if run.data.tags["kind"] == "sweep"]
    children = [run for run in runs if run.info.run_id != parent.info.run_id]
    assert {run.data.tags["mlflow.parentRunId"] for run in children} == {parent.info.run_id}
    assert max(Counter(run.info.run_name for run in children).values()) == 1
    return parent, {run.info.run_name: run for run in children}


def test_every_trial_is_a_child_with_the_same_metrics(rows: Rows, work: object) -> None:
    result = sweep(rows)
    parent, children = tracked(rows)
    assert parent.info.status == "FINISHED"
    assert set(children) == set(rows)
    assert {run.info.status for run in children.values()} == {"FINISHED"}
    assert {name: run.data.metrics for name, run in children.items()} == {r.label: r.metrics for r in result.results}
    assert children["0.3"].data.params["scoring.alpha"] == "0.3"
    assert children["0.3"].data.tags["row"] == "0.3"
    assert [r.row for r in result.results] == list(rows)


def test_a_shared_training_is_done_once_and_scored_in_turn(rows: Rows, work) -> None:
    sweep(rows)
    assert work.done == ["baseline", "none", "1.0", "0.7", "0.5", "0.3"]
    assert len(list(next(iter(rows.values())).runtime.storage.glob("tiny-*/spec.json"))) == 2


def test_again_there_is_nothing_to_do(rows: Rows, work) -> None:
    first = sweep(rows)
    before = {name: run.info.run_id for name, run in tracked(rows)[1].items()}
    work.done.clear()
    again = sweep(rows)
    assert work.done == []
    assert [r.metrics for r in again.results] == [r.metrics for r in first.results]
    assert {name: run.info.run_id for name, run in tracked(rows)[1].items()} == before


def test_a_grown_grid_runs_its_new_cells_alone(rows: Rows, work) -> None:
    sweep(rows)
    parent = tracked(rows)[0].info.run_id
    work.done.clear()
    iou = rows["none"]
    grown = {**rows, "l2": replace(iou, loss=replace(iou.loss, iou_loss="l2")), "seed": replace(iou, seed=1)}
    sweep(grown)
    assert work.done == ["l2", "seed"]
    run, children = tracked(grown)
    assert run.info.run_id == parent
    assert set(children) == set(grown)


def test_a_part_of_the_grid_leaves_the_rest_in_the_tables(rows: Rows, work) -> None:
    everything = sweep(rows)
    work.done.clear()
    part = sweep({"0.9": replace(rows["0.3"], scoring=replace(rows["0.3"].scoring, alpha=0.9)), "0.5": rows["0.5"]})
    assert [label.split(" ")[0] for label in work.done] == ["candidates", "0.9"]
    known = [(result.label, result.metrics) for result in everything.results]
    assert [(result.label, result.metrics) for result in part.results[1:]] == known
    assert part.results[0].label == "0.9"
    assert [result.label for result in load_sweep(part.folder.root).results] == ["0.9", *rows]


def test_of_two_grids_with_one_trial_the_larger_names_it(rows: Rows, work) -> None:
    one = {"iou": rows["none"]}
    sweep(one, seeds=2)
    assert [result.label for result in sweep(one).results] == ["iou, seed=0", "iou, seed=1"]
    other = {"none": rows["baseline"]}
    sweep(other)
    names = [result.label for result in sweep(other, seeds=2).results]
    assert names == ["none, seed=0", "none, seed=1", "iou, seed=0", "iou, seed=1"]


def test_a_new_scoring_of_trained_weights_needs_their_candidates_only(rows: Rows, work) -> None:
    sweep({"baseline": rows["baseline"], "none": rows["none"]})
    work.done.clear()
    sweep(rows)
    assert [label.split(" ")[0] for label in work.done] == ["candidates", "1.0", "0.7", "0.5", "0.3"]
    assert {run.info.status for run in tracked(rows)[1].values()} == {"FINISHED"}


def test_F5_a_failed_trial_stops_no_other_and_is_tried_again(rows: Rows, work) -> None:
    work.errors = {"baseline": NonFiniteLossError("at step 2"), "0.7": ConfigError("is damaged", file="store")}
    with pytest.raises(SweepError) as caught:
        sweep(rows)
    assert list(caught.value.failures) == ["baseline", "0.7"]
    assert "2 of 6 trials failed" in str(caught.value)
    assert "baseline: NonFiniteLossError: at step 2" in str(caught.value)
    assert "0.7: store: is damaged" in str(caught.value)
    (traceback,) = caught.value.__notes__
    assert traceback.startswith("baseline:\nTraceback")
    parent, children = tracked(rows)
    assert parent.info.status == "FAILED"
    status = {name: run.info.status for name, run in children.items()}
    assert status == {name: "FAILED" if name in ("baseline", "0.7") else "FINISHED" for name in rows}

    work.errors, work.done = {}, []
    sweep(rows)
    assert [label.split(" ")[0] for label in work.done] == ["baseline", "candidates", "0.7"]
    parent, children = tracked(rows)
    assert {run.info.status for run in (parent, *children.values())} == {"FINISHED"}


def test_what_waits_for_a_failed_training_fails_with_it(rows: Rows, work) -> None:
    work.errors = {"none": RuntimeError("boom")}
    with pytest.raises(SweepError) as caught:
        sweep(rows)
    assert set(caught.value.failures) == set(rows) - {"baseline"}
    assert work.done == ["baseline", "none"]
    children = tracked(rows)[1]
    assert set(children) == set(rows)
    assert children["0.3"].info.status == "FAILED"
    assert "boom" in children["0.3"].data.tags["status_message"]

    work.errors, work.done = {}, []
    sweep(rows)
    assert {run.info.status for run in tracked(rows)[1].values()} == {"FINISHED"}


def test_F3_an_interrupted_sweep_goes_on_in_the_same_runs(rows: Rows, work) -> None:
    work.errors = {"0.7": KeyboardInterrupt()}
    with pytest.raises(KeyboardInterrupt):
        sweep(rows)
    parent, children = tracked(rows)
    assert parent.info.status == children["0.7"].info.status == "KILLED"
    assert set(children) == {"baseline", "none", "1.0", "0.7"}
    work.errors, work.done = {}, []
    sweep(rows)
    assert [label for label in work.done if not label.startswith("candidates")] == ["0.7", "0.5", "0.3"]
    again = tracked(rows)[1]
    assert {run.info.status for run in again.values()} == {"FINISHED"}
    assert {name: again[name].info.run_id for name in children} == {n: r.info.run_id for n, r in children.items()}


def test_a_run_whose_process_died_is_not_left_running(rows: Rows, work) -> None:
    work.deaths = {"none": RuntimeError("the process died")}
    with pytest.raises(SweepError):
        sweep(rows)
    assert tracked(rows)[1]["none"].info.status == "FAILED"


def test_a_run_that_died_after_its_metrics_is_finished(rows: Rows, work) -> None:
    sweep(rows)
    with Journal(next(iter(rows.values())).runtime.storage.glob("tiny-baseline-*").__next__() / "journal.jsonl") as j:
        j.append("status", {"status": "RUNNING", "message": ""})
    sweep(rows)
    assert tracked(rows)[1]["baseline"].info.status == "FINISHED"


def test_F9_a_second_driver_is_refused(rows: Rows, work, spec: ExperimentSpec) -> None:
    storage = spec.runtime.storage
    assert storage is not None
    running = only_process(SweepFolder.of(storage, "table-shapes").root, "sweep")
    with running, pytest.raises(ConfigError, match="another process is running this sweep"):
        sweep(rows)
    assert work.done == []
    sweep(rows)


def test_N8_a_label_that_would_mean_another_training_is_refused_field_by_field(rows: Rows, work) -> None:
    sweep(rows)
    work.done.clear()
    changed = {row: replace(spec, optim=replace(spec.optim, learning_rate=0.02)) for row, spec in rows.items()}
    with pytest.raises(
        ConfigError, match=r"holds another sweep: optim\.learning_rate: 0\.01 -> 0\.02 \(baseline, none"
    ):
        sweep(changed)
    assert work.done == []
    sweep(rows)
    assert work.done == []


def test_D11_a_data_set_edited_between_two_starts_is_refused(rows: Rows, work, tmp_path: Path) -> None:
    copy = shutil.copytree(rows["baseline"].source.data, tmp_path / "copy" / "shapes")
    edited = {row: replace(spec, source=replace(spec.source, data=copy)) for row, spec in rows.items()}
    sweep(edited)
    work.done.clear()
    annotations = copy / "annotations" / "instances_train.json"
    content = json.loads(annotations.read_text())
    content["annotations"].pop()
    annotations.write_text(json.dumps(content))
    with pytest.raises(ConfigError, match="the data set has changed since this run started"):
        sweep(edited)
    assert work.done == []


def test_a_run_that_another_command_has_finished_is_taken_over(rows: Rows, work) -> None:
    (cell,) = make_plan(expand({"baseline": rows["baseline"]}), OpenedData()).cells
    with journaled(cell.run.folder.journal, cell.trial.spec):
        with Journal(cell.run.folder.journal) as journal:
            journal.append("metrics", {"step": 1, "values": {"train/loss": 1.0}})
        finish_run(cell.run.folder, cell.trial.spec, {"val/AP": 0.7})
    sweep(rows)
    assert "baseline" not in work.done
    child = tracked(rows)[1]["baseline"]
    assert child.info.status == "FINISHED"
    assert child.data.metrics == {"train/loss": 1.0}


def test_two_scorings_in_one_journal_are_told_apart(rows: Rows, work) -> None:
    cells = make_plan(expand({row: rows[row] for row in ("1.0", "0.3")}), OpenedData()).cells
    for cell, value in zip(cells, (0.1, 0.2), strict=True):
        with journaled(cell.run.folder.journal, cell.trial.spec):
            finish_run(cell.run.folder, cell.trial.spec, {"val/AP": value})
            with Journal(cell.run.folder.journal) as journal:
                journal.append("metrics", {"step": 2, "values": {"val/AP": value}})
    sweep(rows)
    children = tracked(rows)[1]
    assert children["1.0"].data.metrics["val/AP"] == 0.1
    assert children["0.3"].data.metrics["val/AP"] == 0.2


def finish_run(folder: RunFolder, spec: ExperimentSpec, metrics: dict[str, float]) -> None:
    write_json(folder.evaluation(spec.scoring_hash).metrics, metrics, indent=2)
    folder.checkpoint(2).mkdir(exist_ok=True)


def test_tables_hang_on_the_sweeps_run(rows: Rows, work) -> None:
    def finish(result: SweepResult) -> Report:
        path = result.folder.results / "table.md"
        path.parent.mkdir(parents=True)
        path.write_text(f"{len(result.results)} rows of {result.dataset}")
        return Report(((path, "tables"),), "| AP |\n" * 2000)

    result = sweep(rows, finish=finish)
    run, _ = tracked(rows)
    storage = next(iter(rows.values())).runtime.storage
    client = MlflowClient(f"sqlite:///{storage}/mlflow.db")
    assert [file.path for file in client.list_artifacts(run.info.run_id, "tables")] == ["tables/table.md"]
    assert (result.folder.results / "table.md").read_text() == "6 rows of shapes"
    description = run.data.tags["mlflow.note.content"]
    assert description.startswith("| AP |\n| AP |\n")
    assert description.endswith("| AP |\n\nThe rest is in results/report.md.")


def test_a_mistake_of_the_user_starts_nothing(rows: Rows, work, tmp_path: Path) -> None:
    gone = {row: replace(s, source=replace(s.source, data=tmp_path / "gone")) for row, s in rows.items()}
    with pytest.raises(DatasetError):
        sweep(gone)
    assert work.done == []
    assert not (tmp_path / "runs" / "sweeps").exists()


def test_one_training_is_not_evaluated_on_two_selections_of_images(rows: Rows, work) -> None:
    none = rows["none"]
    with pytest.raises(ConfigError, match="two selections of images"):
        sweep({"none": none, "few": replace(none, data=replace(none.data, val_limit=2))})


def test_the_trials_are_listed_for_whoever_reads_the_sweep_later(rows: Rows, work) -> None:
    result = sweep(rows)
    read = load_sweep(result.folder.root)
    assert [(trial.id, trial.row, trial.metrics) for trial in read.results] == [
        (trial.id, trial.row, trial.metrics) for trial in result.results
    ]
    assert all(trial.evaluation.metrics.is_file() for trial in read.results)


def test_scorings_of_one_training_that_two_sweeps_began_with_are_no_second_training(rows: Rows, work) -> None:
    sweep({"none": rows["none"]})
    sweep({"none": rows["none"], "0.5": rows["0.5"]})
    (folder,) = {cell.run.folder for cell in make_plan(expand({"none": rows["none"]}), OpenedData()).cells}
    for evaluation in folder.evaluations():  # as if each had been recorded by itself
        with journaled(evaluation.as_run.journal, rows["none"]):
            pass
    work.done.clear()
    sweep({"0.3": rows["0.3"]})
    assert [label.split(" ")[0] for label in work.done] == ["candidates", "0.3"]


def test_more_scorings_than_a_store_can_hold_are_refused_before_anything_is_trained(rows: Rows, work) -> None:
    many = {str(n): replace(rows["none"], scoring=ScoringConfig(confidence="alpha", alpha=n / 100)) for n in range(70)}
    with pytest.raises(ConfigError, match="more than a candidate store can hold"):
        sweep(many)
    assert work.done == []


def test_the_same_weights_may_be_evaluated_on_several_selections(rows: Rows, work) -> None:
    first = sweep({"none": rows["none"]})
    few = replace(rows["none"], data=replace(rows["none"].data, val_limit=2))
    work.done.clear()
    second = run_sweep(expand({"none": few}), "few", launcher="local", finish=lambda result: Report())
    assert work.done[-1] == "none"
    assert (len(load_dataset(first.results[0].val_data)), len(load_dataset(second.results[0].val_data))) == (5, 2)
    work.done.clear()
    sweep({"none": rows["none"]})
    assert work.done == []
