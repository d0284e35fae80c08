"""The small computations whose results are recorded in this folder; every import of the product is in this module.

B images, T IoU thresholds, R resamples. Each function returns plain JSON values; `make.py` records them, and
`test_golden.py` compares them with the recorded ones.
"""

import hashlib
import io
import math
import warnings
from collections.abc import Iterator
from dataclasses import astuple, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console
from torch import Tensor

from detector.config import (
    AnchorConfig,
    BackboneConfig,
    DataConfig,
    LossConfig,
    OptimConfig,
    RetinaNetConfig,
    ScoringConfig,
)
from detector.data.batching import Batch
from detector.data.formats import open_dataset
from detector.data.loaders import make_train_loader
from detector.data.samples import Category, Dataset
from detector.data.synthetic import generate_shapes
from detector.engine import TrainingEngine
from detector.evaluation.bootstrap import Interval, image_draws, mean_difference, resample
from detector.evaluation.coco_ap import coco_average_precision
from detector.evaluation.metrics import score_detections
from detector.evaluation.results import DetectionTable
from detector.evaluation.voc_ap import voc_average_precision
from detector.models.backbones import build_backbone
from detector.models.build import build_detector
from detector.models.detector import Detections, ScoringRow
from detector.models.retinanet import RetinaNet
from detector.optim import build_optimizer, learning_rate_at
from detector.predictor import Predictor
from runyard.context import LocalContext
from runyard.grid import Trial
from runyard.paper import ImageSet, PaperRow, PaperTable
from runyard.reports.comparison import make_table
from runyard.reports.render import Spread, TextRow, comparison_table, latex, markdown
from runyard.reports.resampling import ResampledAP
from runyard.reports.rows import Images, rows_of
from runyard.runs.folder import RunFolder, SweepFolder
from runyard.scoring.inference import detect
from runyard.scoring.results import SweepResult, TrialResult
from runyard.spec import ExperimentSpec, PaperReference

Json = dict[str, Any]

# Losses

STEPS = 20
TERMS = ("loss_cls", "loss_box", "loss_iou", "normaliser", "images", "gradient_norm")
BACKBONE = BackboneConfig(name="resnet18", weights="none")
MODEL = RetinaNetConfig(backbone=BACKBONE, fpn_channels=8, tower_depth=1, tower_norm="group")
PRETRAINED = replace(MODEL, backbone=BackboneConfig(name="resnet18", weights="imagenet"), tower_norm="none")
DATA = DataConfig(short_side_px=64, long_side_px=64, min_image_side_px=8)
OPTIM = OptimConfig(batch_size=4, epochs=7, milestones=(3, 5), warmup_steps=5, clip_norm=5.0)
"""12 images are 3 steps an epoch; warm-up, both milestones and clipping take part in 20 steps."""


@dataclass(frozen=True)
class Training:
    """The settings of one recorded training."""

    model: RetinaNetConfig = MODEL
    loss: LossConfig = field(default_factory=LossConfig)
    optim: OptimConfig = OPTIM
    accumulation: int = 1


TRAININGS = {
    "baseline": Training(replace(MODEL, iou_head=False)),
    "iou_bce": Training(),
    "iou_l2": Training(loss=LossConfig(iou_loss="l2")),
    "iou_l1": Training(loss=LossConfig(iou_loss="l1")),
    "iou_bce_target_gradient": Training(loss=LossConfig(iou_target_gradient=True)),
    "accumulation_2": Training(accumulation=2),
    "adamw": Training(optim=replace(OPTIM, optimizer="adamw", learning_rate=1e-3, weight_decay=0.05)),
    "frozen_statistics": Training(PRETRAINED),
}


def shapes(folder: Path) -> Path:
    """Generate the data set of 12 training images of 64 px; return its folder."""
    return generate_shapes(folder, train_images=12, val_images=6, image_size=64, seed=0)


def images_sha256(data: Path) -> str:
    """Digest of the training images' files."""
    return hashlib.sha256(b"".join(file.read_bytes() for file in sorted(data.glob("train/*.jpg")))).hexdigest()


def losses(training: Training, data: Path, folder: Path) -> dict[str, list[float]]:
    """Loss terms, gradient norm (before clipping) and learning rate of each of the 20 steps.

    Args:
        data: from `shapes`.
        folder: where a file of made-up pretrained weights may be written.
    """
    engine = _engine(training, folder)
    steps_per_epoch = math.ceil(12 / training.optim.batch_size)
    columns: dict[str, list[float]] = {name: [] for name in (*TERMS, "learning_rate")}
    for step, micro_batches in zip(range(STEPS), _steps(data, training), strict=False):
        rate = learning_rate_at(training.optim, step, steps_per_epoch)
        values = engine.step(micro_batches, rate).read()
        for name in TERMS:
            columns[name].append(values[name])
        columns["learning_rate"].append(rate)
    return columns


def _engine(training: Training, folder: Path) -> TrainingEngine:
    torch.manual_seed(0)
    detector = build_detector(training.model, training.loss, num_classes=6)
    if training.model.backbone.weights == "imagenet":
        detector.load_initial_weights(_made_up_weights(folder / "pretrained.pth"))
    detector = detector.train().to(memory_format=torch.channels_last)
    optimizer = build_optimizer(detector, training.optim)
    return TrainingEngine(detector, optimizer, training.optim, normaliser=training.loss.normaliser)


def _made_up_weights(file: Path) -> Path:
    """Write a file with the names of torchvision's weights and random values: statistics near 0 and 1, not at them."""
    torch.manual_seed(7)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # frozen statistics without weights: the weights are these
        state = build_backbone(replace(PRETRAINED.backbone, weights="none", norm="frozen_statistics")).state_dict()
    for name, tensor in state.items():
        if name.endswith("running_mean") or (tensor.ndim == 1 and name.endswith("bias")):
            tensor.copy_(0.1 * torch.randn(tensor.shape))
        elif tensor.ndim == 1:
            tensor.copy_(0.6 + 0.4 * torch.rand(tensor.shape))
    torch.save({**state, "fc.weight": torch.zeros(1000, 512), "fc.bias": torch.zeros(1000)}, file)
    return file


def _steps(data: Path, training: Training) -> Iterator[list[Batch]]:
    loader = make_train_loader(
        open_dataset(data, "train"),
        DATA,
        seed=0,
        start_epoch=0,
        start_step=0,
        epochs=training.optim.epochs,
        batch_size=training.optim.batch_size,
        accumulation=training.accumulation,
    )
    micro_batches: list[Batch] = []
    for batch in loader:
        micro_batches.append(batch)
        if len(micro_batches) == training.accumulation:
            yield micro_batches
            micro_batches = []


# Detections

SCORINGS = {
    **{f"alpha {alpha:g}": ScoringConfig(confidence="alpha", alpha=alpha) for alpha in (1.0, 0.5, 0.1, 0.0)},
    "none": ScoringConfig(confidence="none"),
    "class": ScoringConfig(confidence="class"),
}
TRUTH = ([[8.0, 10.0, 60.0, 52.0], [30.0, 40.0, 120.0, 90.0], [70.0, 5.0, 100.0, 30.0]], [[10.0, 20.0, 50.0, 70.0]])
"""By image; x1, y1, x2, y2 in px."""
SHOWN = 15
"""Detections of an image that are recorded."""


@torch.no_grad()
def detections() -> Json:
    """Detections of two padded images of noise by an untrained network with perturbed heads, by scoring."""
    torch.manual_seed(3)
    model = RetinaNet(replace(MODEL, anchors=AnchorConfig(base_size=2.0)), num_classes=4).eval()
    for parameter in model.heads.parameters():
        parameter.add_(0.12 * torch.randn(parameter.shape))
    images = torch.randint(0, 256, (2, 3, 96, 128), dtype=torch.uint8)
    sizes = torch.tensor([[96, 128], [80, 100]])
    batch = _batch(images, sizes)
    found: Json = {}
    for name, scoring in SCORINGS.items():
        scoring = replace(scoring, top_k=300)  # fewer than the finest level has
        rows = {name: ScoringRow(scoring)}
        if name != "class":  # the oracle is the same as without an IoU
            rows[f"{name}, oracle"] = ScoringRow(scoring, oracle=True)
        for row, of_images in zip(rows, model.detect(batch, list(rows.values())), strict=True):
            found[row] = _plain(of_images)
    return found


def _batch(images: Tensor, sizes: Tensor) -> Batch:
    """The images with the boxes of `TRUTH`."""
    boxes, valid = torch.zeros(2, 3, 4), torch.zeros(2, 3, dtype=torch.bool)
    for image, truth in enumerate(TRUTH):
        boxes[image, : len(truth)], valid[image, : len(truth)] = torch.tensor(truth), True
    return Batch(
        images=images,
        sizes=sizes,
        boxes=boxes,
        labels=torch.zeros(2, 3, dtype=torch.int64),
        valid=valid,
        image_index=torch.arange(2),
        image_weight=torch.ones(2),
    )


def _plain(of_images: list[Detections]) -> list[Json]:
    return [
        {
            "count": len(found.scores),
            "anchor_index": found.anchor_index[:SHOWN].tolist(),
            "labels": found.labels[:SHOWN].tolist(),
            "scores": found.scores[:SHOWN].tolist(),
            "boxes": found.boxes[:SHOWN].tolist(),
        }
        for found in of_images
    ]


# Evaluation

RESAMPLES = 200
INTERVALS = ("AP", "AP50", "AP75", "AP90")


def evaluation(inputs: Json) -> Json:
    """Metrics of two detectors on one data set, and the bootstrap intervals of their difference (second - first)."""
    dataset = _dataset(inputs["dataset"])
    tables = {name: _table(columns) for name, columns in inputs["tables"].items()}
    found: Json = {name: _metrics(dataset, table) for name, table in tables.items()}
    draws = image_draws(len(dataset), RESAMPLES, 0)
    before, after = ([resample(dataset, table, draws)] for table in tables.values())
    found["difference"] = {name: astuple(mean_difference(before, after, name)) for name in INTERVALS}
    return found


def _metrics(dataset: Dataset, table: DetectionTable) -> Json:
    per_class = coco_average_precision(dataset, table).per_class
    pycocotools = coco_average_precision(dataset, table, backend="pycocotools").summary
    inclusive = replace(dataset, box_convention="inclusive")
    return {
        "tracked": score_detections(dataset, table, "voc"),
        "per_class": {name: [None if math.isnan(v) else v for v in column] for name, column in per_class.items()},
        "pycocotools": pycocotools,
        "voc07_inclusive": voc_average_precision(inclusive, table, iou=[0.5, 0.75], points="11").mean_ap,
        "voc12_offset_0": voc_average_precision(dataset, table, iou=[0.5, 0.75], points="area", offset=0.0).mean_ap,
    }


def _dataset(columns: Json) -> Dataset:
    return Dataset(
        name="golden",
        categories=tuple(Category(id=3 * i + 7, name=name) for i, name in enumerate(columns["classes"])),
        image_paths=tuple(Path(f"{number}.jpg") for number in columns["image_ids"]),
        image_ids=tuple(columns["image_ids"]),
        image_sizes=np.array(columns["image_sizes"], dtype=np.int64),
        offsets=np.array(columns["offsets"], dtype=np.int64),
        boxes_xywh=np.array(columns["boxes_xywh"], dtype=np.float64).reshape(-1, 4),
        labels=np.array(columns["labels"], dtype=np.int64),
        areas=np.array(columns["areas"], dtype=np.float64),
        is_crowd=np.array(columns["is_crowd"], dtype=bool),
        is_difficult=np.array(columns["is_difficult"], dtype=bool),
        box_convention="half_open",
    )


def _table(columns: Json) -> DetectionTable:
    return DetectionTable(
        image_index=np.array(columns["image_index"], dtype=np.int64),
        labels=np.array(columns["labels"], dtype=np.int64),
        boxes_xywh=np.array(columns["boxes_xywh"], dtype=np.float64).reshape(-1, 4),
        scores=np.array(columns["scores"], dtype=np.float64),
        class_scores=np.array(columns["class_scores"], dtype=np.float64),
        ious=np.array([math.nan if v is None else v for v in columns["ious"]], dtype=np.float64),
    )


def trained_tables(data: Path, folder: Path) -> tuple[Dataset, dict[str, DetectionTable]]:
    """Detections of a baseline and of an IoU-aware detector on the 12 images they were trained on for 60 epochs.

    They are recorded as inputs of `evaluation`, so that these metrics do not change with the training.
    """
    optim = OptimConfig(
        optimizer="adamw",
        learning_rate=1e-3,
        reference_batch_size=4,
        batch_size=4,
        weight_decay=0.05,
        epochs=60,
        milestones=(45,),
        warmup_steps=10,
    )
    model = replace(MODEL, fpn_channels=32, anchors=AnchorConfig(base_size=2.0))
    dataset, tables = open_dataset(data, "train"), {}
    for name, iou_head in (("baseline", False), ("iou_aware", True)):
        training = Training(replace(model, iou_head=iou_head), optim=optim)
        engine = _engine(training, folder)
        for step, micro_batches in enumerate(_steps(data, training)):
            engine.step(micro_batches, learning_rate_at(optim, step, 3))
        scoring = ScoringConfig(max_detections=25)
        context = LocalContext(use_gpu=False)
        table = detect(Predictor(engine.detector, context.device), dataset, DATA, scoring, context, batch_size=4)
        assert table is not None
        tables[name] = table
    return dataset, tables


# Tables


def tables() -> dict[str, str]:
    """Texts by file name: fixed rows, and the tables of a made-up sweep with the paper's rows."""
    rows = [
        TextRow("baseline", {"AP": 0.3586, "AP50": 0.558, "AP90": 1}),
        TextRow("IoU-aware | [bold] 50% a_b", {"AP": Spread(0.3694, 0.00249), "AP50": None, "AP90": math.nan}),
        TextRow("one seed", {"AP": Spread(0.0, None), "AP50": Spread(None, None), "AP90": -1e-9}),
        TextRow("difference", {"AP": Interval(0.0108, 0.002, 0.0196), "AP50": Interval(-0.01, -0.02, 0.0)}),
        TextRow(
            "no interval", {"AP": Interval(0.0108, None, None), "AP50": Interval(None, None, None), "AP90": "35.9*"}
        ),
    ]
    columns = ("AP", "AP50", "AP90")
    texts = {
        "rows.md": markdown(rows, columns, "Table 2"),
        "rows.tex": latex(rows, columns, "Table 2"),
        "rows.txt": _on_terminal(rows, columns, "Table 2"),
    }
    paper, test_dev = _paper(), ImageSet("COCO test-dev", 20_288, 80, None)
    for name, sweep, table in (
        ("coco", _sweep(), paper),
        ("smoke", replace(_sweep(), smoke=True), paper),
        ("test_dev", _sweep(), replace(paper, number=1, evaluated_on=test_dev, shown_beside=paper.evaluated_on)),
        ("no_paper", _sweep(), None),
    ):
        sweep.__dict__["labels"] = {r.id: f"{r.row} seed {r.spec.seed}" for r in sweep.results}
        table_rows = rows_of(sweep.results)
        for row in table_rows:
            row.__dict__["evaluated_on"] = row.__dict__["trained_on"] = Images("val", 50, 3, 400)
        server = {"bce": {"AP": 36.0}} if name == "test_dev" else None
        made = make_table(sweep, table_rows, table, {r.id: _draws(i) for i, r in enumerate(sweep.results)}, server)
        texts |= {
            f"{name}.md": markdown(made.rows, made.columns, made.title) + "".join(f"- {n}\n" for n in made.notes),
            f"{name}.tex": latex(made.rows, made.columns, made.title),
            f"{name}.csv": made.csv,
        }
    return texts


def _on_terminal(rows: list[TextRow], columns: tuple[str, ...], title: str) -> str:
    console = Console(width=120, file=io.StringIO(), record=True)
    console.print(comparison_table(rows, columns, title))
    return console.export_text()


def _paper() -> PaperTable:
    rows = {
        "baseline": PaperRow("baseline", {"AP": 34.3, "AP50": 54.5, "APS": 17.2}),
        "bce": PaperRow("BCE loss", {"AP": 35.4, "AP50": 54.1, "APS": 18.9}),
    }
    columns = ("AP", "AP50", "APS")
    val, train = ImageSet("COCO val2017", 50, 3, 400), ImageSet("COCO train2017", 50, 3, None)
    return PaperTable(2, "IoU prediction losses", val, train, "coco", columns, rows)


def _sweep() -> SweepResult:
    """Three rows of two seeds: the baseline, the paper's row with one seed missing its small objects, and l1."""
    results = []
    losses = {"baseline": LossConfig(), "bce": LossConfig(), "l1": LossConfig(iou_loss="l1")}
    for row, base in (("baseline", 0.3401), ("bce", 0.3523), ("l1", 0.3494)):
        for seed in (0, 1):
            spec = ExperimentSpec(
                paper=PaperReference("Table 2", row),
                model=replace(MODEL, iou_head=row != "baseline"),
                loss=losses[row],
                seed=seed,
            )
            metrics = {"val/AP": base + 0.0031 * seed, "val/AP50": base + 0.2 - 0.0012 * seed, "val/AP75": base + 0.02}
            if (row, seed) != ("bce", 1):
                metrics["val/APS"] = base / 2
            folder = RunFolder(Path(f"{row}-{seed}"))
            results.append(TrialResult(Trial(spec, row), folder, metrics))
    results[-1] = replace(results[-1], metrics=None)
    return SweepResult("table2", "val", SweepFolder(Path("table2")), tuple(results), False, ())


def _draws(result: int) -> ResampledAP:
    """AP of 20 draws at T thresholds, made up."""
    noise = 0.0007 * np.array([0, *range(-10, 10)])[:, None] * (1 + result % 3)
    return ResampledAP(draws := 0.3003 + 0.0061 * result + noise - 0.02 * np.arange(10.0), draws[:2], (25, 25))
