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
from detector.data.loaders import make_train_loader
from detector.data.synthetic import generate_shapes
from detector.data.transforms import to_original_frame
from detector.engine import TrainingEngine
from detector.errors import CandidateStoreError, CheckpointError, ConfigError, DatasetError
from detector.evaluation.coco_ap import coco_average_precision
from detector.evaluation.metrics import score_detections
from detector.evaluation.results import DetectionTable, read_coco_results
from detector.models.retinanet import RetinaNet
from detector.optim import build_optimizer
from detector.rescoring.kept_pairs import ScoringRow, survivors
from detector.rescoring.oracle import oracle_detections, truth_boxes
from detector.rescoring.store import CandidateStore, CandidateWriter, publish_store
from runyard.scoring.inference import detect, forward_passes, to_table
from runyard.scoring.rescore import (
    score_one,
    score_store,
    store_identity,
    write_candidates,
)
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
        return model.to(memory_format=torch.channels_last)

    @functools.cache  # noqa: B019
    def direct(self, scoring):
        return detect(self.model(), self.dataset(), self.spec.data, scoring, CPU, batch_size=4)

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
    engine = TrainingEngine(model, build_optimizer(model, spec.optim), spec.loss, spec.optim)
    loader = make_train_loader(dataset, spec.data, seed=0, start_epoch=0, start_step=0, epochs=4, batch_size=8)
    for batch in loader:
        engine.step([batch], 2e-3)
    checkpoint = save_checkpoint(folder / "checkpoint", model, None, {})
    rows = tuple(
        ScoringRow(replace(spec.scoring, confidence=confidence, alpha=alpha))
        for confidence, alpha in [("none", 0.5), *(("alpha", tenths / 10) for tenths in range(10, -1, -1))]
    )
    rows = (*rows, ScoringRow(spec.scoring, oracle=True))
    write_candidates(spec, checkpoint, folder / "val.npz", folder / "store", rows, CPU)
    return Trained(spec, checkpoint, folder / "val.npz", folder / "store", rows)


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
    for batch in forward_passes(trained.model(), dataset, trained.spec.data, CPU, batch_size=4):
        truth = [truth_boxes(dataset, *image) for image in zip(batch.images, batch.sizes, strict=True)]
        inputs = (batch.outputs, batch.anchors, batch.anchor_valid, batch.image_sizes)
        per_image = oracle_detections(*inputs, trained.spec.scoring, truth)
        for image, size, found in zip(batch.images, batch.sizes, per_image, strict=True):
            height, width = dataset.image_sizes[image].tolist()
            boxes = to_original_frame(found.boxes, size, (height, width))
            index = np.full(len(boxes), image)
            tables.append(to_table(index, boxes, found.labels, found.scores, found.class_scores, found.ious))
    oracle = trained.scored(trained.spec.scoring, oracle=True)
    assert_same(oracle, DetectionTable.concatenate(tables))
    ap = [coco_average_precision(dataset, t).summary["AP"] for t in (trained.scored(trained.spec.scoring), oracle)]
    assert ap[0] < ap[1]


def test_every_row_is_what_pycocotools_says_of_direct_inference(trained, tmp_path):
    dataset = trained.dataset()
    for number, row in enumerate(trained.rows[:12]):
        metrics = score_one(trained.store, trained.dataset_path, row.scoring, tmp_path / str(number), detections=True)
        direct = coco_average_precision(dataset, trained.direct(row.scoring), backend="pycocotools").summary
        for name, value in direct.items():
            assert metrics.get(f"val/{name}", None) == (None if value is None else pytest.approx(value, abs=1e-6))
        assert json.loads((tmp_path / str(number) / "metrics.json").read_text()) == metrics
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
    header = CandidateStore.open(trained.store).header
    for rank in range(3):
        context = LocalContext(use_gpu=False)
        context.rank, context.world_size = rank, 3
        with CandidateWriter(tmp_path / "store", header, rank=rank, world_size=3) as writer:
            for batch in forward_passes(trained.model(), dataset, trained.spec.data, context, batch_size=4):
                truth = [truth_boxes(dataset, *image) for image in zip(batch.images, batch.sizes, strict=True)]
                inputs = (batch.outputs, batch.anchors, batch.anchor_valid, batch.image_sizes)
                found = survivors(*inputs, trained.rows, truth)
                for image, size, of_image in zip(batch.images, batch.sizes, found, strict=True):
                    writer.add(image, size, of_image)
    publish_store(tmp_path / "store", 3)
    for row in trained.rows:
        table = score_store(CandidateStore.open(tmp_path / "store"), dataset, row.scoring, oracle=row.oracle)
        assert_same(table, trained.scored(row.scoring, oracle=row.oracle))


def test_the_baseline_has_a_row_and_an_oracle(trained, tmp_path):
    spec = replace(trained.spec, model=replace(trained.spec.model, iou_head=False))
    model = RetinaNet(spec.model, len(trained.dataset().categories))
    torch.nn.init.normal_(model.heads.cls_logits.weight, std=0.5)
    checkpoint = save_checkpoint(tmp_path / "checkpoint", model, None, {})
    rows = (ScoringRow(spec.scoring), ScoringRow(spec.scoring, oracle=True))
    write_candidates(spec, checkpoint, trained.dataset_path, tmp_path / "store", rows, CPU)
    store = CandidateStore.open(tmp_path / "store")
    model = model.to(memory_format=torch.channels_last)
    direct = detect(model, trained.dataset(), spec.data, spec.scoring, CPU, batch_size=4)
    assert_same(score_store(store, trained.dataset(), spec.scoring), direct)
    assert np.isnan(direct.ious).all()
    assert len(score_store(store, trained.dataset(), spec.scoring, oracle=True)) > 0


# --- refused, and nothing lost ----------------------------------------------------------------------------------------


def test_what_is_not_declared_is_refused(trained, tmp_path):
    for scoring in (ScoringConfig(alpha=0.45, top_k=300), ScoringConfig(alpha=0.5, top_k=1000)):
        with pytest.raises(ConfigError, match="not complete for alpha"):
            score_one(trained.store, trained.dataset_path, scoring, tmp_path / "row")
    with pytest.raises(ConfigError, match=r"scoring\.alpha: must be a number from 0 to 1"):
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
        with pytest.raises(error, match="Delete the store"):
            score_one(
                trained.store, trained.dataset_path, scoring, tmp_path / "row", expect=replace(identity, **change)
            )
    small = tmp_path / "small.npz"
    save_dataset(trained.dataset().subset(range(5)), small)
    with pytest.raises(DatasetError, match="5 images and 6 classes"):
        score_one(trained.store, small, scoring, tmp_path / "row")
    assert not (tmp_path / "row").exists()


def test_a_whole_store_is_left_alone_and_any_other_replaced(trained, tmp_path):
    def write(rows):
        write_candidates(trained.spec, trained.checkpoint, trained.dataset_path, tmp_path / "store", rows, CPU)
        (shard,) = (tmp_path / "store").iterdir()
        return shard, shard.stat().st_ino

    shard, first = write(trained.rows[:3])
    assert write(trained.rows[1:3])[1] == first
    _, grown = write(trained.rows[2:4])
    assert grown != first
    assert CandidateStore.open(tmp_path / "store").header.rows == trained.rows[:4]
    shard.write_bytes(shard.read_bytes()[:5000])
    with pytest.raises(CandidateStoreError, match="cut off"):
        score_one(tmp_path / "store", trained.dataset_path, trained.rows[0].scoring, tmp_path / "row")
    write(trained.rows[:4])
    store = CandidateStore.open(tmp_path / "store")
    assert_same(score_store(store, trained.dataset(), trained.rows[3].scoring), trained.scored(trained.rows[3].scoring))


def test_a_damaged_checkpoint_leaves_the_store(trained, tmp_path):
    checkpoint = save_checkpoint(tmp_path / "checkpoint", trained.model(), None, {})
    tensors = checkpoint / "tensors.safetensors"
    tensors.write_bytes(tensors.read_bytes()[:-1])
    store = tmp_path / "store"
    with pytest.raises(CheckpointError):
        write_candidates(trained.spec, checkpoint, trained.dataset_path, store, trained.rows, CPU)
    assert not store.exists()


# --- beyond the table -------------------------------------------------------------------------------------------------


def test_functions_travel_to_other_processes(trained, tmp_path):
    call = functools.partial(score_one, trained.store, trained.dataset_path, trained.spec.scoring, tmp_path / "row")
    assert pickle.loads(pickle.dumps(call))() == call()
