"""Generated photographs with COCO's annotations: as large, as detailed and as slow to decode as real ones."""

import json
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from detector.data.formats.coco import load_coco
from detector.data.samples import Dataset

PHOTO_SIZE = (640, 480)
"""Width and height that COCO's images have most often."""


def photograph(random: np.random.Generator, size: tuple[int, int]) -> NDArray[np.uint8]:
    """(H, W, 3) uint8: noise of all scales, the finer the weaker, as in pictures of nature."""
    width, height = size
    pixels = np.full((height, width, 3), 128.0, dtype=np.float32)
    # Files of 170 kB at quality 92; the average of COCO's is 160 to 190 kB.
    cells, strength = 4, 90.0
    while cells <= width:
        coarse = Image.fromarray(random.integers(0, 256, (cells * height // width + 1, cells, 3), dtype=np.uint8))
        layer = np.asarray(coarse.resize(size, Image.Resampling.BICUBIC), dtype=np.float32) / 255 - 0.5
        pixels += strength * layer
        cells, strength = 2 * cells, strength / 1.08
    return pixels.clip(0, 255).astype(np.uint8)


def make_photographs(folder: Path, count: int, size: tuple[int, int] = PHOTO_SIZE, seed: int = 0) -> Dataset:
    """Write JPEGs of quality 92 and their annotations, 7 boxes each, and open them as a user's data set."""
    images_folder = folder / "images"
    images_folder.mkdir(parents=True)
    random = np.random.default_rng(seed)
    images: list[dict[str, object]] = []
    annotations: list[dict[str, object]] = []
    for number in range(1, count + 1):
        name = f"{number:06d}.jpg"
        Image.fromarray(photograph(random, size)).save(images_folder / name, quality=92)
        images.append({"id": number, "file_name": name, "width": size[0], "height": size[1]})
        for _ in range(7):
            sides = np.exp(random.uniform(np.log(8), np.log(min(size) - 8), 2))
            corner = random.uniform(0, 1, 2) * (np.array(size) - sides)
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": number,
                    "category_id": int(random.integers(1, 81)),
                    "bbox": [round(float(value), 2) for value in (*corner, *sides)],
                    "area": round(float(sides.prod()), 2),
                    "iscrowd": 0,
                }
            )
    categories = [{"id": label, "name": f"class {label}"} for label in range(1, 81)]
    content = {"images": images, "annotations": annotations, "categories": categories}
    path = folder / "annotations.json"
    path.write_text(json.dumps(content))
    return load_coco(path, images_folder, None, "photographs")
