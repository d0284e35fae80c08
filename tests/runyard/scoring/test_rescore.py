"""Rows from the store against direct inference with a detector that was trained a little."""

import functools
import json
import pickle
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
import torch

from detector.checkpoint import load_checkpoint, save_checkpoint
from detector.config import BackboneConfig, DataConfig, OptimConfig, RetinaNetConfig, ScoringConfig
from detector.data.cache import load_dataset, save_dataset
from detector.data.formats import open_dataset
from detector.data.loaders import make_eval_loader, make_train_loader
from detector.data.synthetic import generate_shapes
from detector.data.transforms import to_original_frame
from detector.engine import TrainingEngine
from detector.errors import CandidateStoreError, CheckpointError, ConfigError, DatasetError
from detector.evaluation.coco_ap import coco_average_precision
from detector.evaluation.metrics import score_detections
from detector.evaluation.results import DetectionTable, read_coco_results
from detector.models.detector import ScoringRow
from detector.models.retinanet import RetinaNet
from detector.optim import build_optimizer
from detector.predictor import Predictor
from detector.rescoring.columns import ImageRows
from detector.rescoring.oracle import with_truth
from detector.rescoring.store import CandidateStore, PartWriter, next_part, publish_part
from runyard.runs.folder import EvaluationFolder, RunFolder
from runyard.scoring import inference
from runyard.scoring.inference import detect, keep_candidates, store_identity, to_table, write_candidates
from runyard.scoring.metrics import write_evaluation
from runyard.scoring.rescore import score_one, score_store
from runyard.spec import ExperimentSpec
from runyard.training.local import LocalContext

COLUMNS = ("image_index", "labels", "boxes_xywh", "scores", "class_scores", "ious")
CPU = LocalContext(use_gpu=False)


@dataclass(frozen=True)
class Trained:
    spec: ExperimentSpec
    checkpoint: Path
    dataset_path: Path
    store: Path
    rows: tuple[ScoringRow, ...]

    def dataset(self):
        return load_dataset(self.dataset_path)

    def model(self):
        model = RetinaNet(self.spec.model, len(self.dataset().categories))
        load_checkpoint(self.checkpoint, model)
        return model

    def predictor(self):
        return Predictor(self.model(), CPU.device)

    @functools.cache  # noqa: B019
    def direct(self, scoring):
        return detect(self.predictor(), self.dataset(), self.spec.data, scoring, CPU, batch_size=4)

    def write(self, store, rows, checkpoint=None):
        checkpoint = checkpoint or self.checkpoint
        return write_candidates(self.spec, self.predictor, checkpoint, self.dataset(), store, rows, CPU)

    def batches(self, rank=0, world_size=1):
        loader = make_eval_loader(self.dataset(), self.spec.data, batch_size=4, rank=rank, world_size=world_size)
        return [with_truth(batch, self.dataset()) for batch in loader]

    def scored(self, scoring, **kinds):
        return score_store(CandidateStore.open(self.store), self.dataset(), scoring, **kinds)


@pytest.fixture(scope="module", autouse=True)
def _one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """Ten steps on generated shapes: confidences are spread, many boxes overlap."""
    folder = tmp_path_factory.mktemp("trained")
    shapes = generate_shapes(folder / "shapes", train_images=24, val_images=9, image_size=96, seed=1)
    spec = ExperimentSpec(
        model=RetinaNetConfig(
            backbone=BackboneConfig(name="resnet18", weights="none"),
            fpn_channels=16,
            tower_depth=1,
            tower_norm="group",
        ),
        optim=OptimConfig(optimizer="adamw", learning_rate=2e-3, batch_size=8, reference_batch_size=8, warmup_steps=1),
        data=DataConfig(short_side_px=96, long_side_px=128),
        scoring=ScoringConfig(top_k=300),
    )
    spec = replace(spec, runtime=replace(spec.runtime, evaluation_batch_size=4))
    save_dataset(open_dataset(shapes, "val"), folder / "val.npz")
    dataset = open_dataset(shapes, "train")
    torch.manual_seed(0)
    model = RetinaNet(spec.model, len(dataset.categories)).to(memory_format=torch.channels_last).train()
    engine = TrainingEngine(model, build_optimizer(model, spec.optim), spec.optim)
    loader = make_train_loader(dataset, spec.data, seed=0, start_epoch=0, start_step=0, epochs=4, batch_size=8)
    for batch in loader:
        engine.step([batch], 2e-3)
    checkpoint = save_checkpoint(folder / "checkpoint", model, None, {})
    rows = tuple(
        ScoringRow(replace(spec.scoring, confidence=confidence, alpha=alpha))
        for confidence, alpha in [("none", 0.5), *(("alpha", tenths / 10) for tenths in range(10, -1, -1))]
    )
    rows = (*rows, ScoringRow(spec.scoring, oracle=True))
    made = Trained(spec, checkpoint, folder / "val.npz", folder / "store", rows)
    made.write(folder / "store", rows)
    return made


def assert_same(first, second):
    for name in COLUMNS:
        np.testing.assert_array_equal(getattr(first, name), getattr(second, name), err_msg=name)


# --- exact ------------------------------------------------------------------------------------------------------------


def test_every_row_equals_direct_inference_to_the_bit(trained):
    for row in trained.rows[:-1]:
        table = trained.direct(row.scoring)
        assert len(table) > 100
        assert_same(trained.scored(row.scoring), table)


def test_the_oracle_equals_direct_inference_with_the_true_iou(trained):
    dataset = trained.dataset()
    tables = []
    for batch in trained.batches():
        (per_image,) = trained.predictor()(batch, [ScoringRow(trained.spec.scoring, oracle=True)])
        for image, size, found in zip(batch.image_index.tolist(), batch.sizes.tolist(), per_image, strict=True):
            height, width = dataset.image_sizes[image].tolist()
            boxes = to_original_frame(found.boxes, tuple(size), (height, width))
            tables.append(to_table(np.full(len(boxes), image), boxes, found))
    oracle = trained.scored(trained.spec.scoring, oracle=True)
    assert_same(oracle, DetectionTable.concatenate(tables))
    ap = [coco_average_precision(dataset, t).summary["AP"] for t in (trained.scored(trained.spec.scoring), oracle)]
    assert ap[0] < ap[1]


def test_every_row_is_what_pycocotools_says_of_direct_inference(trained, tmp_path):
    dataset = trained.dataset()
    for number, row in enumerate(trained.rows[:12]):
        metrics = score_one(trained.store, trained.dataset_path, row.scoring, tmp_path / str(number))
        direct = coco_average_precision(dataset, trained.direct(row.scoring), backend="pycocotools").summary
        for name, value in direct.items():
            assert metrics.get(f"val/{name}", None) == (None if value is None else pytest.approx(value, abs=1e-6))
        assert json.loads((tmp_path / str(number) / "metrics.json").read_text()) == metrics
        write_evaluation(EvaluationFolder(tmp_path / str(number)), dataset, trained.scored(row.scoring), metrics)
        assert_same(read_coco_results(tmp_path / str(number) / "detections.json", dataset), trained.scored(row.scoring))


def test_the_metrics_are_those_of_an_evaluation(trained, tmp_path):
    for protocol in ("coco", "voc"):
        row = trained.rows[4]
        metrics = score_one(trained.store, trained.dataset_path, row.scoring, tmp_path / protocol, protocol=protocol)
        assert metrics == score_detections(trained.dataset(), trained.direct(row.scoring), protocol)
        assert ("val/VOC07_AP" in metrics) == (protocol == "voc")
        assert [path.name for path in (tmp_path / protocol).iterdir()] == ["metrics.json"]


def test_none_and_alpha_one_half_differ_through_the_threshold_alone(trained):
    threshold = float(np.median(trained.scored(trained.rows[0].scoring).scores))
    rows = [replace(trained.rows[number].scoring, score_threshold=threshold) for number in (0, 6)]
    assert (rows[0].confidence, rows[1].confidence, rows[1].alpha) == ("none", "alpha", 0.5)
    none, half = map(trained.scored, rows)
    assert 0 < len(none) < len(half)
    for image in range(len(trained.dataset())):
        first, second = (table.select(table.image_index == image) for table in (none, half))
        count = len(first)
        np.testing.assert_array_equal(first.boxes_xywh, second.boxes_xywh[:count])
        np.testing.assert_array_equal(first.labels, second.labels[:count])
        np.testing.assert_allclose(first.scores, second.scores[:count] ** 2, rtol=1e-5)
        assert (second.scores[count:] ** 2 <= threshold * (1 + 1e-6)).all()


def test_stricter_scorings_are_exact_too(trained):
    for changes in ({"score_threshold": 0.3}, {"max_detections": 7}, {"score_threshold": 0.2, "max_detections": 30}):
        scoring = replace(trained.rows[8].scoring, **changes)
        assert_same(trained.scored(scoring), trained.direct(scoring))
    assert_same(trained.scored(ScoringConfig(confidence="class", top_k=300)), trained.scored(trained.rows[1].scoring))


def test_shards_of_several_workers_give_the_same(trained, tmp_path):
    dataset = trained.dataset()
    (header,) = (part.header for part in CandidateStore.open(trained.store).parts)
    part = next_part(tmp_path / "store")
    for rank in range(3):
        with PartWriter(part, header, rank=rank, world_size=3) as writer:
            for batch in trained.batches(rank, 3):
                found = trained.predictor()(batch, trained.rows)
                for place, (image, size) in enumerate(
                    zip(batch.image_index.tolist(), batch.sizes.tolist(), strict=True)
                ):
                    writer.add(ImageRows(image, tuple(size), [of_row[place] for of_row in found]))
    publish_part(part, 3)
    for row in trained.rows:
        table = score_store(CandidateStore.open(tmp_path / "store"), dataset, row.scoring, oracle=row.oracle)
        assert_same(table, trained.scored(row.scoring, oracle=row.oracle))


def test_the_baseline_has_a_row_and_an_oracle(trained, tmp_path):
    spec = replace(trained.spec, model=replace(trained.spec.model, iou_head=False))
    model = RetinaNet(spec.model, len(trained.dataset().categories))
    torch.nn.init.normal_(model.heads.cls_logits.weight, std=0.5)
    checkpoint = save_checkpoint(tmp_path / "checkpoint", model, None, {})
    rows = (ScoringRow(spec.scoring), ScoringRow(spec.scoring, oracle=True))
    predictor = Predictor(model, CPU.device)
    write_candidates(spec, lambda: predictor, checkpoint, trained.dataset(), tmp_path / "store", rows, CPU)
    store = CandidateStore.open(tmp_path / "store")
    direct = detect(predictor, trained.dataset(), spec.data, spec.scoring, CPU, batch_size=4)
    assert_same(score_store(store, trained.dataset(), spec.scoring), direct)
    assert np.isnan(direct.ious).all()
    assert len(score_store(store, trained.dataset(), spec.scoring, oracle=True)) > 0


# --- refused, and nothing lost ----------------------------------------------------------------------------------------


def test_what_is_not_declared_is_refused(trained, tmp_path):
    for scoring in (ScoringConfig(alpha=0.45, top_k=300), ScoringConfig(alpha=0.5, top_k=1000)):
        with pytest.raises(ConfigError, match="not complete for alpha"):
            score_one(trained.store, trained.dataset_path, scoring, tmp_path / "row")
    with pytest.raises(ConfigError, match=r"scoring\.alpha: expected a number from 0 to 1"):
        score_one(trained.store, trained.dataset_path, ScoringConfig(alpha=1.1), tmp_path / "row")
    assert not (tmp_path / "row").exists()


def test_a_store_of_something_else_is_refused(trained, tmp_path):
    identity = store_identity(trained.spec, trained.checkpoint, trained.dataset())
    scoring = trained.spec.scoring
    score_one(trained.store, trained.dataset_path, scoring, tmp_path / "right", expect=identity)
    for change, error in (
        ({"dataset": "0" * 64}, DatasetError),
        ({"checkpoint": "0" * 64}, CheckpointError),
        ({"long_side_px": 500}, ConfigError),
    ):
        with pytest.raises(error, match="Delete it"):
            score_one(
                trained.store, trained.dataset_path, scoring, tmp_path / "row", expect=replace(identity, **change)
            )
    small = tmp_path / "small.npz"
    save_dataset(trained.dataset().subset(range(5)), small)
    with pytest.raises(DatasetError, match="5 images and 6 classes"):
        score_one(trained.store, small, scoring, tmp_path / "row")
    assert not (tmp_path / "row").exists()


def test_a_whole_store_is_left_alone_and_a_damaged_part_replaced(trained, tmp_path):
    folder = tmp_path / "store"

    def files():
        return {path: path.stat().st_ino for path in folder.rglob("*.parquet")}

    assert trained.write(folder, trained.rows[:3])
    first = files()
    assert not trained.write(folder, trained.rows[1:3])
    assert files() == first
    assert trained.write(folder, trained.rows[2:4])
    assert first.items() < files().items()
    assert CandidateStore.open(folder).rows == trained.rows[:4]
    (shard,) = first
    shard.write_bytes(shard.read_bytes()[:5000])
    with pytest.raises(CandidateStoreError, match="cut off"):
        score_one(folder, trained.dataset_path, trained.rows[0].scoring, tmp_path / "row")
    trained.write(folder, trained.rows[:4])
    assert not shard.exists()
    for row in trained.rows[:4]:
        store = CandidateStore.open(folder)
        assert_same(score_store(store, trained.dataset(), row.scoring), trained.scored(row.scoring))


def test_a_part_of_other_weights_is_replaced(trained, tmp_path):
    model = trained.model()
    torch.nn.init.constant_(model.heads.cls_logits.bias, 0.1)
    other = save_checkpoint(tmp_path / "other", model, None, {})
    trained.write(tmp_path / "store", trained.rows[:1], other)
    (before,) = (tmp_path / "store").iterdir()
    trained.write(tmp_path / "store", trained.rows[:1])
    (after,) = (tmp_path / "store").iterdir()
    assert after.name != before.name
    store = CandidateStore.open(tmp_path / "store")
    assert_same(score_store(store, trained.dataset(), trained.rows[0].scoring), trained.direct(trained.rows[0].scoring))


def test_more_rows_than_a_part_holds_are_several_parts(trained, tmp_path, monkeypatch):
    monkeypatch.setattr(inference, "MAX_ROWS", 2)
    trained.write(tmp_path / "store", trained.rows[:5])
    assert [len(part.header.rows) for part in CandidateStore.open(tmp_path / "store").parts] == [2, 2, 1]


def test_a_damaged_checkpoint_leaves_the_store(trained, tmp_path):
    folder = RunFolder(tmp_path)
    checkpoint = save_checkpoint(folder.checkpoint(1), trained.model(), None, {})
    save_dataset(trained.dataset(), folder.val_data(trained.spec.validation_hash))
    tensors = checkpoint / "tensors.safetensors"
    tensors.write_bytes(tensors.read_bytes()[:-1])
    with pytest.raises(CheckpointError):
        keep_candidates(trained.spec, folder, trained.rows, CPU)
    assert not folder.candidates(trained.spec.validation_hash).exists()


def test_candidates_of_a_finished_run_are_those_of_its_newest_checkpoint(trained, tmp_path):
    folder = RunFolder(tmp_path)
    save_checkpoint(folder.checkpoint(2), trained.model(), None, {})
    save_dataset(trained.dataset(), folder.val_data(trained.spec.validation_hash))
    keep_candidates(trained.spec, folder, trained.rows[:2], CPU)
    store = CandidateStore.open(folder.candidates(trained.spec.validation_hash))
    for row in trained.rows[:2]:
        assert_same(score_store(store, trained.dataset(), row.scoring), trained.scored(row.scoring))


# --- beyond the table -------------------------------------------------------------------------------------------------


def test_functions_travel_to_other_processes(trained, tmp_path):
    call = functools.partial(score_one, trained.store, trained.dataset_path, trained.spec.scoring, tmp_path / "row")
    assert pickle.loads(pickle.dumps(call))() == call()
