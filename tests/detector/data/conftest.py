"""Small data sets written to disk, to be spoilt by each test in its own way."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image


def _picture(path: Path, width: int = 40, height: int = 30, seed: int = 0) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)).save(path)


@pytest.fixture
def picture() -> Callable[..., None]:
    """Writes a noisy picture of 40 x 30 px."""
    return _picture


@pytest.fixture
def coco() -> dict[str, Any]:
    """Three images, the last without boxes; ids with gaps, from 0, unsorted; an unused super-category."""
    return {
        "images": [
            {"id": 7, "file_name": "a.png", "width": 40, "height": 30},
            {"id": 0, "file_name": "b.png", "width": 40, "height": 30},
            {"id": 12, "file_name": "c.png", "width": 40, "height": 30},
        ],
        "annotations": [
            {"id": 5, "image_id": 0, "category_id": 9, "bbox": [1, 2, 10, 5], "area": 33.5, "iscrowd": 0},
            {"id": 0, "image_id": 7, "category_id": 2, "bbox": [0.5, 0.5, 4, 4]},
            {"id": 3, "image_id": 0, "category_id": 2, "bbox": [3, 3, 20, 20], "area": 400, "iscrowd": 1},
        ],
        "categories": [
            {"id": 9, "name": "zebra", "supercategory": "animals"},
            {"id": 0, "name": "animals", "supercategory": "none"},
            {"id": 2, "name": "cow", "supercategory": "animals"},
        ],
    }


@pytest.fixture
def write_coco(tmp_path: Path) -> Callable[..., tuple[Path, Path]]:
    """Writes the JSON and, once, the pictures it names; gives the paths of the file and of the pictures' folder."""

    def write(content: Any, name: str = "instances.json") -> tuple[Path, Path]:
        file, images = tmp_path / name, tmp_path / "images"
        file.write_text(content if isinstance(content, str) else json.dumps(content), encoding="utf-8")
        for letter in "abc":
            if not (images / f"{letter}.png").exists():
                _picture(images / f"{letter}.png")
        return file, images

    return write


@pytest.fixture
def voc_xml() -> Callable[..., str]:
    """The text of an annotation file with the given objects: (name, corners, difficult or None)."""

    def text(
        *objects: tuple[str, tuple[Any, Any, Any, Any], int | None], size: tuple[Any, Any] | None = (40, 30)
    ) -> str:
        parts = ["<annotation><filename>../../etc/passwd</filename>"]
        if size is not None:
            parts.append(f"<size><width>{size[0]}</width><height>{size[1]}</height><depth>3</depth></size>")
        for name, corners, difficult in objects:
            tags = zip(("xmin", "ymin", "xmax", "ymax"), corners, strict=True)
            box = "".join(f"<{tag}>{value}</{tag}>" for tag, value in tags)
            flag = "" if difficult is None else f"<difficult>{difficult}</difficult>"
            parts.append(f"<object><name>{name}</name>{flag}<bndbox>{box}</bndbox></object>")
        return "".join([*parts, "</annotation>"])

    return text


@pytest.fixture
def write_voc() -> Callable[..., Path]:
    """Writes a folder of VOC form: XML texts by stem, with a picture each, and image sets by name."""

    def write(tree: Path, annotations: dict[str, str], image_sets: dict[str, str]) -> Path:
        (tree / "ImageSets" / "Main").mkdir(parents=True, exist_ok=True)
        (tree / "Annotations").mkdir(exist_ok=True)
        for stem, xml in annotations.items():
            (tree / "Annotations" / f"{stem}.xml").write_text(xml, encoding="utf-8")
            _picture(tree / "JPEGImages" / f"{stem}.jpg")
        for set_name, lines in image_sets.items():
            (tree / "ImageSets" / "Main" / f"{set_name}.txt").write_text(lines, encoding="utf-8")
        return tree

    return write
