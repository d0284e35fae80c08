"""Files that a stranger may hand us, changed at random: what is not read must be refused as a mistake of the file.

    python tests/faults/fuzzing.py --count 1000 --seed 0 [--only coco voc ...] [--keep FOLDER]

Prints one JSON line: by kind of file how many inputs were tried, how many were read and refused, the slowest one, and
every one that made anything but an `InputError` come out. The same seed gives the same inputs. Runs as a process of its
own, because a native reader may end it, and because its memory is limited: a header that claims gigabytes must not
get them.
"""

import argparse
import hashlib
import json
import logging
import random
import resource
import shutil
import sys
import tempfile
import time
import traceback
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from PIL import Image
from torch import nn

from detector.candidate_header import StoreHeader, StoreIdentity
from detector.candidates import CandidateStore, CandidateWriter, publish_store
from detector.checkpoint import load_checkpoint, save_checkpoint
from detector.config import DataConfig, OptimConfig, ScoringConfig
from detector.data.cache import load_dataset, save_dataset
from detector.data.coco import load_coco
from detector.data.epoch_plan import trainable_images
from detector.data.fingerprint import fingerprint
from detector.data.health import count_contents
from detector.data.images import check_image, read_image
from detector.data.samples import Dataset
from detector.data.voc import load_voc
from detector.errors import InputError
from detector.evaluation.results import read_coco_results
from detector.optim import build_optimizer
from detector.survivors import ScoringRow, Survivors
from runyard.spec import ExperimentSpec, from_dict, to_dict
from runyard.sweeps.rescore import score_store

MEMORY_BYTES = 1 << 30
"""More than the process has when it begins."""
IDENTITY = StoreIdentity(dataset="d" * 64, checkpoint="c" * 64, short_side_px=600, long_side_px=1000)
ROWS = (ScoringRow(ScoringConfig()), ScoringRow(ScoringConfig(confidence="none")), ScoringRow(ScoringConfig(), True))

Mutate = Callable[[random.Random, Path], None]
Read = Callable[[Path], None]


# --- changes ----------------------------------------------------------------------------------------------------------

ODD_NUMBERS = (0, -1, 1, 0.5, -0.0, 2**31, 2**63 - 1, 2**63, -(2**63), 2**64, 10**400, 1e308, -1e308, 5e-324, 1e18)
ODD_TEXTS = (
    "",
    " ",
    "..",
    "a\0b",
    "../../etc/passwd",
    "/etc/passwd",
    "\ud800",
    "\u202e",
    "NaN",
    "1",
    "é\n",
    "x" * 5000,
)
DEEP = "[" * 50 + "]" * 50


def odd_value(draw: random.Random) -> Any:
    return draw.choice(
        (
            None, True, False, [], {}, [[]], [None], {"": None}, json.loads(DEEP), float("nan"),
            float("inf"), -float("inf"),
            draw.choice(ODD_NUMBERS), draw.choice(ODD_TEXTS), draw.randint(-9, 99), draw.uniform(-99, 99),
            [draw.choice(ODD_NUMBERS)] * draw.randint(1, 5), "".join(map(chr, draw.choices(range(1, 0x3000), k=4))),
        )
    )  # fmt: skip


def mutate_bytes(draw: random.Random, content: bytes) -> bytes:
    """A few bytes set, flipped, removed, put in or repeated; sometimes cut off."""
    changed = bytearray(content)
    for _ in range(draw.choice((1, 1, 2, 3, 8))):
        place = draw.randrange(len(changed) + 1)
        end = place + draw.choice((1, 2, 4, 8, 50))
        match draw.randrange(6):
            case 0 if place < len(changed):
                changed[place] = draw.randrange(256)
            case 1 if place < len(changed):
                changed[place] ^= 1 << draw.randrange(8)
            case 2:
                del changed[place:end]
            case 3:
                changed[place:place] = draw.randbytes(draw.choice((1, 4, 30)))
            case 4:
                changed[place:place] = changed[place:end]
            case _:
                number = draw.choice((0, 0xFF, 0x7F, 0x80, 1)) * 0x01010101 & 0xFFFFFFFF
                changed[place : place + 4] = number.to_bytes(4, "little")
    if draw.random() < 0.1:
        del changed[draw.randrange(len(changed) + 1) :]
    return bytes(changed)


def mutate_tree(draw: random.Random, tree: Any) -> Any:
    """A JSON value with a few of its parts replaced, removed, repeated or renamed; the given one is left as it is."""
    tree = json.loads(json.dumps(tree))
    for _ in range(draw.choice((1, 1, 2, 4))):
        parents = [part for part in _parts(tree) if isinstance(part, dict | list) and part]
        if not parents or draw.random() < 0.01:
            return odd_value(draw)
        parent = draw.choice(parents)
        key = draw.choice(list(parent) if isinstance(parent, dict) else range(len(parent)))
        match draw.randrange(6):
            case 0:
                del parent[key]
            case 1 if isinstance(parent, dict):
                parent[draw.choice((*parent, *ODD_TEXTS))] = parent.pop(key)
            case 1:
                parent.insert(draw.randrange(len(parent) + 1), parent[key])
            case 2:
                others = list(_parts(tree))
                parent[key] = json.loads(json.dumps(draw.choice(others)))
            case _:
                parent[key] = odd_value(draw)
    return tree


def _parts(tree: Any) -> list[Any]:
    """The value and all within it, without recursion."""
    found, waiting = [], [tree]
    while waiting:
        part = waiting.pop()
        found.append(part)
        waiting += part.values() if isinstance(part, dict) else part if isinstance(part, list) else ()
    return found


def json_bytes(draw: random.Random, tree: Any) -> bytes:
    """Mostly a changed tree; else, or besides, changed bytes."""
    text = json.dumps(mutate_tree(draw, tree) if draw.random() < 0.8 else tree).encode()
    if draw.random() < 0.05:
        text = text.decode().encode(draw.choice(("utf-16", "utf-8-sig", "utf-32")))
    return mutate_bytes(draw, text) if draw.random() < 0.4 else text


XML_PIECES = (
    '<!DOCTYPE a [<!ENTITY x "ha">]>', "&x;", "&#0;", "&#x10FFFF;", "<![CDATA[ ]]>", "<!-- -->", "<?php ?>", "\0",
    "<object>", "</object>", "<annotation>", "<part><name>x</name></part>", '<?xml version="1.0" encoding="utf-16"?>',
    "<size><width>1e3</width><height>-1</height></size>", "<bndbox/>", "<difficult>2</difficult>", ' a="1"', "<a:b/>",
    '<x xmlns:a="u"/>', "<name>" + "n" * 3000 + "</name>", "<d>" * 300, "\ufffe",
)  # fmt: skip
XML_NUMBERS = ("nan", "-inf", "1e308", "1e-400", "", " 7 ", "٣", "1_000", "0x10", "+5", "9" * 400, "0", "-3", "2.5")


def xml_bytes(draw: random.Random, text: str) -> bytes:
    """Tags and texts replaced, removed, repeated or put in; sometimes in another encoding; sometimes changed bytes."""
    pieces = text.replace("<", "\n<").replace(">", ">\n").split("\n")
    for _ in range(draw.choice((1, 1, 2, 4))):
        place = draw.randrange(len(pieces))
        match draw.randrange(5):
            case 0:
                pieces[place] = draw.choice(XML_NUMBERS)
            case 1:
                pieces.insert(place, draw.choice(XML_PIECES))
            case 2:
                pieces.insert(place, draw.choice(pieces))
            case 3:
                pieces[place] = draw.choice(pieces)
            case _:
                del pieces[place]
                pieces = pieces or [""]
    encoding = draw.choice(("utf-8",) * 9 + ("utf-16", "utf-8-sig", "latin-1", "utf-7"))
    content = "".join(pieces).encode(encoding, "replace")
    return mutate_bytes(draw, content) if draw.random() < 0.4 else content


# --- kinds of file ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Kind:
    """How one kind of file is spoilt, at a path that exists, and read."""

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
    """What a run does with annotations before it reads images; what was let in must make sense."""
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
        lambda path: look_at(load_voc(folder, "train", ("cat",) if path.stat().st_size % 2 else None, "fuzzed")),
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


def survivors_of(images: int) -> Survivors:
    draw = torch.Generator().manual_seed(images)
    count = 3 * images
    return Survivors(
        anchor_index=torch.arange(count),
        level=torch.randint(0, 5, (count,), generator=draw),
        labels=torch.randint(0, 2, (count,), generator=draw),
        boxes=torch.rand(count, 4, generator=draw) * 50,
        cls_logits=torch.randn(count, generator=draw),
        iou_logits=torch.randn(count, generator=draw),
        true_ious=torch.rand(count, generator=draw),
        rows=torch.randint(1, 8, (count,), generator=draw),
    )


def candidates(folder: Path) -> Kind:
    dataset = small_dataset(folder)
    header = StoreHeader(IDENTITY, num_images=3, num_classes=2, iou_head=True, rows=ROWS, written_on="cpu")
    with CandidateWriter(folder / "store", header) as writer:
        for image in range(3):
            writer.add(image, (60, 80), survivors_of(image))
    publish_store(folder / "store")
    path = folder / "store" / "shard-00000-of-00001.parquet"
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
        store = CandidateStore.open(path.parent, IDENTITY)
        for row in store.header.rows[:3]:
            score_store(store, dataset, row.scoring, oracle=row.oracle)

    return Kind(path, mutate, read)


def mutate_table(draw: random.Random, table: pa.Table) -> pa.Table:
    """A column of the table, or of its candidates, lost, renamed, of another type, emptied or with odd values."""
    place = draw.randrange(table.num_columns)
    name = table.column_names[place]
    match draw.randrange(6):
        case 0:
            return table.remove_column(place)
        case 1:
            return table.rename_columns(["other" if i == place else n for i, n in enumerate(table.column_names)])
        case 2:
            kind = draw.choice((pa.string(), pa.int64(), pa.float64(), pa.list_(pa.int32()), pa.null(), pa.bool_()))
            return table.set_column(place, name, pa.nulls(table.num_rows, kind))
        case 3:
            return table.slice(0, draw.randrange(table.num_rows + 1))
        case 4:
            return pa.concat_tables([table, table])
    rows = table.to_pylist()
    for _ in range(draw.choice((1, 3))):
        row = draw.choice(rows)
        if name != "candidates" or not row["candidates"]:
            row[name] = draw.choice((None, -1, 0, 3, 2**31 - 1, -(2**31))) if name != "candidates" else None
        else:
            found = draw.choice(row["candidates"])
            member = draw.choice(list(found))
            floats = member in ("cls_logit", "iou_logit", "true_iou", "x1", "y1", "x2", "y2")
            odd = (None, float("nan"), float("inf"), -float("inf"), 3e38, -1.0) if floats else (None, -1, 0, 99, 127)
            found[member] = draw.choice(odd)
    return pa.Table.from_pylist(rows, schema=table.schema)


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
            raise InputError("is no JSON") from None  # `_read_json` of the plain launcher says so
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


# --- the run ----------------------------------------------------------------------------------------------------------


def fuzz(name: str, count: int, seed: int, keep: Path | None = None) -> dict[str, Any]:
    """Tries `count` inputs of one kind."""
    counts = {"inputs": 0, "read": 0, "refused": 0}
    found: dict[str, str] = {}
    slowest_s = 0.0
    with tempfile.TemporaryDirectory(prefix="fuzz-") as folder:
        kind = KINDS[name](Path(folder))
        for number in range(count):
            draw = random.Random(f"{name} {seed} {number}")
            kind.mutate(draw, kind.path)
            started = time.monotonic()
            try:
                try:
                    kind.read(kind.path)
                    outcome = "read"
                except InputError as error:
                    outcome = "refused"
                    str(error).encode("utf-8")  # it must be fit to print
                    if "\n" in str(error):
                        raise ValueError("an error of more than one line") from error
            except Exception as error:
                outcome = "found"
                frames = [f for f in traceback.extract_tb(error.__traceback__) if "/fuzzing.py" not in f.filename]
                place = f"{Path(frames[-1].filename).name}:{frames[-1].lineno}" if frames else "an assertion here"
                what = f"{type(error).__name__} at {place}"
                if what not in found:
                    found[what] = f"{name} seed {seed} number {number}: {str(error)[:200]}"
                    if keep is not None:
                        shutil.copytree(folder, keep / f"{name}-{seed}-{number}", dirs_exist_ok=True)
            slowest_s = max(slowest_s, time.monotonic() - started)
            counts["inputs"] += 1
            counts[outcome] = counts.get(outcome, 0) + 1
    return counts | {"slowest_s": round(slowest_s, 2), "bugs": found}


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=1000, help="inputs of each kind")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", nargs="*", choices=KINDS, default=list(KINDS))
    parser.add_argument("--keep", type=Path, help="folder for what has to be looked at")
    options = parser.parse_args(arguments)
    warnings.simplefilter("ignore")
    logging.disable()
    torch.set_num_threads(1)
    for name in options.only:  # everything is imported and has its threads
        fuzz(name, 3, -1)
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    most = pages * resource.getpagesize() + MEMORY_BYTES
    resource.setrlimit(resource.RLIMIT_AS, (most, most))
    before_kib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    started = time.monotonic()
    tried = {name: fuzz(name, options.count, options.seed, options.keep) for name in options.only}
    grown_mib = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before_kib) // 1024
    inputs = sum(result["inputs"] for result in tried.values())
    seconds = round(time.monotonic() - started, 1)
    print(json.dumps({"inputs": inputs, "seconds": seconds, "grown_mib": grown_mib, "kinds": tried}))
    return int(any(result["bugs"] for result in tried.values()))


if __name__ == "__main__":
    sys.exit(main())
