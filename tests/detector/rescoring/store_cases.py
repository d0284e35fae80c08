"""Made-up stores for the tests of the candidate store."""

from dataclasses import replace

import torch

from detector.config import ScoringConfig
from detector.models.detector import Detections, ScoringRow
from detector.rescoring.columns import ImageRows
from detector.rescoring.header import PartHeader, StoreIdentity
from detector.rescoring.store import CandidateStore, PartWriter, next_part, publish_part

IDENTITY = StoreIdentity(dataset="d" * 64, checkpoint="c" * 64, short_side_px=600, long_side_px=1000)
ROWS = (
    ScoringRow(ScoringConfig(confidence="none")),
    ScoringRow(ScoringConfig(alpha=1.0)),
    ScoringRow(ScoringConfig(alpha=0.3)),
    ScoringRow(ScoringConfig(), oracle=True),
)


def make_header(num_images=5, **changes):
    header = PartHeader(IDENTITY, num_images=num_images, num_classes=7, iou_head=True, rows=ROWS, written_on="cpu")
    return replace(header, **changes)


def make_rows(count, seed=0, *, iou_head=True, rows=4):
    """Detections of an image under several rows, which share about half of their pairs."""
    generator = torch.Generator().manual_seed(seed)
    boxes = torch.rand(count, 4, generator=generator) * 1000
    labels = torch.randint(0, 7, (count,), generator=generator)
    class_scores, ious = torch.rand(2, count, generator=generator)
    found = []
    for _ in range(rows):
        chosen = torch.randperm(count, generator=generator)[: (count + 1) // 2]
        scores = torch.rand(len(chosen), generator=generator).sort(descending=True).values
        row_ious = ious[chosen] if iou_head else torch.full_like(scores, torch.nan)
        anchors = torch.full_like(chosen, -1)
        found.append(Detections(boxes[chosen], scores, labels[chosen], class_scores[chosen], row_ious, anchors))
    return found


def write(folder, header, *, world_size=1, count=20, publish=True, **kinds):
    part = next_part(folder)
    for rank in range(world_size):
        with PartWriter(part, header, rank=rank, world_size=world_size) as writer:
            for image in range(rank, header.num_images, world_size):
                rows = make_rows(count * (image % 3), image, rows=len(header.rows), **kinds)
                writer.add(ImageRows(image, (100 + image, 200), rows))
    if publish:
        publish_part(part, world_size)
    return folder


def assert_same(first, second):
    for name, value in vars(first).items():
        other = getattr(second, name)
        assert value.dtype == other.dtype
        torch.testing.assert_close(value, other, rtol=0, atol=0, equal_nan=True, msg=name)


def first_shard(folder):
    return min(folder.rglob("shard-*"))


def read_all(folder):
    return list(CandidateStore.open(folder).groups(ROWS[0].scoring))
