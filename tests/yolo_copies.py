"""Copies of COCO data sets in YOLO's layout, made from what the files say and not by the product's reader."""

import json
import shutil
from collections import defaultdict
from pathlib import Path


def copy_as_yolo(coco: Path, yolo: Path, splits: tuple[str, ...] = ("train", "val")) -> Path:
    """Write images/, labels/ and data.yaml for a folder in COCO's layout; coordinates with all their digits."""
    names: list[str] = []
    for split in splits:
        content = json.loads((coco / "annotations" / f"instances_{split}.json").read_text())
        categories = sorted(content["categories"], key=lambda category: category["id"])
        names = [category["name"] for category in categories]
        number_of = {category["id"]: number for number, category in enumerate(categories)}
        lines: dict[int, list[str]] = defaultdict(list)
        size_of = {image["id"]: (image["width"], image["height"]) for image in content["images"]}
        for annotation in content["annotations"]:
            width, height = size_of[annotation["image_id"]]
            x, y, w, h = annotation["bbox"]
            box = ((x + w / 2) / width, (y + h / 2) / height, w / width, h / height)
            number = number_of[annotation["category_id"]]
            lines[annotation["image_id"]].append(" ".join(map(repr, (number, *box))))
        for folder in ("images", "labels"):
            (yolo / folder / split).mkdir(parents=True, exist_ok=True)
        for image in content["images"]:
            file = Path(image["file_name"])
            shutil.copy(coco / split / file, yolo / "images" / split / file)
            if lines[image["id"]]:
                (yolo / "labels" / split / f"{file.stem}.txt").write_text("\n".join(lines[image["id"]]) + "\n")
    described = [f"{split}: images/{split}" for split in splits]
    (yolo / "data.yaml").write_text("\n".join([*described, f"nc: {len(names)}", f"names: {names}", ""]))
    return yolo
