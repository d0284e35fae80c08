"""The made-up inputs are what they are said to be, and the plain definitions catch a wrong fast path."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from benchmarks import candidate_store, correctness, matching_and_losses, post_processing
from benchmarks.average_precision import check, made_up_results
from benchmarks.correctness import run_checks
from benchmarks.inference import ROWS, spread_scores
from benchmarks.our_detector import build
from benchmarks.plain import plain_losses, plain_postprocess
from benchmarks.settings import Settings
from benchmarks.workloads import (
    FULL_SIZE,
    HeadCase,
    feature_shapes,
    padded,
    scoring_rows,
    trained_outputs,
    training_batch,
)
from detector.config import BackboneConfig, LossConfig, ScoringConfig
from detector.models.detector import Detections, ScoringRow
from detector.models.heads import HeadOutputs
from detector.predictor import Predictor
from detector.rescoring.store import CandidateStore
from runyard.scoring.rescore import score_store

SMALL = (96, 128)
SETTINGS = Settings(torch.device("cpu"), quick=True)


@pytest.fixture(scope="module")
def case() -> HeadCase:
    return trained_outputs(SMALL)


def test_the_full_size_has_as_many_anchors_as_the_goal_says() -> None:
    assert padded(FULL_SIZE) == (800, 1344)
    assert 9 * sum(height * width for height, width in feature_shapes(FULL_SIZE)) == 201_600


def test_outputs_are_like_a_trained_detectors(case: HeadCase) -> None:
    p = torch.cat(case.outputs.cls_logits, dim=1).sigmoid()
    assert 1e-4 < float((p > 0.05).float().mean()) < 0.02
    assert float(p.max()) > 0.5
    assert len(post_processing.detect(case, ScoringConfig(alpha=0.1)).scores) == 100


def test_batches_hold_the_numbers_of_boxes_that_are_asked_for() -> None:
    batch = training_batch(4, SMALL, most_boxes=10)
    assert batch.valid.sum(dim=1).tolist() == [1, 4, 7, 10]
    boxes = batch.boxes[batch.valid]
    assert (boxes[:, 2:] > boxes[:, :2]).all()
    assert (boxes[:, 2] <= SMALL[1]).all()
    assert batch.images.shape == (4, 3, *padded(SMALL))


@pytest.mark.parametrize("alpha", [0.5, 0.1])
def test_post_processing_is_held_against_its_definition(
    case: HeadCase, alpha: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    scoring = ScoringConfig(alpha=alpha)
    assert "detections as by definition" in post_processing.check(case, case, scoring)
    right = post_processing.detect(case, scoring)
    wrong = replace(right, anchor_index=right.anchor_index + 1)
    monkeypatch.setattr(post_processing, "detect", lambda *_: wrong)
    with pytest.raises(AssertionError, match="pairs that the definition gives"):
        post_processing.check(case, case, scoring)


def test_the_plain_definition_of_detections_by_hand() -> None:
    """Two boxes of one class that overlap by 9 / 11 and one apart: the worse of the two is dropped."""
    anchors = torch.tensor([[0.0, 0, 10, 10], [1.0, 0, 11, 10], [50.0, 0, 60, 10]])
    logits = torch.tensor([0.8, 0.9, 0.1]).logit()[None, :, None]
    quality = torch.tensor([0.5, 0.5, 0.5]).logit()[None]
    outputs = HeadOutputs((logits,), (torch.zeros(1, 3, 4),), (quality,))
    one = HeadCase(outputs, (anchors,), torch.ones(1, 3, dtype=torch.bool), torch.tensor([[100, 100]]))
    found = plain_postprocess(one, ScoringConfig(alpha=0.5))
    assert found == {(1, 0): pytest.approx(0.45**0.5), (2, 0): pytest.approx(0.05**0.5)}


def test_losses_are_held_against_their_definition(monkeypatch: pytest.MonkeyPatch) -> None:
    assert "of the definition" in matching_and_losses.check(SETTINGS)
    monkeypatch.setattr(matching_and_losses, "plain_losses", lambda *_: (1.0, 1.0, 1.0, 1.0))
    with pytest.raises(AssertionError, match="differ from their definition"):
        matching_and_losses.check(SETTINGS)


def test_the_plain_definition_of_losses_by_hand() -> None:
    """One anchor, one box 1.5 times as wide: deltas 0 against dx = 0.25 and dw = log 1.5, IoU 2 / 3, p = q = 1 / 2."""
    outputs = HeadOutputs((torch.zeros(1, 1, 1),), (torch.zeros(1, 1, 4),), (torch.zeros(1, 1),))
    anchors = (torch.tensor([[0.0, 0.0, 32.0, 32.0]]),)
    one = HeadCase(outputs, anchors, torch.ones(1, 1, dtype=torch.bool), torch.tensor([[32, 64]]))
    batch = training_batch(1, (32, 64), most_boxes=1)
    batch = replace(batch, boxes=torch.tensor([[[0.0, 0.0, 48.0, 32.0]]]), labels=torch.zeros(1, 1, dtype=torch.int64))
    log2 = 0.6931471805599453
    cls, box, iou, normaliser = plain_losses(one, batch, LossConfig())
    assert cls == pytest.approx(0.25 * 0.25 * log2)
    assert box == pytest.approx(0.25 - 0.055 + 0.4054651081081644 - 0.055)
    assert iou == pytest.approx(log2)
    assert normaliser == 1


def test_average_precision_is_held_against_pycocotools() -> None:
    dataset, table = made_up_results(12, 60)
    assert len(table) == 720
    assert "equal to the last bit" in check(dataset, table)


def test_scores_are_spread_as_a_trained_detectors() -> None:
    model = build(5, torch.device("cpu"), backbone=BackboneConfig(name="resnet18", weights="none"))
    batch = training_batch(1, (64, 96), 5)
    predictor = Predictor(model, torch.device("cpu"))
    before = predictor(batch, ROWS)[0][0].scores
    spread_scores(model.heads.cls_logits, lambda: predictor(batch, ROWS)[0])
    seen: list[torch.Tensor] = []
    model.heads.cls_logits.register_forward_hook(lambda module, inputs, output: seen.append(output.flatten()))
    found: Detections = predictor(batch, ROWS)[0][0]
    logits = torch.cat(seen)
    assert logits.std().item() == pytest.approx(1.3, rel=0.05)
    assert found.scores.std() > 10 * before.std()


def test_a_check_that_fails_is_reported_and_the_others_are_made(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("check_postprocessing", "check_network", "check_bf16_ap"):
        monkeypatch.setattr(correctness, name, lambda settings: "as it should be")

    def wrong(settings: Settings) -> str:
        raise AssertionError("off by one")

    monkeypatch.setattr(correctness, "check_bf16_loss", wrong)
    checks = {check.name: check for check in run_checks(SETTINGS)}
    assert len(checks) == 6
    assert [check.found for check in checks.values() if not check.passed] == ["off by one"]


def test_a_generated_store_is_scored_like_any_other(tmp_path: Path) -> None:
    """Every image has its pairs under every row, and no two images are alike."""
    rows = (*scoring_rows(ScoringConfig()), ScoringRow(ScoringConfig(), oracle=True))
    dataset = candidate_store.write_store(tmp_path, 5, 2, SMALL, rows)
    store = CandidateStore.open(tmp_path / "store")
    (group,) = store.groups(rows[0].scoring)
    first, third = (group.detections.boxes[start : start + 20] for start in (0, int(group.counts[:2].sum())))
    assert group.counts[0] == group.counts[2]
    assert not torch.equal(first, third)
    for row in rows:
        table = score_store(store, dataset, row.scoring, oracle=row.oracle)
        assert np.bincount(table.image_index).max() <= 100
        assert set(table.image_index) == set(range(5))
