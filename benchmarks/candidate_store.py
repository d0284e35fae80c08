"""P10, the second half: what the candidate store of COCO's val2017 weighs, and what scoring a row from it costs.

5,000 images of 80 classes at [800, 1333], complete for the paper's 13 rows (12 and the oracle). The candidates of a
dozen images are real `survivors` of made-up outputs; the other images have the same pairs with other numbers, so that
neither Parquet nor AP meets an image twice. The ground truth is the objects that the outputs were made for.
"""

import tempfile
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from benchmarks.rows import AnyRow, Row
from benchmarks.settings import Settings
from benchmarks.timing import repeated
from benchmarks.workloads import COCO_CLASSES, FULL_SIZE, scoring_rows, trained_objects, trained_outputs
from detector.config import ScoringConfig
from detector.data.cache import save_dataset
from detector.data.samples import Category, Dataset
from detector.rescoring.header import StoreHeader, StoreIdentity
from detector.rescoring.kept_pairs import ScoringRow, Survivors, survivors
from detector.rescoring.store import CandidateWriter, publish_store
from runyard.scoring.rescore import score_one

IMAGES = 5000
_ORIGINAL = (384, 640)
"""Height and width of the image files; resized they are 800 x 1333."""
_MIB = 2**20


def measure(settings: Settings) -> list[AnyRow]:
    """The store's weight, and the processor time of a row."""
    images, distinct = (40, 2) if settings.quick else (IMAGES, 16)
    size = settings.size(FULL_SIZE, FULL_SIZE)
    rows = (*scoring_rows(ScoringConfig()), ScoringRow(ScoringConfig(), oracle=True))
    with tempfile.TemporaryDirectory() as text:
        folder = Path(text)
        dataset = write_store(folder, images, distinct, size, rows)
        save_dataset(dataset, folder / "dataset")
        weight = sum(shard.stat().st_size for shard in (folder / "store").iterdir())
        numbers: list[int] = []

        def score_a_row() -> float:
            row = rows[len(numbers) % 12]
            numbers.append(len(numbers))
            before = time.process_time()
            score_one(folder / "store", folder / "dataset", row.scoring, folder / "row")
            return time.process_time() - before

        costs = repeated(score_a_row, repeats=settings.repeats(12), warm_up=0)
    shape = settings.describe(f"{images:,} generated images of {COCO_CLASSES} classes, {len(rows)} rows", full=True)
    twelve = 12 * float(np.mean(costs))
    return [
        Row(
            key="P10",
            what="weight of the candidate store",
            size=shape,
            kind="value",
            unit="MiB",
            ours=[weight / _MIB] * settings.repeats(6),
            goal_text="reported",
            note=f"{weight / images / 1024:.1f} KiB an image",
        ),
        Row(
            key="P10",
            what="one row scored from the store: processor time",
            size=shape,
            kind="value",
            unit="CPU s",
            ours=costs,
            goal_text="reported",
            note=f"12 rows: {twelve:.3g} CPU s; on 8 free cores {twelve / 8:.2g} s (extrapolated, not measured)",
        ),
    ]


def write_store(
    folder: Path, images: int, distinct: int, size: tuple[int, int], rows: tuple[ScoringRow, ...]
) -> Dataset:
    """Writes `folder`/store, made of the survivors of `distinct` images; returns the data set that it belongs to."""
    templates, truths = [], []
    for seed in range(distinct):
        case, (objects, labels) = trained_outputs(size, seed=seed), trained_objects(size, seed=seed)
        found = survivors(case.outputs, case.anchors, case.anchor_valid, case.image_sizes, rows, [objects])
        templates.append(found[0])
        truths.append((objects.double().numpy(), labels.numpy()))
    header = StoreHeader(StoreIdentity("generated", "none", *sorted(size)), images, COCO_CLASSES, True, rows)
    generator = torch.Generator().manual_seed(0)
    store = folder / "store"
    with CandidateWriter(store, header) as writer:
        for image in range(images):
            writer.add(image, size, _varied(templates[image % distinct], size, generator))
    publish_store(store)
    return _dataset(folder, images, size, truths)


def _varied(found: Survivors, size: tuple[int, int], generator: torch.Generator) -> Survivors:
    """The same pairs with logits and boxes moved a little: by 1 % and by a pixel."""

    def noise(like: torch.Tensor, scale: float) -> torch.Tensor:
        return scale * torch.randn(like.shape, generator=generator)

    # An anchor's boxes and IoU stand with each of its classes, and stay equal.
    _, place = found.anchor_index.unique(return_inverse=True)
    anchors = int(place.max()) + 1
    limits = torch.tensor([size[1], size[0], size[1], size[0]], dtype=torch.float32)
    boxes = torch.minimum((found.boxes + noise(torch.empty(anchors, 4), 0.5)[place]).clamp(min=0), limits)
    boxes[:, 2:] = torch.maximum(boxes[:, 2:], boxes[:, :2])
    assert found.iou_logits is not None
    assert found.true_ious is not None
    return replace(
        found,
        boxes=boxes,
        cls_logits=found.cls_logits * (1 + noise(found.cls_logits, 0.01)),
        iou_logits=found.iou_logits * (1 + noise(torch.empty(anchors), 0.01)[place]),
        true_ious=(found.true_ious * (1 + noise(torch.empty(anchors), 0.01)[place])).clamp(0, 1),
    )


def _dataset(folder: Path, images: int, size: tuple[int, int], truths: list[tuple[np.ndarray, np.ndarray]]) -> Dataset:
    """The objects as ground truth, in the frame of the image files."""
    scale = np.array([_ORIGINAL[1] / size[1], _ORIGINAL[0] / size[0]] * 2)
    chosen = [truths[image % len(truths)] for image in range(images)]
    corners = np.concatenate([boxes for boxes, _ in chosen]) * scale
    boxes = np.concatenate([corners[:, :2], corners[:, 2:] - corners[:, :2]], axis=1)
    count = len(boxes)
    return Dataset(
        name="generated",
        categories=tuple(Category(label + 1, f"class {label}") for label in range(COCO_CLASSES)),
        image_paths=tuple(folder / f"{number}.jpg" for number in range(images)),
        image_ids=tuple(range(1, images + 1)),
        image_sizes=np.tile(np.array([_ORIGINAL], dtype=np.int64), (images, 1)),
        offsets=np.concatenate([[0], np.cumsum([len(boxes) for boxes, _ in chosen])]).astype(np.int64),
        boxes_xywh=boxes,
        labels=np.concatenate([labels for _, labels in chosen]),
        areas=boxes[:, 2] * boxes[:, 3],
        is_crowd=np.zeros(count, dtype=bool),
        is_difficult=np.zeros(count, dtype=bool),
    )
