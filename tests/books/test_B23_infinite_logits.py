"""A network whose logits are infinite or NaN leaves a store that can be read."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from detector.checkpoint import save_checkpoint
from detector.config import LossConfig
from detector.data.formats import open_dataset
from detector.models.detector import ScoringRow
from detector.models.retinanet import RetinaNet
from detector.predictor import Predictor
from detector.rescoring.store import CandidateStore
from runyard.context import LocalContext
from runyard.scoring.inference import detect, write_candidates
from runyard.scoring.rescore import score_store
from runyard.spec import ExperimentSpec


def test_B23_infinite_and_nan_logits_make_no_store_unreadable(
    tiny_spec: ExperimentSpec, tiny_data: Path, tmp_path: Path
) -> None:
    torch.manual_seed(0)
    detector = RetinaNet(tiny_spec.model, 6, LossConfig())
    iou_logits, cls_logits = detector.heads.iou_logits, detector.heads.cls_logits
    assert iou_logits is not None
    assert iou_logits.bias is not None
    assert cls_logits.bias is not None
    with torch.no_grad():  # by anchor of a location: class logits of inf and -inf; IoU logits of inf and NaN
        cls_logits.bias[0], cls_logits.bias[6 + 1] = torch.inf, -torch.inf
        cls_logits.bias[2 * 6 + 3] = 4.0
        iou_logits.bias[0], iou_logits.bias[2] = torch.inf, torch.nan
    dataset, context = open_dataset(tiny_data, "val"), LocalContext(use_gpu=False)
    checkpoint = save_checkpoint(tmp_path / "checkpoint", detector, None, {})
    predictor = Predictor(detector, context.device)
    scorings = [tiny_spec.scoring, replace(tiny_spec.scoring, confidence="class")]
    rows = [*map(ScoringRow, scorings), ScoringRow(tiny_spec.scoring, oracle=True)]
    for _ in range(2):  # the second time nothing is missing
        write_candidates(tiny_spec, lambda: predictor, checkpoint, dataset, tmp_path / "store", rows, context)
    assert [path.name for path in (tmp_path / "store").iterdir()] == ["part-00000"]
    store = CandidateStore.open(tmp_path / "store")
    for scoring in scorings:
        found = score_store(store, dataset, scoring)
        direct = detect(predictor, dataset, tiny_spec.data, scoring, context, batch_size=8)
        assert direct is not None
        assert (direct.class_scores == 1).any()
        for name in ("image_index", "labels", "boxes_xywh", "scores", "class_scores", "ious"):
            np.testing.assert_array_equal(getattr(found, name), getattr(direct, name), err_msg=name)
    assert np.isnan(score_store(store, dataset, scorings[1]).ious).any()
    score_store(store, dataset, tiny_spec.scoring, oracle=True)
