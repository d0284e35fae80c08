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

from detector.config import ScoringConfig
from detector.data.cache import load_dataset
from detector.errors import ConfigError, DatasetError
from detector.files import write_json
from runyard.driver.plan import make_plan, run_of
from runyard.driver.run import Finish, run_sweep
from runyard.failures import NonFiniteLossError, SweepError
from runyard.grid import Trial, expand
from runyard.locks import held
from runyard.reports.report import Report
from runyard.reports.rows import rows_of
from runyard.runs.data import OpenedData
from runyard.runs.folder import RunFolder, SweepFolder
from runyard.scoring.results import SweepResult, load_sweep
from runyard.spec import ExperimentSpec
from runyard.tracking.journal import Journal
from runyard.tracking.outcome import journaled
from tests.runyard.conftest import Work

Rows = Mapping[str, ExperimentSpec]


def sweep(rows: Rows, work: Work, *, finish: Finish | None = None, seeds: int = 1, name: str = "table") -> SweepResult:
    finish = finish or (lambda result: Report())
    return run_sweep(expand(rows, seeds=seeds), name, launcher="local", finish=finish, do=work)


def labels(result: SweepResult) -> list[str]:
    return [result.labels[trial.id] for trial in result.results]


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


def test_every_trial_is_a_child_with_the_same_metrics(rows: Rows, work: Work) -> None:
    result = sweep(rows, work)
    parent, children = tracked(rows)
    assert parent.info.status == "FINISHED"
    assert set(children) == set(rows)
    assert {run.info.status for run in children.values()} == {"FINISHED"}
    assert {name: run.data.metrics for name, run in children.items()} == {
        result.labels[r.id]: r.metrics for r in result.results
    }
    assert children["0.3"].data.params["scoring.alpha"] == "0.3"
    assert children["0.3"].data.tags["row"] == "0.3"
    assert [r.row for r in result.results] == list(rows)


def test_a_shared_training_is_done_once_and_scored_in_turn(rows: Rows, work: Work) -> None:
    sweep(rows, work)
    assert work.done == ["baseline", "none", "1.0", "0.7", "0.5", "0.3"]
    assert len(list(next(iter(rows.values())).runtime.storage.glob("tiny-*/spec.json"))) == 2


def test_again_there_is_nothing_to_do(rows: Rows, work: Work) -> None:
    first = sweep(rows, work)
    before = {name: run.info.run_id for name, run in tracked(rows)[1].items()}
    work.done.clear()
    again = sweep(rows, work)
    assert work.done == []
    assert [r.metrics for r in again.results] == [r.metrics for r in first.results]
    assert {name: run.info.run_id for name, run in tracked(rows)[1].items()} == before


def test_a_grown_grid_runs_its_new_cells_alone(rows: Rows, work: Work) -> None:
    sweep(rows, work)
    parent = tracked(rows)[0].info.run_id
    work.done.clear()
    iou = rows["none"]
    grown = expand({**rows, "l2": replace(iou, loss=replace(iou.loss, iou_loss="l2"))})
    seed = Trial(replace(iou, seed=1), "none")
    run_sweep([*grown, seed], "table", launcher="local", finish=lambda result: Report(), do=work)
    assert work.done == ["l2", "none, seed=1"]
    run, children = tracked(rows)
    assert run.info.run_id == parent
    assert set(children) == {*rows, "l2", "none, seed=1"}


def test_a_part_of_the_grid_leaves_the_rest_in_the_tables(rows: Rows, work: Work) -> None:
    everything = sweep(rows, work)
    work.done.clear()
    new = replace(rows["0.3"], scoring=replace(rows["0.3"].scoring, alpha=0.9))
    part = sweep({"0.9": new, "0.5": rows["0.5"]}, work)
    assert [label.split(" ")[0] for label in work.done] == ["outputs", "0.9"]
    known = [(result.id, result.metrics) for result in everything.results]
    assert [(result.id, result.metrics) for result in part.results[1:]] == known
    assert labels(part) == ["0.9", *rows]
    assert labels(load_sweep(part.folder.root)) == ["0.9", *rows]


def test_of_two_grids_with_one_trial_the_larger_names_it(rows: Rows, work: Work) -> None:
    one = {"iou": rows["none"]}
    sweep(one, work, seeds=2)
    assert labels(sweep(one, work)) == ["iou, seed=0", "iou, seed=1"]
    other = {"none": rows["baseline"]}
    sweep(other, work)
    names = labels(sweep(other, work, seeds=2))
    assert names == ["none, seed=0", "none, seed=1", "iou, seed=0", "iou, seed=1"]


def test_a_new_scoring_of_trained_weights_needs_their_candidates_only(rows: Rows, work: Work) -> None:
    sweep({"baseline": rows["baseline"], "none": rows["none"]}, work)
    work.done.clear()
    sweep(rows, work)
    assert [label.split(" ")[0] for label in work.done] == ["outputs", "1.0", "0.7", "0.5", "0.3"]
    assert {run.info.status for run in tracked(rows)[1].values()} == {"FINISHED"}


def test_F5_a_failed_trial_stops_no_other_and_is_tried_again(rows: Rows, work: Work) -> None:
    work.errors = {"baseline": NonFiniteLossError("at step 2"), "0.7": ConfigError("is damaged", file="store")}
    with pytest.raises(SweepError) as caught:
        sweep(rows, work)
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
    sweep(rows, work)
    assert [label.split(" ")[0] for label in work.done] == ["baseline", "outputs", "0.7"]
    parent, children = tracked(rows)
    assert {run.info.status for run in (parent, *children.values())} == {"FINISHED"}


def test_what_waits_for_a_failed_training_fails_with_it(rows: Rows, work: Work) -> None:
    work.errors = {"none": RuntimeError("boom")}
    with pytest.raises(SweepError) as caught:
        sweep(rows, work)
    assert set(caught.value.failures) == set(rows) - {"baseline"}
    assert work.done == ["baseline", "none"]
    children = tracked(rows)[1]
    assert set(children) == set(rows)
    assert children["0.3"].info.status == "FAILED"
    assert "boom" in children["0.3"].data.tags["status_message"]

    work.errors, work.done = {}, []
    sweep(rows, work)
    assert {run.info.status for run in tracked(rows)[1].values()} == {"FINISHED"}


def test_F3_an_interrupted_sweep_goes_on_in_the_same_runs(rows: Rows, work: Work) -> None:
    work.errors = {"0.7": KeyboardInterrupt()}
    with pytest.raises(KeyboardInterrupt):
        sweep(rows, work)
    parent, children = tracked(rows)
    assert parent.info.status == children["0.7"].info.status == "KILLED"
    assert set(children) == {"baseline", "none", "1.0", "0.7"}
    work.errors, work.done = {}, []
    sweep(rows, work)
    assert [label for label in work.done if not label.startswith("outputs")] == ["0.7", "0.5", "0.3"]
    again = tracked(rows)[1]
    assert {run.info.status for run in again.values()} == {"FINISHED"}
    assert {name: again[name].info.run_id for name in children} == {n: r.info.run_id for n, r in children.items()}


def test_a_run_whose_process_died_is_not_left_running(rows: Rows, work: Work) -> None:
    work.deaths = {"none": RuntimeError("the process died")}
    with pytest.raises(SweepError):
        sweep(rows, work)
    assert tracked(rows)[1]["none"].info.status == "FAILED"


def test_a_run_that_died_after_its_metrics_is_finished(rows: Rows, work: Work) -> None:
    sweep(rows, work)
    with Journal(next(iter(rows.values())).runtime.storage.glob("tiny-baseline-*").__next__() / "journal.jsonl") as j:
        j.append("status", {"status": "RUNNING", "message": ""})
    sweep(rows, work)
    assert tracked(rows)[1]["baseline"].info.status == "FINISHED"


def test_F9_a_second_driver_is_refused(rows: Rows, work: Work, spec: ExperimentSpec) -> None:
    storage = spec.runtime.storage
    assert storage is not None
    running = held(SweepFolder.in_storage(storage, "table-shapes").lock, "running this sweep")
    with running, pytest.raises(ConfigError, match="another process is running this sweep"):
        sweep(rows, work)
    assert work.done == []
    sweep(rows, work)


def test_N8_another_setting_of_a_row_stands_on_a_line_of_its_own(rows: Rows, work: Work) -> None:
    first = sweep(rows, work)
    work.done.clear()
    changed = {row: replace(spec, optim=replace(spec.optim, learning_rate=0.02)) for row, spec in rows.items()}
    both = sweep(changed, work)
    assert len(work.done) == len(rows)
    rates = ("0.01", "0.02")
    lines = {f"{row}, optim.learning_rate={rate}" for row in rows for rate in rates}
    assert {row.name for row in rows_of(both.results)} == set(labels(both)) == lines
    assert [len(row.results) for row in rows_of(both.results)] == [1] * 12
    kept = {result.id: result.metrics for result in both.results}
    assert {result.id: kept[result.id] for result in first.results} == {r.id: r.metrics for r in first.results}
    work.done.clear()
    assert labels(sweep(rows, work)) == labels(both)
    assert work.done == []


def test_D11_a_data_set_edited_between_two_starts_is_refused(rows: Rows, work: Work, tmp_path: Path) -> None:
    copy = shutil.copytree(rows["baseline"].source.data, tmp_path / "copy" / "shapes")
    edited = {row: replace(spec, source=replace(spec.source, data=copy)) for row, spec in rows.items()}
    work.errors = {"none": RuntimeError("boom")}
    with pytest.raises(SweepError):
        sweep(edited, work)
    work.done.clear()
    annotations = copy / "annotations" / "instances_train.json"
    before = annotations.read_text()
    content = json.loads(before)
    content["annotations"].pop()
    annotations.write_text(json.dumps(content))
    with pytest.raises(ConfigError, match="the data set has changed since this run started"):
        sweep(edited, work)
    runs = {path.name for path in tmp_path.glob("runs/tiny-*")}
    with pytest.raises(ConfigError, match="have different training images"):
        sweep({"baseline": edited["baseline"]}, work, seeds=2)
    assert work.done == []
    assert {path.name for path in tmp_path.glob("runs/tiny-*")} == runs

    annotations.write_text(before)
    work.errors = {}
    sweep(edited, work, seeds=2)


def test_a_run_that_another_command_has_finished_is_taken_over(rows: Rows, work: Work) -> None:
    (trial,) = make_plan(expand({"baseline": rows["baseline"]}), OpenedData()).trials
    folder = run_of(trial)
    with journaled(folder.journal, trial.spec):
        with Journal(folder.journal) as journal:
            journal.append("metrics", {"step": 1, "values": {"train/loss": 1.0}})
        finish_run(folder, trial.spec, {"val/AP": 0.7})
    sweep(rows, work)
    assert "baseline" not in work.done
    child = tracked(rows)[1]["baseline"]
    assert child.info.status == "FINISHED"
    assert child.data.metrics == {"train/loss": 1.0}


def finish_run(folder: RunFolder, spec: ExperimentSpec, metrics: dict[str, float]) -> None:
    write_json(folder.evaluation(spec.scoring_hash).metrics, metrics, indent=2)
    folder.checkpoint(2).mkdir(exist_ok=True)


def test_tables_hang_on_the_sweeps_run(rows: Rows, work: Work) -> None:
    def finish(result: SweepResult) -> Report:
        path = result.folder.results / "table.md"
        path.parent.mkdir(parents=True)
        path.write_text(f"{len(result.results)} rows of {result.dataset}")
        return Report(((path, "tables"),), "| AP |\n" * 2000, {"val/AP/alpha 0.5": 0.25}, results=6)

    result = sweep(rows, work, finish=finish)
    run, _ = tracked(rows)
    storage = next(iter(rows.values())).runtime.storage
    client = MlflowClient(f"sqlite:///{storage}/mlflow.db")
    assert [file.path for file in client.list_artifacts(run.info.run_id, "tables")] == ["tables/table.md"]
    assert (result.folder.results / "table.md").read_text() == "6 rows of shapes"
    assert run.data.metrics == {"val/AP/alpha 0.5": 0.25}
    description = run.data.tags["mlflow.note.content"]
    assert description.startswith("| AP |\n| AP |\n")
    assert description.endswith("| AP |\n\nThe rest is in results/report.md.")


def test_a_mistake_of_the_user_starts_nothing(rows: Rows, work: Work, tmp_path: Path) -> None:
    gone = {row: replace(s, source=replace(s.source, data=tmp_path / "gone")) for row, s in rows.items()}
    with pytest.raises(DatasetError):
        sweep(gone, work)
    assert work.done == []
    assert not (tmp_path / "runs" / "sweeps").exists()


def test_one_training_is_evaluated_on_several_selections_of_images(rows: Rows, work: Work) -> None:
    none = rows["none"]
    result = sweep({"none": none, "few": replace(none, data=replace(none.data, val_limit=2))}, work)
    assert [label.split(" ")[0] for label in work.done] == ["none", "outputs", "few"]
    assert len({trial.run for trial in result.results}) == 1
    assert [len(load_dataset(trial.val_data)) for trial in result.results] == [5, 2]
    assert len(rows_of(result.results)) == 2


def test_a_training_that_goes_on_ends_with_the_evaluation_that_it_was_begun_with(rows: Rows) -> None:
    none = rows["none"]
    make_plan(expand({"none": none}), OpenedData())
    few = replace(none, data=replace(none.data, val_limit=2))
    ((training,), _, (scoring,)) = make_plan(expand({"few": few}), OpenedData()).stages
    assert (training.kind, training.spec.scoring_hash) == ("train", none.scoring_hash)
    assert (scoring.kind, scoring.spec.scoring_hash) == ("score", few.scoring_hash)


def test_the_trials_are_listed_for_whoever_reads_the_sweep_later(rows: Rows, work: Work) -> None:
    result = sweep(rows, work)
    read = load_sweep(result.folder.root)
    assert [(trial.id, trial.row, trial.metrics) for trial in read.results] == [
        (trial.id, trial.row, trial.metrics) for trial in result.results
    ]
    assert all(trial.evaluation.metrics.is_file() for trial in read.results)


def test_more_scorings_than_a_part_of_a_store_holds_are_one_sweep(rows: Rows, work: Work) -> None:
    many = {str(n): replace(rows["none"], scoring=ScoringConfig(confidence="alpha", alpha=n / 100)) for n in range(70)}
    result = sweep(many, work)
    assert all(trial.metrics for trial in result.results)
    assert len(work.done) == 70


def test_the_same_weights_may_be_evaluated_on_several_selections(rows: Rows, work: Work) -> None:
    first = sweep({"none": rows["none"]}, work)
    few = replace(rows["none"], data=replace(rows["none"].data, val_limit=2))
    work.done.clear()
    second = sweep({"none": few}, work, name="few")
    assert work.done[-1] == "none"
    assert (len(load_dataset(first.results[0].val_data)), len(load_dataset(second.results[0].val_data))) == (5, 2)
    work.done.clear()
    sweep({"none": rows["none"]}, work)
    assert work.done == []
