"""Images of a data set with ground truth and detections drawn on them, as one PNG.

Ground truth is dashed, detections are solid and carry label and score; a class has one colour in both.
"""

import colorsys
import io
from functools import lru_cache
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from detector.data.images import read_image
from detector.data.samples import Dataset
from detector.evaluation.results import DetectionTable
from detector.files import write_bytes
from runyard.reports.style import TEXT_COLOUR

_TILE = 480
_GAP = 14
_CAPTION = 26
_HEADER = 40
_HEADER_WIDTH = 480
_DASH = 9
_OUTSIDE = 10  # pixels, more than any line is wide
# Bright ones first: they stand out on photographs, and colour-blind readers can tell them apart (Okabe and Ito).
_CLASS_COLOURS = ("#E69F00", "#56B4E9", "#F0E442", "#D55E00", "#CC79A7", "#00B386")
_CROWD_COLOUR = "#9E9E9E"
_MAX_CAPTION_CHARACTERS = 34


def draw_gallery(
    dataset: Dataset,
    table: DetectionTable,
    path: Path,
    *,
    images: int = 9,
    score_threshold: float | None = None,
    most_detections: int = 15,
) -> Path:
    """Draw some images in a grid and give the path back.

    Args:
        images: how many, spread evenly over the images that have ground truth (over all where none has); a data set
            with fewer gives fewer, an empty one a sheet without images.
        score_threshold: detections below it are left out; the captions count what is shown. None: where there are as
            many detections in the data set as objects, which suits any confidence, however small its scores.
        most_detections: the best ones of each image.

    Raises DatasetError for an image that cannot be read.
    """
    if score_threshold is None:
        score_threshold = _as_many_as_objects(dataset, table)
    chosen = _spread(dataset, images)
    tiles, captions = [], []
    for index in chosen:
        shown = _detections_of(table, index, score_threshold, most_detections)
        tiles.append(_draw_tile(dataset, table, index, shown))
        objects = int((~dataset.is_crowd[dataset.rows(index)]).sum())
        name = dataset.image_paths[index].name
        name = name if len(name) <= _MAX_CAPTION_CHARACTERS else f"{name[: _MAX_CAPTION_CHARACTERS - 1]}…"
        captions.append(f"{name}   objects: {objects}, detections: {len(shown)}")
    columns = max(1, int(np.ceil(np.sqrt(len(chosen)))))
    heights = [max(tile.height for tile in tiles[start : start + columns]) for start in range(0, len(tiles), columns)]
    width = max(_GAP + columns * (_TILE + _GAP), _HEADER_WIDTH)
    sheet = Image.new("RGB", (width, _HEADER + sum(height + _CAPTION + _GAP for height in heights)), "white")
    canvas = ImageDraw.Draw(sheet)
    _draw_header(canvas, score_threshold)
    y = _HEADER
    for row, height in enumerate(heights):
        for column, place in enumerate(range(row * columns, min((row + 1) * columns, len(tiles)))):
            tile = tiles[place]
            x = _GAP + column * (_TILE + _GAP)
            sheet.paste(tile, (x + (_TILE - tile.width) // 2, y + height - tile.height))
            canvas.text((x + _TILE / 2, y + height + 5), captions[place], TEXT_COLOUR, _font(13), anchor="ma")
        y += height + _CAPTION + _GAP
    content = io.BytesIO()
    sheet.save(content, format="png")
    write_bytes(path, content.getvalue())
    return path


def class_colour(label: int) -> str:
    """The colour of a class: six chosen ones first, then hues that turn by the golden ratio."""
    if label < len(_CLASS_COLOURS):
        return _CLASS_COLOURS[label]
    red, green, blue = colorsys.hsv_to_rgb(label * 0.618033988749895 % 1.0, 0.75, 0.95)
    return f"#{round(255 * red):02X}{round(255 * green):02X}{round(255 * blue):02X}"


def _spread(dataset: Dataset, count: int) -> list[int]:
    with_objects = np.flatnonzero(dataset.offsets[1:] > dataset.offsets[:-1])
    candidates = with_objects if len(with_objects) else np.arange(len(dataset))
    if len(candidates) <= count:
        return [int(index) for index in candidates]
    return [int(candidates[place * len(candidates) // count]) for place in range(count)]


def _as_many_as_objects(dataset: Dataset, table: DetectionTable) -> float:
    """The score that as many detections reach as there are single objects; 0 where there are fewer detections."""
    objects = int((~dataset.is_crowd).sum())
    return float(np.sort(table.scores)[-objects]) if 0 < objects <= len(table) else 0.0


def _detections_of(table: DetectionTable, image: int, threshold: float, most: int) -> NDArray[np.int64]:
    rows = np.flatnonzero((table.image_index == image) & (table.scores >= threshold))
    return rows[np.argsort(-table.scores[rows], kind="stable")][:most]


def _draw_tile(dataset: Dataset, table: DetectionTable, index: int, shown: NDArray[np.int64]) -> Image.Image:
    height, width = dataset.image_sizes[index].tolist()
    pixels = read_image(dataset.image_paths[index], (height, width)).permute(1, 2, 0).contiguous().numpy()
    photograph = Image.fromarray(pixels)
    scale = _TILE / max(photograph.size)
    size = (max(1, round(photograph.width * scale)), max(1, round(photograph.height * scale)))
    tile = photograph.resize(size, Image.Resampling.LANCZOS if scale < 1 else Image.Resampling.BICUBIC)
    canvas = ImageDraw.Draw(tile)
    rows = dataset.rows(index)
    for box, label, crowd in zip(dataset.boxes_xywh[rows], dataset.labels[rows], dataset.is_crowd[rows], strict=True):
        corners = _corners(box, scale, size)
        colour = _CROWD_COLOUR if crowd else class_colour(int(label))
        canvas.rectangle(corners, outline="black", width=3)
        _dashed_rectangle(canvas, corners, colour)
    # The best come last, on top; a dark rim keeps every colour visible on every photograph.
    for row in shown[::-1]:
        left, top, right, bottom = _corners(table.boxes_xywh[row], scale, size)
        canvas.rectangle((left - 1, top - 1, right + 1, bottom + 1), outline="black", width=5)
        canvas.rectangle((left, top, right, bottom), outline=class_colour(int(table.labels[row])), width=3)
    for row in shown[::-1]:
        label = int(table.labels[row])
        text = f"{dataset.class_names[label]} {table.scores[row]:.2f}"
        _draw_chip(canvas, tile.size, _corners(table.boxes_xywh[row], scale, size), text, class_colour(label))
    return tile


def _corners(box_xywh: NDArray[np.float64], scale: float, size: tuple[int, int]) -> tuple[float, float, float, float]:
    """In the tile's pixels, `size` of them; a side outside them lies just outside: long lines take long to draw."""
    x, y, width, height = (float(value) * scale for value in box_xywh)
    corners = (x, y, x + max(width, 1.0), y + max(height, 1.0))
    left, top, right, bottom = np.clip(corners, -_OUTSIDE, np.array([*size, *size]) + _OUTSIDE).tolist()
    return left, top, right, bottom


def _dashed_rectangle(canvas: ImageDraw.ImageDraw, corners: tuple[float, float, float, float], colour: str) -> None:
    left, top, right, bottom = corners
    for start in np.arange(left, right, 2 * _DASH):
        end = min(start + _DASH, right)
        canvas.line([(start, top + 1), (end, top + 1)], colour, 3)
        canvas.line([(start, bottom - 1), (end, bottom - 1)], colour, 3)
    for start in np.arange(top, bottom, 2 * _DASH):
        end = min(start + _DASH, bottom)
        canvas.line([(left + 1, start), (left + 1, end)], colour, 3)
        canvas.line([(right - 1, start), (right - 1, end)], colour, 3)


def _draw_chip(
    canvas: ImageDraw.ImageDraw,
    size: tuple[int, int],
    corners: tuple[float, float, float, float],
    text: str,
    colour: str,
) -> None:
    """A label above the box, or inside it where the image ends; black or white by the colour's lightness."""
    font = _font(13)
    width, height = canvas.textlength(text, font) + 8, 18
    x = min(max(corners[0], 0.0), max(size[0] - width, 0.0))
    y = corners[1] - height if corners[1] >= height else max(corners[1], 0.0)
    red, green, blue = (int(colour[place : place + 2], 16) for place in (1, 3, 5))
    light = 0.299 * red + 0.587 * green + 0.114 * blue > 140
    canvas.rectangle((x, y, x + width, y + height), fill=colour)
    canvas.text((x + 4, y + height / 2), text, "black" if light else "white", font, anchor="lm")


def _draw_header(canvas: ImageDraw.ImageDraw, score_threshold: float) -> None:
    font = _font(15)
    _dashed_rectangle(canvas, (_GAP, 12, _GAP + 46, 30), TEXT_COLOUR)
    canvas.text((_GAP + 56, 21), "ground truth", TEXT_COLOUR, font, anchor="lm")
    canvas.rectangle((_GAP + 180, 12, _GAP + 226, 30), outline=TEXT_COLOUR, width=3)
    text = f"detection, score ≥ {score_threshold:.2f}"
    canvas.text((_GAP + 236, 21), text, TEXT_COLOUR, font, anchor="lm")


@lru_cache
def _font(size: int) -> ImageFont.FreeTypeFont:
    # Pillow brings Latin letters only; matplotlib brings DejaVu, which has most scripts that class names use.
    import matplotlib

    return ImageFont.truetype(str(Path(matplotlib.get_data_path()) / "fonts" / "ttf" / "DejaVuSans.ttf"), size)
