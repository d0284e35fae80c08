"""The kinds of untrusted file: a valid one, its changes, and everything that a run does with it."""

import hashlib
import json
import random
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import torch
from mutations import json_bytes, mutate_bytes, mutate_table, xml_bytes
from PIL import Image
from torch import nn

from detector.checkpoint import load_checkpoint, save_checkpoint
from detector.config import DataConfig, OptimConfig, ScoringConfig
from detector.data.cache import load_dataset, save_dataset
from detector.data.class_list import single_dataset
from detector.data.epoch_plan import trainable_images
from detector.data.fingerprint import fingerprint
from detector.data.formats.coco import load_coco
from detector.data.formats.voc import parse_voc
from detector.data.health import count_contents
from detector.data.images import check_image, read_image
from detector.data.samples import Dataset
from detector.errors import InputError
from detector.evaluation.results import read_coco_results
from detector.models.detector import Detections, ScoringRow
from detector.optim import build_optimizer
from detector.rescoring.columns import ImageRows
from detector.rescoring.header import PartHeader, StoreIdentity
from detector.rescoring.store import CandidateStore, PartWriter, next_part, publish_part
from runyard.scoring.rescore import score_store
from runyard.spec import ExperimentSpec, from_dict, to_dict

IDENTITY = StoreIdentity(dataset="d" * 64, checkpoint="c" * 64, short_side_px=600, long_side_px=1000)
ROWS = (ScoringRow(ScoringConfig()), ScoringRow(ScoringConfig(confidence="none")), ScoringRow(ScoringConfig(), True))

Mutate = Callable[[random.Random, Path], None]
Read = Callable[[Path], None]


@dataclass(frozen=True)
class Kind:
    """One kind of file: a function that changes it at a path, and a function that reads it."""

    path: Path
    mutate: Mutate
    read: Read


def coco_content() -> dict[str, Any]:
    return {
        "images": [
            {"id": 7, "file_name": "a.png", "width": 40, "height": 30},
            {"id": 0, "file_name": "b.png", "width": 40, "height": 30, "license": 3},
            {"id": 12, "file_name": "c.png", "width": 40, "height": 30},
        ],
        "annotations": [
            {"id": 5, "image_id": 0, "category_id": 9, "bbox": [1, 2, 10, 5], "area": 33.5, "iscrowd": 0},
            {"id": 0, "image_id": 7, "category_id": 2, "bbox": [0.5, 0.5, 4, 4], "segmentation": [[1, 2, 3, 4]]},
            {"id": 3, "image_id": 0, "category_id": 2, "bbox": [3, 3, 20, 20], "area": 400, "iscrowd": 1},
        ],
        "categories": [
            {"id": 9, "name": "zebra", "supercategory": "animals"},
            {"id": 0, "name": "animals", "supercategory": "none"},
            {"id": 2, "name": "cow", "supercategory": "animals"},
        ],
    }


def look_at(dataset: Dataset) -> None:
    """Use annotations as a run does before it reads images; accepted entries must be consistent."""
    assert np.isfinite(dataset.boxes_xywh).all()
    assert np.isfinite(dataset.areas).all()
    assert ((dataset.labels >= 0) & (dataset.labels < len(dataset.categories))).all()
    assert dataset.offsets[-1] == len(dataset.labels)
    fingerprint(dataset)
    count_contents(dataset)
    images = trainable_images(dataset, DataConfig(min_image_side_px=1))
    for image in images.tolist():
        boxes, _ = dataset.training_boxes(image)
        assert np.isfinite(boxes).all()


def coco(folder: Path) -> Kind:
    for name in "abc":
        Image.new("RGB", (40, 30)).save(folder / f"{name}.png")
    content = coco_content()
    return Kind(
        folder / "instances.json",
        lambda draw, path: write(path, json_bytes(draw, content)),
        lambda path: look_at(load_coco(path, folder, None, "fuzzed")),
    )


def voc(folder: Path) -> Kind:
    objects = "".join(
        f"<object><name>{name}</name><pose>Left</pose><truncated>0</truncated><difficult>{difficult}</difficult><bndbox>"
        f"<xmin>{x}</xmin><ymin>3</ymin><xmax>20.5</xmax><ymax>19</ymax></bndbox></object>"
        for name, difficult, x in (("cat", 0, 1), ("dog", 1, 5))
    )
    size = "<size><width>40</width><height>30</height><depth>3</depth></size>"
    text = f"<annotation><folder>VOC</folder><filename>a.jpg</filename>{size}{objects}</annotation>"
    for part in ("Annotations", "JPEGImages", "ImageSets/Main"):
        (folder / part).mkdir(parents=True)
    Image.new("RGB", (40, 30)).save(folder / "JPEGImages" / "a.jpg")
    (folder / "ImageSets" / "Main" / "train.txt").write_text("a\n")
    return Kind(
        folder / "Annotations" / "a.xml",
        lambda draw, path: write(path, xml_bytes(draw, text)),
        lambda path: look_at(
            single_dataset(parse_voc(folder, "train", "fuzzed"), ("cat",) if path.stat().st_size % 2 else None)
        ),
    )


def pixels(folder: Path) -> Kind:
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 256, (30, 40, 3), dtype=np.uint8))
    exif = Image.Exif()
    exif[0x0112] = 6
    files = []
    for mode, options in (("RGB", {}), ("L", {"progressive": True}), ("CMYK", {"exif": exif.tobytes()})):
        noise.convert(mode).save(folder / "made.jpg", **options)
        files.append((folder / "made.jpg").read_bytes())
    for mode in ("RGB", "P", "1", "I;16", "LA"):
        (noise.convert("L") if mode == "I;16" else noise).convert(mode).save(folder / "made.png")
        files.append((folder / "made.png").read_bytes())

    def read(path: Path) -> None:
        try:
            image = read_image(path)
        except InputError:
            image = None
        if image is None:
            check_image(path)
        else:
            check_image(path, (image.shape[2], image.shape[1]))

    return Kind(folder / "a.img", lambda draw, path: write(path, mutate_bytes(draw, draw.choice(files))), read)


def detections_of(image: int, row: int) -> Detections:
    draw = torch.Generator().manual_seed(10 * image + row)
    count = 3 * image
    return Detections(
        boxes=torch.rand(count, 4, generator=draw) * 50,
        scores=torch.rand(count, generator=draw).sort(descending=True).values,
        labels=torch.randint(0, 2, (count,), generator=draw),
        class_scores=torch.rand(count, generator=draw),
        ious=torch.rand(count, generator=draw),
        anchor_index=torch.arange(count),
    )


def candidates(folder: Path) -> Kind:
    dataset = small_dataset(folder)
    header = PartHeader(IDENTITY, num_images=3, num_classes=2, iou_head=True, rows=ROWS, written_on="cpu")
    part = next_part(folder / "store")
    with PartWriter(part, header) as writer:
        for image in range(3):
            writer.add(ImageRows(image, (60, 80), [detections_of(image, row) for row in range(len(ROWS))]))
    publish_part(part)
    path = part / "shard-00000-of-00001.parquet"
    whole, table = path.read_bytes(), pq.read_table(path)
    described = json.loads(table.schema.metadata[b"runyard.candidates"])

    def mutate(draw: random.Random, path: Path) -> None:
        choice = draw.random()
        if choice < 0.5:
            write(path, mutate_bytes(draw, whole))
            return
        changed = table
        if choice < 0.75:
            metadata = {b"runyard.candidates": json_bytes(draw, described)}
            changed = changed.replace_schema_metadata(metadata)
        if choice > 0.7:
            changed = mutate_table(draw, changed)
        pq.write_table(changed, path)

    def read(path: Path) -> None:
        store = CandidateStore.open(path.parent.parent, IDENTITY)
        for row in store.rows[:3]:
            score_store(store, dataset, row.scoring, oracle=row.oracle)

    return Kind(path, mutate, read)


def checkpoint(folder: Path) -> Kind:
    def build() -> tuple[nn.Module, torch.optim.Optimizer]:
        model = nn.Linear(2, 2)
        return model, build_optimizer(model, OptimConfig())

    model, optimizer = build()
    model(torch.ones(1, 2)).sum().backward()
    optimizer.step()
    saved = save_checkpoint(folder / "checkpoint", model, optimizer, {"step": 1, "classes": ["a"]})
    tensors = (saved / "tensors.safetensors").read_bytes()
    described = json.loads((saved / "metadata.json").read_text())
    header_end = 8 + int.from_bytes(tensors[:8], "little")
    header = json.loads(tensors[8:header_end])

    def mutate(draw: random.Random, path: Path) -> None:
        changed = tensors
        if draw.random() < 0.4:
            text = json_bytes(draw, header)
            length = len(text) if draw.random() < 0.8 else draw.choice((0, 10 * 2**30, 2**63, 100_000_000))
            changed = length.to_bytes(8, "little") + text + tensors[header_end:]
        elif draw.random() < 0.6:
            changed = mutate_bytes(draw, tensors[:header_end]) + tensors[header_end:]
        write(path, changed)
        # The sum is made right again, as someone would who knows how.
        metadata = described | {"sha256": hashlib.sha256(changed).hexdigest()}
        write(path.with_name("metadata.json"), json_bytes(draw, metadata) if draw.random() < 0.3 else as_json(metadata))

    def read(path: Path) -> None:
        load_checkpoint(path.parent, *build(), random_state=True)

    return Kind(saved / "tensors.safetensors", mutate, read)


def columns(folder: Path) -> Kind:
    save_dataset(small_dataset(folder), folder / "train.npz")
    with np.load(folder / "train.npz") as archive:
        members = dict(archive)
    whole = (folder / "train.npz").read_bytes()
    text = json.loads(members["text"].tobytes())

    def mutate(draw: random.Random, path: Path) -> None:
        if draw.random() < 0.5:
            write(path, mutate_bytes(draw, whole))
            return
        changed = dict(members)
        name = draw.choice(list(members))
        if name == "text":
            changed[name] = np.frombuffer(json_bytes(draw, text), dtype=np.uint8)
        elif draw.random() < 0.3:
            del changed[name]
        else:
            odd = (np.zeros(0), np.array("text"), np.full((3, 4), np.nan), members[name][:1], members[name].astype(str))
            changed[name] = draw.choice(odd)
        np.savez(path, **changed)

    return Kind(folder / "train.npz", mutate, lambda path: look_at(load_dataset(path)))


def results(folder: Path) -> Kind:
    dataset = small_dataset(folder)
    rows = [
        {"image_id": image, "category_id": 2, "bbox": [1, 2, 3.5, 4], "score": 0.5, "iou": 0.25} for image in (7, 0, 12)
    ]
    return Kind(
        folder / "detections.json",
        lambda draw, path: write(path, json_bytes(draw, rows)),
        lambda path: check_finite(read_coco_results(path, dataset).boxes_xywh),
    )


def spec(folder: Path) -> Kind:
    tree = to_dict(ExperimentSpec())

    def read(path: Path) -> None:
        try:
            content = json.loads(path.read_bytes())
        except (ValueError, RecursionError):
            raise InputError("is not valid JSON") from None  # as `read_spec` of the plain launcher says
        made = from_dict(content)
        assert len(made.training_hash) == len(made.scoring_hash) == 16

    return Kind(folder / "spec.json", lambda draw, path: write(path, json_bytes(draw, tree)), read)


KINDS: dict[str, Callable[[Path], Kind]] = {
    kind.__name__: kind for kind in (coco, voc, candidates, checkpoint, columns, results, spec, pixels)
}


def small_dataset(folder: Path) -> Dataset:
    """Three images of two classes."""
    coco(folder)
    write(folder / "instances.json", as_json(coco_content()))
    return load_coco(folder / "instances.json", folder, None, "sound")


def check_finite(values: "np.ndarray[Any, Any]") -> None:
    assert np.isfinite(values).all()


def as_json(tree: Any) -> bytes:
    return json.dumps(tree).encode()


def write(path: Path, content: bytes) -> None:
    path.write_bytes(content)
