"""Rows read from the store are the detections of the device that ran the network, to the last bit."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from detector.checkpoint import save_checkpoint
from detector.config import LossConfig
from detector.data.batching import Batch
from detector.data.formats import open_dataset
from detector.evaluation.results import DetectionTable
from detector.models.detector import Detections, ScoringRow
from detector.models.retinanet import RetinaNet
from detector.predictor import Predictor
from detector.rescoring.store import CandidateStore
from runyard.context import LocalContext
from runyard.scoring.inference import detect, write_candidates
from runyard.scoring.rescore import score_store
from runyard.spec import ExperimentSpec

ALPHAS = (1.0, 0.7, 0.5, 0.3, 0.0)


class OfAnotherDevice(RetinaNet):
    """RetinaNet on a device whose powers round differently: a third of the scores are one float32 lower."""

    def detect(self, batch: Batch, rows: Sequence[ScoringRow]) -> list[list[Detections]]:
        return [[self._rounded(image) for image in row] for row in super().detect(batch, rows)]

    def _rounded(self, found: Detections) -> Detections:
        lower = torch.nextafter(found.scores, torch.zeros_like(found.scores))
        return replace(found, scores=torch.where(found.anchor_index % 3 == 0, lower, found.scores))


def stored_and_direct(
    detector: RetinaNet, spec: ExperimentSpec, data: Path, folder: Path, context: LocalContext
) -> list[tuple[DetectionTable, DetectionTable]]:
    dataset = open_dataset(data, "val")
    for layer in (detector.heads.cls_logits, detector.heads.iou_logits):
        assert layer is not None
        torch.nn.init.normal_(layer.weight, std=0.3)
    checkpoint = save_checkpoint(folder / "checkpoint", detector, None, {})
    predictor = Predictor(detector, context.device)
    rows = [ScoringRow(replace(spec.scoring, alpha=alpha)) for alpha in ALPHAS]
    write_candidates(spec, lambda: predictor, checkpoint, dataset, folder / "store", rows, context)
    store = CandidateStore.open(folder / "store")
    pairs = []
    for row in rows:
        # The batches of the store: a convolution of another batch size may round differently on a GPU.
        size = spec.runtime.evaluation_batch_size
        direct = detect(predictor, dataset, spec.data, row.scoring, context, batch_size=size)
        assert direct is not None
        assert len(direct) > 100
        pairs.append((score_store(store, dataset, row.scoring), direct))
    return pairs


def assert_equal(stored: DetectionTable, direct: DetectionTable) -> None:
    for name in ("image_index", "labels", "boxes_xywh", "scores", "class_scores", "ious"):
        np.testing.assert_array_equal(getattr(stored, name), getattr(direct, name), err_msg=name)


def test_B21_scores_are_those_of_the_device_not_computed_again(
    tiny_spec: ExperimentSpec, tiny_data: Path, tmp_path: Path
) -> None:
    torch.manual_seed(0)
    detector = OfAnotherDevice(tiny_spec.model, 6, LossConfig())
    for stored, direct in stored_and_direct(detector, tiny_spec, tiny_data, tmp_path, LocalContext(use_gpu=False)):
        assert_equal(stored, direct)


@pytest.mark.gpu
def test_B21_rows_of_a_gpu_are_direct_inference_on_it(
    tiny_spec: ExperimentSpec, tiny_data: Path, tmp_path: Path
) -> None:
    torch.manual_seed(0)
    detector = RetinaNet(tiny_spec.model, 6, LossConfig())
    for stored, direct in stored_and_direct(detector, tiny_spec, tiny_data, tmp_path, LocalContext(use_gpu=True)):
        assert_equal(stored, direct)
