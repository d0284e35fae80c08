"""P10: the twelve IoU-aware rows of Tables 3 and 4 from one forward pass and its stored candidates.

The cost is counted in passes, a pass being what one row costs without the store: inference over the data set and its
evaluation. Twelve rows would be twelve passes.
"""

import tempfile
from pathlib import Path

import torch

from benchmarks import our_detector
from benchmarks.inference import Predictor, spread_scores
from benchmarks.intervals import Goal
from benchmarks.rows import Row
from benchmarks.settings import Settings
from benchmarks.timing import interleaved, seconds
from benchmarks.workloads import training_batch
from detector.checkpoint import load_checkpoint, save_checkpoint
from detector.config import BackboneConfig, DataConfig, ModelConfig
from detector.data.cache import load_dataset, save_dataset
from detector.data.layouts import open_dataset
from detector.data.shapes import generate_shapes
from detector.retinanet import RetinaNet
from runyard.layout import EvaluationFolder
from runyard.spec import ExperimentSpec
from runyard.sweeps.rescore import paper_rows, score_one, write_candidates
from runyard.training.evaluation import detect
from runyard.training.local import LocalContext
from runyard.training.scoring import score_detections, write_evaluation


def measure(settings: Settings) -> list[Row]:
    """P10."""
    images, side = (4, 64) if settings.quick else (16, 320)
    trunk = BackboneConfig(name="resnet18", weights="none") if settings.quick else BackboneConfig()
    with tempfile.TemporaryDirectory() as text:
        folder = Path(text)
        shapes = generate_shapes(folder / "shapes", train_images=1, val_images=images, image_size=side, seed=0)
        dataset = open_dataset(shapes, "val")
        save_dataset(dataset, folder / "dataset")
        spec = ExperimentSpec(model=ModelConfig(backbone=trunk), data=DataConfig(short_side_px=side, long_side_px=side))
        checkpoint = _checkpoint(spec, len(dataset.categories), side, folder / "checkpoint")
        rows = paper_rows(spec.scoring, oracle=False)
        context = LocalContext(use_gpu=False)
        numbers: dict[str, list[dict[str, float]]] = {"stored": [], "direct": []}

        def twelve_rows() -> None:
            store = folder / "store"
            write_candidates(spec, checkpoint, folder / "dataset", store, rows, context)
            numbers["stored"] = [score_one(store, folder / "dataset", row.scoring, folder / "row") for row in rows]
            for shard in store.iterdir():  # so that the next one is written again
                shard.unlink()
            store.rmdir()

        def one_pass(row: int = 6) -> dict[str, float]:
            model = RetinaNet(spec.model, len(dataset.categories))
            load_checkpoint(checkpoint, model)
            model = model.to(memory_format=torch.channels_last)
            split = load_dataset(folder / "dataset")
            table = detect(
                model,
                split,
                spec.data,
                rows[row].scoring,
                context,
                batch_size=spec.runtime.evaluation_batch_size,
            )
            assert table is not None
            metrics = score_detections(split, table, spec.protocol)
            write_evaluation(EvaluationFolder(folder / "direct"), split, table, metrics)
            return metrics

        twelve_rows()
        for row in (0, 6, 11):
            if one_pass(row) != numbers["stored"][row]:
                raise AssertionError(f"row {row} from the store differs from direct inference")
        ours, other = interleaved(seconds(twelve_rows), seconds(one_pass), repeats=settings.repeats(6), warm_up=0)
    size = f"{spec.model.backbone.name}, {images} images at {side} px, 12 rows"
    return [
        Row(
            key="P10",
            what="12 alpha rows from one forward pass",
            size=settings.describe(size, full=False),
            kind="ratio",
            unit="s",
            ours=ours,
            other=other,
            other_name="one inference and evaluation pass",
            goal=None if settings.quick else Goal(1.5, at_least=False),
            goal_text="at most 1.5 passes",
            checked="metrics of 'none', alpha 0.5 and alpha 0 equal to direct inference",
        )
    ]


def _checkpoint(spec: ExperimentSpec, classes: int, side: int, target: Path) -> Path:
    """Of an untrained model whose scores spread as a trained one's do."""
    model = our_detector.build(classes, torch.device("cpu"), backbone=spec.model.backbone)
    batch = training_batch(1, (side, side), classes)
    spread_scores(model.heads.cls_logits, lambda: Predictor(model, None)(batch))
    save_checkpoint(target, model, None, {})
    return target
