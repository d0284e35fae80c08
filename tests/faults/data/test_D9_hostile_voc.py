"""D9: VOC folders, sound and hostile: entities never expand, names never lead out, corners are 1-based."""

import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from detector.data.cache import load_dataset
from detector.errors import DatasetError
from detector.evaluation.results import DetectionTable
from detector.evaluation.voc_ap import voc_average_precision
from runyard.runs.prepare import prepare
from runyard.spec import ExperimentSpec, SourceConfig


def box(x_min: object, y_min: object, x_max: object, y_max: object) -> str:
    corners = zip(("xmin", "ymin", "xmax", "ymax"), (x_min, y_min, x_max, y_max), strict=True)
    return f"<bndbox>{''.join(f'<{tag}>{value}</{tag}>' for tag, value in corners)}</bndbox>"


def thing(name: str, bndbox: str, more: str = "<truncated>0</truncated><difficult>0</difficult>") -> str:
    return f"<object><name>{name}</name>{more}{bndbox}</object>"


def annotation(*objects: str, size: tuple[int, int] = (64, 64), file_name: str = "a.jpg") -> str:
    stated = f"<size><width>{size[0]}</width><height>{size[1]}</height><depth>3</depth></size>"
    return f"<annotation><filename>{file_name}</filename>{stated}{''.join(objects)}</annotation>"


SOUND = annotation(thing("cat", box(9, 9, 40, 40)))


class Voc:
    """A VOC folder with the image sets train (a, b) and val (c)."""

    def __init__(self, root: Path, picture: Callable[..., Image.Image]) -> None:
        self.root = root
        for part in ("Annotations", "JPEGImages", "ImageSets/Main"):
            (root / part).mkdir(parents=True)
        for stem in "abc":
            self.write(stem, SOUND)
            picture(seed=ord(stem)).save(root / "JPEGImages" / f"{stem}.jpg")
        (root / "ImageSets" / "Main" / "train.txt").write_text("a\nb\n")
        (root / "ImageSets" / "Main" / "val.txt").write_text("c\n")

    def write(self, stem: str, text: str, encoding: str = "utf-8") -> None:
        (self.root / "Annotations" / f"{stem}.xml").write_bytes(text.encode(encoding))


@pytest.fixture
def voc(tmp_path: Path, picture: Callable[..., Image.Image]) -> Voc:
    return Voc(tmp_path / "VOC", picture)


@pytest.fixture
def spec(voc: Voc, tiny_spec: ExperimentSpec) -> ExperimentSpec:
    optim = replace(tiny_spec.optim, epochs=1, milestones=())
    return replace(tiny_spec, source=SourceConfig(data=voc.root), protocol="voc", optim=optim)


LAUGHS = "".join(f'<!ENTITY l{n} "{f"&l{n - 1};" * 10}">' for n in range(1, 10))
HOSTILE = {
    "billion laughs": f'<!DOCTYPE a [<!ENTITY l0 "ha">{LAUGHS}]><annotation>&l9;</annotation>',
    "quadratic": f'<!DOCTYPE a [<!ENTITY x "{"x" * 100_000}">]><annotation>{"&x;" * 100_000}</annotation>',
    "external entity": '<!DOCTYPE a [<!ENTITY x SYSTEM "file:///etc/passwd">]><annotation>&x;</annotation>',
    "external DTD": '<!DOCTYPE annotation SYSTEM "http://127.0.0.1:9/a.dtd"><annotation/>',
    "parameter entity": '<!DOCTYPE a [<!ENTITY % x SYSTEM "http://127.0.0.1:9/a"> %x;]><annotation/>',
    "harmless DTD": f"<!DOCTYPE annotation>{SOUND}",
    "entity in an attribute": '<!DOCTYPE a [<!ATTLIST annotation x CDATA "y">]><annotation/>',
}


@pytest.mark.parametrize("encoding", ["utf-8", "utf-16"])
@pytest.mark.parametrize("text", HOSTILE.values(), ids=HOSTILE)
def test_D9_declarations_are_refused_at_once(voc: Voc, spec: ExperimentSpec, text: str, encoding: str) -> None:
    voc.write("b", text, encoding)
    started = time.monotonic()
    with pytest.raises(DatasetError, match=r"b\.xml: declares a document type or entities"):
        prepare(spec)
    assert time.monotonic() - started < 10


@pytest.mark.parametrize("name", ["../../etc/passwd", "/etc/passwd", "c.jpg", "..\\..\\x", "http://127.0.0.1:9/a.jpg"])
def test_D9_the_name_in_the_file_is_not_used(voc: Voc, spec: ExperimentSpec, name: str) -> None:
    voc.write("a", annotation(thing("cat", box(9, 9, 40, 40)), file_name=name))
    train = load_dataset(prepare(spec).folder.train_data)
    assert train.image_paths[0] == voc.root / "JPEGImages" / "a.jpg"


@pytest.mark.parametrize("line", ["../../../etc/passwd", "/etc/passwd", "../JPEGImages/a"])
def test_D9_a_line_of_an_image_set_cannot_lead_out(voc: Voc, spec: ExperimentSpec, line: str) -> None:
    (voc.root / "ImageSets" / "Main" / "train.txt").write_text(f"a\n{line}\n")
    with pytest.raises(DatasetError, match=r"1 of the 2 annotation files .* are missing"):
        prepare(spec)


def test_D9_a_wrong_size_is_found_before_training(voc: Voc, spec: ExperimentSpec) -> None:
    voc.write("b", annotation(thing("cat", box(9, 9, 40, 40)), size=(64, 63)))
    with pytest.raises(DatasetError, match=r"b\.jpg: is 64x64 pixels, the annotations say 64x63"):
        prepare(spec)


@pytest.mark.parametrize(
    ("corners", "problem"),
    [
        ((40, 9, 9, 40), "has swapped corners"),
        (("nan", 9, 40, 40), "needs a <bndbox> with four finite numbers"),
        (("", 9, 40, 40), "needs a <bndbox> with four finite numbers"),
        ((1, 9, 1e300, 40), "must lie within 1,000,000,000 px"),
    ],
)
def test_D9_boxes_that_cannot_be_are_named(voc: Voc, spec: ExperimentSpec, corners: tuple, problem: str) -> None:
    voc.write("a", annotation(thing("cat", box(9, 9, 40, 40)), thing("dog", box(*corners))))
    with pytest.raises(DatasetError, match=rf"a\.xml: object 2 \('dog'\): {problem}"):
        prepare(spec)


def test_D9_one_based_corners_fractions_and_missing_flags(voc: Voc, spec: ExperimentSpec, train_on: Callable) -> None:
    hard = thing("dog", box(1, 1, 64, 64), "<difficult>1</difficult>")
    voc.write("a", annotation(thing("cat", box(1, 1, 64, 64), ""), thing("dog", box(1.5, "2.25", 30, 40), "")))
    voc.write("c", annotation(thing("cat", box(9, 9, 40, 40)), hard))
    outcome = train_on(spec)
    train, val = (
        load_dataset(p)
        for p in (outcome.folder.train_data, outcome.folder.val_data(outcome.prepared.spec.validation_hash))
    )
    assert train.boxes_xywh.tolist() == [[0, 0, 64, 64], [0.5, 1.25, 29.5, 38.75], [8, 8, 32, 32]]
    assert not train.is_difficult.any()
    assert val.is_difficult.tolist() == [False, True]
    assert 0 <= outcome.metrics["val/VOC07_AP50"] <= 1
    table = DetectionTable(
        image_index=np.zeros(2, dtype=np.int64),
        labels=val.labels,
        boxes_xywh=val.boxes_xywh,
        scores=np.array([0.5, 0.9]),
    )
    found = voc_average_precision(val, table, iou=[0.5], points="11")
    assert found.mean_ap == (1.0,)  # neither for nor against: the mean leaves out the class of the difficult dog
