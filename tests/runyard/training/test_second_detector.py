"""torchvision's detector in the training loop: trained, resumed exactly, evaluated and re-scored like any other."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from detector.config import ScoringConfig, TorchvisionRetinaNetConfig
from detector.data.cache import load_dataset, save_dataset
from detector.data.formats import open_dataset
from detector.errors import ConfigError
from detector.models.detector import ScoringRow
from detector.rescoring.store import CandidateStore
from runyard.context import LocalContext
from runyard.failures import TrainingStoppedError
from runyard.runs.folder import RunFolder
from runyard.scoring.inference import keep_candidates
from runyard.scoring.rescore import score_store
from runyard.spec import ExperimentSpec
from runyard.tracking.journal import effective_metrics
from runyard.training.stopping import request_stop
from runyard.training.worker import train

CURVES = ("loss", "loss_cls", "loss_box", "gradient_norm")
SCORING = ScoringConfig(confidence="class", score_threshold=0.005)


@pytest.fixture(scope="module", autouse=True)
def _one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def spec(tiny_spec: ExperimentSpec) -> ExperimentSpec:
    return replace(
        tiny_spec,
        model=TorchvisionRetinaNetConfig(weights="none"),
        scoring=SCORING,
        optim=replace(tiny_spec.optim, epochs=1, milestones=()),
    )


def folder_with_data(root: Path, spec: ExperimentSpec, tiny_data: Path) -> RunFolder:
    folder = RunFolder(root)
    for split, path in (("train", folder.train_data), ("val", folder.val_data(spec.validation_hash))):
        path.parent.mkdir(parents=True, exist_ok=True)
        dataset = open_dataset(tiny_data, split)
        save_dataset(dataset.subset(range(12)) if split == "train" else dataset, path)
    return folder


def test_it_is_trained_resumed_evaluated_and_rescored(spec: ExperimentSpec, tiny_data: Path, tmp_path: Path) -> None:
    context = LocalContext(use_gpu=False)
    whole = folder_with_data(tmp_path / "whole", spec, tiny_data)
    metrics = train(spec, whole, context)
    assert metrics is not None
    assert metrics["val/images"] == 5
    logged = effective_metrics(whole.journal)
    assert [step for step, _ in logged["train/loss"]] == [1, 2, 3]
    assert "train/loss_iou" not in logged
    for (_, loss), (_, cls), (_, box) in zip(*(logged[f"train/{name}"] for name in CURVES[:3]), strict=True):
        assert loss == pytest.approx(cls + box)

    stopped = folder_with_data(tmp_path / "stopped", spec, tiny_data)
    request_stop(stopped)
    with pytest.raises(TrainingStoppedError, match="after step 1"):
        train(spec, stopped, context)
    stopped.stop_request.unlink()
    resumed = train(spec, stopped, context)
    for name in CURVES:
        assert effective_metrics(stopped.journal)[f"train/{name}"] == logged[f"train/{name}"]
    assert resumed is not None
    assert {**resumed, "val/images_per_s": 0} == {**metrics, "val/images_per_s": 0}

    strict = ScoringRow(replace(SCORING, nms_iou=0.1))
    keep_candidates(spec, whole, [strict], context)
    dataset = load_dataset(whole.val_data(spec.validation_hash))
    store = CandidateStore.open(whole.candidates(spec.validation_hash))
    assert store.rows == (ScoringRow(SCORING), strict)
    found, fewer = score_store(store, dataset, SCORING), score_store(store, dataset, strict.scoring)
    assert len(found) == metrics["val/detections"]
    assert len(found) > len(fewer) > 0
    with pytest.raises(ConfigError, match="no oracle row"):
        keep_candidates(spec, whole, [ScoringRow(ScoringConfig(top_k=7), oracle=True)], context)
    assert store.rows == CandidateStore.open(whole.candidates(spec.validation_hash)).rows
