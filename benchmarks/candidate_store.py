"""P10, the second half: size of the candidate store of COCO's val2017, and cost of scoring a row from it.

5,000 images of 80 classes at [800, 1333], complete for the paper's 13 rows (12 and the oracle). The candidates of a
dozen images are real detections of made-up outputs; the other images have the same pairs with other numbers, so that
neither Parquet nor AP meets an image twice. The ground truth is the objects that the outputs were made for.
"""

import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from benchmarks.rows import AnyRow, Row
from benchmarks.settings import Settings
from benchmarks.timing import repeated
from benchmarks.workloads import COCO_CLASSES, FULL_SIZE, scoring_rows, trained_objects, trained_outputs
from detector.config import ScoringConfig
from detector.data.box_geometry import xywh_from_corners
from detector.data.cache import save_dataset
from detector.data.samples import Category, Dataset
from detector.models.confidence import combine_scores
from detector.models.detector import Detections, ScoringRow
from detector.models.postprocess import postprocess_rows
from detector.rescoring.columns import ImageRows
from detector.rescoring.header import PartHeader, StoreIdentity
from detector.rescoring.store import PartWriter, next_part, publish_part
from runyard.scoring.rescore import score_one

IMAGES = 5000
_ORIGINAL = (384, 640)
"""Height and width of the image files; resized they are 800 x 1333."""
_MIB = 2**20


def measure(settings: Settings) -> list[AnyRow]:
    """Size of the store, and processor time of a row."""
    images, distinct = (40, 2) if settings.quick else (IMAGES, 16)
    size = settings.size(FULL_SIZE, FULL_SIZE)
    rows = (*scoring_rows(ScoringConfig()), ScoringRow(ScoringConfig(), oracle=True))
    with tempfile.TemporaryDirectory() as text:
        folder = Path(text)
        dataset = write_store(folder, images, distinct, size, rows)
        save_dataset(dataset, folder / "dataset")
        weight = sum(shard.stat().st_size for shard in (folder / "store").glob("*/*"))
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
    """Write `folder`/store, made of the detections of `distinct` images; return the data set that it belongs to."""
    templates, truths = [], []
    for seed in range(distinct):
        case, (objects, labels) = trained_outputs(size, seed=seed), trained_objects(size, seed=seed)
        found = postprocess_rows(case.outputs, case.anchors, case.anchor_valid, case.image_sizes, rows, [objects])
        templates.append([of_row[0] for of_row in found])
        truths.append((objects.double().numpy(), labels.numpy()))
    header = PartHeader(StoreIdentity("generated", "none", *sorted(size)), images, COCO_CLASSES, True, rows)
    generator = torch.Generator().manual_seed(0)
    part = next_part(folder / "store")
    with PartWriter(part, header) as writer:
        for image in range(images):
            varied = _varied(templates[image % distinct], rows, size, generator)
            writer.add(ImageRows(image, size, varied))
    publish_part(part)
    return _dataset(folder, images, size, truths)


def _varied(
    found: Sequence[Detections], rows: Sequence[ScoringRow], size: tuple[int, int], generator: torch.Generator
) -> list[Detections]:
    """The same pairs with factors and boxes moved a little, by 1 % and by a pixel, scored and ranked again."""
    # What an anchor has stays equal in every row and class.
    places = torch.cat([of_row.anchor_index for of_row in found]).unique()
    moves = 0.5 * torch.randn(len(places), 4, generator=generator)
    factors = 1 - 0.01 * torch.rand(len(places), 2, generator=generator)
    limits = torch.tensor([size[1], size[0], size[1], size[0]], dtype=torch.float32)
    varied = []
    for of_row, row in zip(found, rows, strict=True):
        place = torch.searchsorted(places, of_row.anchor_index)
        boxes = torch.minimum((of_row.boxes + moves[place]).clamp(min=0), limits)
        boxes[:, 2:] = torch.maximum(boxes[:, 2:], boxes[:, :2])
        class_scores, ious = of_row.class_scores * factors[place, 0], of_row.ious * factors[place, 1]
        scores = combine_scores(class_scores[:, None], ious, row.scoring)[:, 0]
        order = scores.argsort(descending=True, stable=True)
        varied.append(
            Detections(
                boxes[order],
                scores[order],
                of_row.labels[order],
                class_scores[order],
                ious[order],
                of_row.anchor_index[order],
            )
        )
    return varied


def _dataset(folder: Path, images: int, size: tuple[int, int], truths: list[tuple[np.ndarray, np.ndarray]]) -> Dataset:
    """The objects as ground truth, in the frame of the image files."""
    scale = np.array([_ORIGINAL[1] / size[1], _ORIGINAL[0] / size[0]] * 2)
    chosen = [truths[image % len(truths)] for image in range(images)]
    corners = np.concatenate([boxes for boxes, _ in chosen]) * scale
    boxes = xywh_from_corners(corners)
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
