"""The training loop in one plain process: what it logs, keeps and returns."""

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from detector.checkpoint import read_metadata
from detector.data.cache import load_dataset
from detector.errors import CandidateStoreError
from detector.evaluation.metrics import score_detections
from detector.evaluation.results import read_coco_results
from detector.models.detector import ScoringRow
from detector.optim import learning_rate_at
from detector.predictor import Predictor
from detector.rescoring.store import CandidateStore
from runyard.failures import TrainingStoppedError
from runyard.runs.folder import RunFolder
from runyard.runs.prepare import prepare
from runyard.scoring.inference import store_identity
from runyard.scoring.rescore import score_store
from runyard.spec import ExperimentSpec
from runyard.tracking.journal import effective_metrics, read
from runyard.training.local import LocalContext, launch
from runyard.training.stopping import request_stop
from runyard.training.worker import train

CURVES = ("loss", "loss_cls", "loss_box", "loss_iou", "gradient_norm")


def curves(folder: RunFolder) -> dict[str, list[tuple[int, float]]]:
    logged = effective_metrics(folder.journal)
    return {name: logged[f"train/{name}"] for name in CURVES}


@pytest.fixture(scope="module")
def spec(make_tiny_spec: Callable[[Path], ExperimentSpec], tmp_path_factory: pytest.TempPathFactory) -> ExperimentSpec:
    tiny = make_tiny_spec(tmp_path_factory.mktemp("worker"))
    return replace(tiny, runtime=replace(tiny.runtime, evaluate_every_epochs=1))


@pytest.fixture(scope="module")
def trained(spec: ExperimentSpec) -> tuple[RunFolder, dict[str, float]]:
    prepared = prepare(spec)
    metrics = launch(prepared.spec, prepared.folder)
    assert metrics is not None
    return prepared.folder, metrics


def test_every_step_is_logged_once_with_its_learning_rate(
    spec: ExperimentSpec, trained: tuple[RunFolder, dict[str, float]]
) -> None:
    logged = effective_metrics(trained[0].journal)
    steps = list(range(1, 7))
    for name in CURVES:
        assert [step for step, _ in logged[f"train/{name}"]] == steps
    assert [rate for _, rate in logged["train/learning_rate"]] == [learning_rate_at(spec.optim, s, 3) for s in range(6)]
    assert logged["train/epoch"] == [(step, pytest.approx(step / 3)) for step in steps]
    for (_, loss), (_, a), (_, b), (_, c) in zip(*(logged[f"train/{n}"] for n in CURVES[:4]), strict=True):
        assert loss == pytest.approx(a + b + c)


def test_each_epoch_leaves_a_checkpoint_and_an_evaluation(trained: tuple[RunFolder, dict[str, float]]) -> None:
    folder, metrics = trained
    assert [path.name for path in folder.checkpoints()] == ["checkpoint-000000006", "checkpoint-000000003"]
    metadata = read_metadata(folder.checkpoints()[0])
    assert (metadata["step"], metadata["epoch"], metadata["workers"]) == (6, 2.0, 1)
    assert metadata["classes"] == ["ellipse", "rectangle", "triangle", "star", "ring", "cross"]
    assert [step for step, _ in effective_metrics(folder.journal)["val/AP"]] == [3, 6]
    (file,) = folder.root.glob("evaluation/*/metrics.json")
    assert json.loads(file.read_text()) == pytest.approx(metrics)
    assert metrics["val/images"] == 5


def test_a_trained_run_is_only_evaluated_again(
    spec: ExperimentSpec, trained: tuple[RunFolder, dict[str, float]]
) -> None:
    folder, metrics = trained
    before = curves(folder)
    again = launch(prepare(spec).spec, folder)
    assert again is not None
    assert {k: v for k, v in again.items() if k != "val/images_per_s"} == pytest.approx(
        {k: v for k, v in metrics.items() if k != "val/images_per_s"}, abs=0.0, nan_ok=True
    )
    assert curves(folder) == before


def test_the_numbers_are_those_of_the_store(spec: ExperimentSpec, trained: tuple[RunFolder, dict[str, float]]) -> None:
    folder, metrics = trained
    dataset = load_dataset(folder.val_data(spec.validation_hash))
    identity = store_identity(spec, folder.checkpoints()[0], dataset)
    store = CandidateStore.open(folder.candidates(spec.validation_hash), identity)
    assert store.rows == (ScoringRow(spec.scoring),)
    table = score_store(store, dataset, spec.scoring)
    timed = {"val/images_per_s": metrics["val/images_per_s"]}
    assert score_detections(dataset, table, spec.protocol) | timed == metrics
    exported = read_coco_results(folder.evaluation(spec.scoring_hash).detections, dataset)
    assert exported.scores.tolist() == table.scores.tolist()


def test_rows_are_kept_beside_the_specs_own_and_nothing_is_done_twice(
    spec: ExperimentSpec, trained: tuple[RunFolder, dict[str, float]], tmp_path: Path
) -> None:
    folder = RunFolder(tmp_path / "copy")
    shutil.copytree(trained[0].root, folder.root)
    context = LocalContext(use_gpu=False)
    candidates = folder.candidates(spec.validation_hash)

    def files() -> dict[Path, int]:
        return {
            path: path.stat().st_mtime_ns for path in folder.root.rglob("*") if path.suffix in (".parquet", ".json")
        }

    before, records = files(), len(list(read(folder.journal)))
    rows = [ScoringRow(replace(spec.scoring, alpha=alpha)) for alpha in (0.1, 0.9)]
    assert train(spec, folder, context, rows) == json.loads(folder.evaluation(spec.scoring_hash).metrics.read_text())
    (added,) = set(files()) - set(before)
    assert before.items() < files().items()
    assert added.is_relative_to(candidates)
    assert CandidateStore.open(candidates).missing([*rows, ScoringRow(spec.scoring)]) == ()
    kinds = [record.kind for record in read(folder.journal)][records:]
    assert "metrics" not in kinds

    after = files()
    train(spec, folder, context, rows)
    assert files() == after


def test_an_evaluation_that_was_lost_comes_from_the_store_without_the_network(
    spec: ExperimentSpec, trained: tuple[RunFolder, dict[str, float]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = RunFolder(tmp_path / "copy")
    shutil.copytree(trained[0].root, folder.root)
    folder.evaluation(spec.scoring_hash).metrics.unlink()

    def used(*arguments: object) -> None:
        raise AssertionError("the network was run")

    monkeypatch.setattr(Predictor, "__call__", used)
    metrics = train(spec, folder, LocalContext(use_gpu=False))
    assert metrics == {name: value for name, value in trained[1].items() if name != "val/images_per_s"}
    assert folder.evaluation(spec.scoring_hash).metrics.exists()


def test_a_part_that_turns_out_damaged_is_written_anew_by_the_next_attempt(
    spec: ExperimentSpec, trained: tuple[RunFolder, dict[str, float]], tmp_path: Path
) -> None:
    folder = RunFolder(tmp_path / "copy")
    shutil.copytree(trained[0].root, folder.root)
    folder.evaluation(spec.scoring_hash).metrics.unlink()
    (shard,) = folder.root.rglob("shard-*.parquet")
    # A page of the scores: the file opens, and its images are there.
    content = bytearray(shard.read_bytes())
    place = pq.ParquetFile(shard).metadata.row_group(0).column(pq.ParquetFile(shard).metadata.num_columns - 1)
    content[place.data_page_offset + 60] ^= 255
    shard.write_bytes(content)
    with pytest.raises(CandidateStoreError, match="cannot be read"):
        train(spec, folder, LocalContext(use_gpu=False))
    assert train(spec, folder, LocalContext(use_gpu=False)) == pytest.approx(
        {**trained[1], "val/images_per_s": pytest.approx(0, abs=1e9)}
    )


def test_N7_the_same_seed_gives_the_same_curve_whatever_loads_the_images(
    spec: ExperimentSpec, trained: tuple[RunFolder, dict[str, float]]
) -> None:
    other = replace(spec, runtime=replace(spec.runtime, name="loaded-by-two", loader_workers=2))
    prepared = prepare(other)
    metrics = launch(prepared.spec, prepared.folder)
    assert metrics is not None
    assert curves(prepared.folder) == curves(trained[0])
    assert metrics["val/AP"] == trained[1]["val/AP"]


def test_a_journal_of_one_attempt_has_one_start_and_no_restoration(
    trained: tuple[RunFolder, dict[str, float]], spec: ExperimentSpec
) -> None:
    records = list(read(trained[0].journal))
    starts = [r.payload for r in records if r.kind == "event" and r.payload["event"] == "start"]
    assert starts[0] == {"event": "start", "workers": 1, "start_step": 0, "total_steps": 6, "steps_per_epoch": 3}
    assert not [r for r in records if r.kind == "event" and r.payload["event"] in ("warning", "non_finite")]


def test_the_journal_names_the_machine_that_trained(
    trained: tuple[RunFolder, dict[str, float]], spec: ExperimentSpec
) -> None:
    events = [record.payload for record in read(trained[0].journal) if record.kind == "event"]
    # Before the start, and once: later calls of `launch` have nothing left to train.
    assert [event["event"] for event in events].count("machine") == 1
    assert events[0]["event"] == "machine"
    assert events[0]["device"] == "cpu"
    assert events[0]["cpus_usable"] >= 1
    tags = [record.payload for record in read(trained[0].journal) if record.kind == "tag"]
    assert tags == [{"key": "trained_on", "value": events[0]["message"].removeprefix("training on ")}]
    assert tags[0]["value"].startswith("CPUs: 1 worker(s), ")


def test_the_share_of_the_time_that_waits_for_data_is_logged(trained: tuple[RunFolder, dict[str, float]]) -> None:
    logged = effective_metrics(trained[0].journal)
    assert [step for step, _ in logged["train/data_wait"]] == [1, 2, 3, 4, 5, 6]
    assert all(0 < share < 1 for _, share in logged["train/data_wait"])


class _NoContext:
    rank, world_size = 1, 1


def test_ranks_other_than_the_first_do_not_open_the_journal(tiny_spec: ExperimentSpec) -> None:
    prepared = prepare(tiny_spec)
    prepared.folder.train_data.unlink()
    with pytest.raises(Exception, match="cannot be read"):
        train(prepared.spec, prepared.folder, _NoContext())  # type: ignore[arg-type]
    assert not prepared.folder.journal.exists()


def test_a_stop_request_before_the_start_ends_training_after_its_first_step_and_evaluation_at_once(
    spec: ExperimentSpec, trained: tuple[RunFolder, dict[str, float]]
) -> None:
    prepared = prepare(replace(spec, runtime=replace(spec.runtime, name="stopped")))
    request_stop(prepared.folder)
    # A first step is read at once, any other when the next one is on its way.
    with pytest.raises(TrainingStoppedError, match="after step 1, where its checkpoint is"):
        launch(prepared.spec, prepared.folder)
    assert prepared.folder.checkpoints() == [prepared.folder.checkpoint(1)]
    prepared.folder.stop_request.unlink()
    launch(prepared.spec, prepared.folder)
    assert curves(prepared.folder) == curves(trained[0])

    # Nothing is left to evaluate, until the results are lost.
    request_stop(prepared.folder)
    assert launch(prepared.spec, prepared.folder) is not None
    shutil.rmtree(prepared.folder.candidates(spec.validation_hash))
    with pytest.raises(TrainingStoppedError, match="while evaluating"):
        launch(prepared.spec, prepared.folder)
    assert not list(prepared.folder.candidates(spec.validation_hash).glob("part-*"))
