"""P10: the twelve IoU-aware rows of Tables 3 and 4 from one forward pass and its stored candidates.

The cost is counted in passes, a pass being what one row costs without the store: the network is made, run over the data
set, and its detections are evaluated. Twelve rows would be twelve passes. `candidate_store` has the second half, at
the size of COCO's val2017.
"""

import shutil
import tempfile
from pathlib import Path

import torch

from benchmarks import candidate_store, our_detector
from benchmarks.inference import ROWS, spread_scores
from benchmarks.photos import PHOTO_SIZE, make_photographs
from benchmarks.rows import AnyRow, Row
from benchmarks.settings import Settings
from benchmarks.timing import interleaved, seconds
from benchmarks.workloads import scoring_rows, training_batch
from detector.checkpoint import load_checkpoint, save_checkpoint
from detector.config import BackboneConfig, DataConfig, RetinaNetConfig
from detector.data.cache import load_dataset, save_dataset
from detector.evaluation.metrics import score_detections
from detector.files import write_json
from detector.models.build import build_detector
from detector.predictor import Predictor
from runyard.runs.folder import EvaluationFolder
from runyard.scoring.inference import detect, write_candidates
from runyard.scoring.rescore import score_one
from runyard.spec import ExperimentSpec
from runyard.training.local import LocalContext


def measure(settings: Settings) -> list[AnyRow]:
    """P10."""
    return [measure_passes(settings), *candidate_store.measure(settings)]


def measure_passes(settings: Settings) -> Row:
    """Twelve rows against one pass."""
    images, (short, long) = (4, (64, 96)) if settings.quick else (8, (400, 667))
    trunk = BackboneConfig(name="resnet18", weights="none") if settings.quick else BackboneConfig()
    with tempfile.TemporaryDirectory() as text:
        folder = Path(text)
        dataset = make_photographs(folder / "photographs", images, (160, 120) if settings.quick else PHOTO_SIZE)
        save_dataset(dataset, folder / "dataset")
        spec = ExperimentSpec(
            model=RetinaNetConfig(backbone=trunk), data=DataConfig(short_side_px=short, long_side_px=long)
        )
        checkpoint = _checkpoint(spec, len(dataset.categories), (short, long), folder / "checkpoint")
        rows = scoring_rows(spec.scoring)
        context = LocalContext(use_gpu=False)
        numbers: dict[str, list[dict[str, float]]] = {"stored": [], "direct": []}

        def predictor() -> Predictor:
            detector = build_detector(spec.model, spec.loss, len(dataset.categories))
            load_checkpoint(checkpoint, detector)
            return Predictor(detector, context.device)

        def twelve_rows() -> None:
            store = folder / "store"
            split = load_dataset(folder / "dataset")
            write_candidates(spec, predictor, checkpoint, split, store, rows, context)
            numbers["stored"] = [score_one(store, folder / "dataset", row.scoring, folder / "row") for row in rows]
            shutil.rmtree(store)  # so that the next one is written again

        def one_pass(row: int = 6) -> dict[str, float]:
            split, size = load_dataset(folder / "dataset"), spec.runtime.evaluation_batch_size
            table = detect(predictor(), split, spec.data, rows[row].scoring, context, batch_size=size)
            assert table is not None
            metrics = score_detections(split, table, spec.protocol)
            write_json(EvaluationFolder(folder / "direct").metrics, metrics, indent=2)
            return metrics

        twelve_rows()
        for row in (0, 6, 11):
            if one_pass(row) != numbers["stored"][row]:
                raise AssertionError(f"row {row} from the store differs from direct inference")
        ours, other = interleaved(seconds(twelve_rows), seconds(one_pass), repeats=settings.repeats(6), warm_up=0)
    size = f"{trunk.name}, {images} photographs, [{short}, {long}], {len(dataset.categories)} classes"
    return Row(
        key="P10",
        what="12 alpha rows from one forward pass",
        size=settings.describe(size, full=False),
        kind="ratio",
        unit="s",
        ours=ours,
        other=other,
        other_name="one inference and evaluation pass",
        goal=settings.goal(1.5, at_least=False),
        goal_text="at most 1.5 passes",
        checked="metrics of 'none', alpha 0.5 and alpha 0 equal to direct inference, to the last bit",
    )


def _checkpoint(spec: ExperimentSpec, classes: int, size: tuple[int, int], target: Path) -> Path:
    """Checkpoint of an untrained model whose scores spread as a trained one's do."""
    assert isinstance(spec.model, RetinaNetConfig)
    model = our_detector.build(classes, torch.device("cpu"), backbone=spec.model.backbone)
    batch = training_batch(1, size, classes)
    spread_scores(model.heads.cls_logits, lambda: Predictor(model, torch.device("cpu"))(batch, ROWS))
    save_checkpoint(target, model, None, {})
    return target
