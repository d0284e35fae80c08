"""A generated data set: coloured shapes that overlap and hide one another, with soft edges, over clutter.

Six classes with an outline each and a hue they lean to, which is a hint and no proof; size, tilt, shading and texture
are random. Occlusion, blur and shadows leave the exact extent of many shapes in doubt, so that the IoU of good
detections ranges widely: that is what an IoU head is to predict. It needs no download, and a small detector learns it
within minutes on a CPU.

H, W image height and width, S samples a pixel side when drawing, V vertices. Image i of a split depends on
(seed, split, i) alone, so that a larger set contains the smaller one.
"""

import json
import math
import shutil
import uuid
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFilter

from detector.errors import ConfigError, DatasetError
from detector.files import write_json

VERSION = 3
"""Version of the pictures: raised with every change that alters them."""
CLASSES = ("ellipse", "rectangle", "triangle", "star", "ring", "cross")
SUPERSAMPLING = 3
"""S: shapes are drawn S times larger and averaged down, for smooth edges and boxes exact to 1/S px."""
SMALLEST, LARGEST = 0.16, 0.62
"""Side of a shape as a share of the image's long side: 26 to 99 px at 160."""
LARGEST_TILT = 0.5
"""Radians to either side."""
HUE_SPREAD = 0.25
"""Standard deviation of a shape's hue around its class's, in distances between neighbouring classes: one shape in
twenty is closer to another class's hue. With every hue at random, a ResNet-18 from scratch finds the shapes within
minutes but hardly tells them apart."""
MINIMUM_VISIBLE = 0.3
"""A shape of which less can be seen is not drawn, so that everything recognisable is annotated."""

Floats = NDArray[np.float32]


@dataclass(frozen=True)
class _Arguments:
    train_images: int
    val_images: int
    image_size: int
    seed: int
    version: int = VERSION


def generate_shapes(root: Path, *, train_images: int, val_images: int, image_size: int = 160, seed: int = 0) -> Path:
    """Writes the data set in COCO 2017's layout and returns `root`; does nothing where this very set lies there.

    `root/annotations/instances_{train,val}.json`, `root/{train,val}/000001.jpg` and so on. Boxes hold what is visible
    of a shape within the image, `area` is its visible area. The folder appears at once and whole, or not at all.

    Args:
        image_size: long side in px; the short side is 1 or 4/5 of it.

    Raises:
        ConfigError: an argument is out of range.
        DatasetError: `root` holds something else, which is left as it is.
    """
    for name, value, least in (
        ("train_images", train_images, 1),
        ("val_images", val_images, 1),
        ("image_size", image_size, 32),
        ("seed", seed, 0),
    ):
        if value < least:
            raise ConfigError(f"must be at least {least}", field=name, value=value)
    root = Path(root)
    arguments = asdict(_Arguments(train_images, val_images, image_size, seed))
    if _holds(root, arguments):
        return root
    root.parent.mkdir(parents=True, exist_ok=True)
    unfinished = root.parent / f".{root.name}-{uuid.uuid4().hex[:8]}"
    try:
        for split, count in (("train", train_images), ("val", val_images)):
            _write_split(unfinished, split, count, image_size, seed)
        write_json(unfinished / "generator.json", arguments, indent=2)
        try:
            unfinished.replace(root)
        except OSError:
            # Another process may have put the same set there meanwhile.
            if not _holds(root, arguments):
                raise
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)
    return root


def _holds(root: Path, arguments: dict[str, int]) -> bool:
    """Whether the folder holds this very set; False where it is missing or empty, an error for anything else."""
    if not root.exists() or (root.is_dir() and not any(root.iterdir())):
        return False
    try:
        found = json.loads((root / "generator.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        found = None
    if found != arguments:
        raise DatasetError(
            "holds something other than these generated shapes" if found is None else "holds other generated shapes",
            file=root,
            value=found,
            remedy="Name a new folder, or delete this one",
        )
    return True


def _write_split(root: Path, split: str, count: int, image_size: int, seed: int) -> None:
    (root / split).mkdir(parents=True)
    (root / "annotations").mkdir(exist_ok=True)
    images: list[dict[str, object]] = []
    annotations: list[dict[str, object]] = []
    for image_id in range(1, count + 1):
        random = np.random.default_rng([seed, ("train", "val").index(split), image_id])
        pixels, shapes = draw_image(random, image_size)
        name = f"{image_id:06d}.jpg"
        Image.fromarray(pixels).save(root / split / name, quality=92, subsampling=0)
        height, width = pixels.shape[:2]
        images.append({"id": image_id, "file_name": name, "width": width, "height": height})
        for shape in shapes:
            annotations.append({"id": len(annotations) + 1, "image_id": image_id, **shape, "iscrowd": 0})
    categories = [{"id": label + 1, "name": name, "supercategory": "shape"} for label, name in enumerate(CLASSES)]
    info = {"description": f"Generated shapes, {split}, seed {seed}, version {VERSION}"}
    contents = {"info": info, "images": images, "annotations": annotations, "categories": categories}
    write_json(root / "annotations" / f"instances_{split}.json", contents, non_finite="error")


@dataclass
class _Scene:
    """An image in the making."""

    pixels: Floats
    """(H, W, 3) RGB, 0 to 255."""
    owner: NDArray[np.int8]
    """(H S, W S) which shape is seen there, by order of drawing; -1 for none."""
    labels: list[int]
    whole: NDArray[np.int64]
    """Samples each shape covers, hidden or not, within the image or not."""
    visible: NDArray[np.int64]
    """Samples of each shape that can be seen."""


def draw_image(random: np.random.Generator, image_size: int) -> tuple[NDArray[np.uint8], list[dict[str, object]]]:
    """One picture, (H, W, 3) uint8 RGB, and its 2 to 7 shapes as COCO annotations without ids.

    Fewer, hardly ever none, where they find no room.
    """
    long, short = image_size, round(image_size * 0.8)
    height, width = ((long, long), (short, long), (long, short))[random.integers(3)]
    scene = _Scene(
        pixels=_background(random, height, width),
        owner=np.full((height * SUPERSAMPLING, width * SUPERSAMPLING), -1, dtype=np.int8),
        labels=[],
        whole=np.zeros(0, dtype=np.int64),
        visible=np.zeros(0, dtype=np.int64),
    )
    wanted = int(random.integers(2, 8))
    for _ in range(4 * wanted):
        if len(scene.labels) == wanted:
            break
        _try_to_add_shape(random, scene, image_size)
    noise = random.standard_normal(scene.pixels.shape, dtype=np.float32) * random.uniform(2, 5)
    pixels = (scene.pixels + noise).clip(0, 255).astype(np.uint8)
    return pixels, [_annotation(scene, shape) for shape in range(len(scene.labels))]


def _background(random: np.random.Generator, height: int, width: int) -> Floats:
    """(H, W, 3) a pale or dark gradient with soft clouds, faint stripes, lines and arcs: much to see, none to find."""
    side = max(height, width)
    brightness = random.uniform(0.3, 0.9)
    first, second, ink = (
        _colour(random, random.uniform(0, 6), (0.05, 0.35), (brightness - spread, brightness + spread))
        for spread in (0.1, 0.1, 0.3)
    )
    y, x = np.mgrid[0:height, 0:width].astype(np.float32) / side
    ramp = _ramp(random, x, y)[..., None]
    pixels = first * (1 - ramp) + second * ramp
    clouds = Image.fromarray(random.normal(128, 40, (6, 6, 3)).clip(0, 255).astype(np.uint8))
    clouds = clouds.resize((width, height), Image.Resampling.BICUBIC)
    pixels += (np.asarray(clouds, dtype=np.float32) - 128) * random.uniform(0.15, 0.45)
    for _ in range(random.integers(0, 3)):
        at_x, at_y, spread = random.uniform(0, 1), random.uniform(0, 1), random.uniform(0.08, 0.25)
        window = np.exp(-((x - at_x) ** 2 + (y - at_y) ** 2) / (2 * spread**2))
        waves = np.sin(_ramp(random, x, y) * random.uniform(60, 180))
        pixels += (window * waves * random.uniform(6, 20))[..., None]
    canvas = Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).resize((width * 2, height * 2))
    draw = ImageDraw.Draw(canvas)
    for _ in range(random.integers(3, 9)):
        shade = tuple(int(v) for v in ink * random.uniform(0.7, 1.3))
        thick = round(random.uniform(1, 4) * side / 160)
        (x1, x2), (y1, y2) = random.uniform(-0.3, 1.3, (2, 2)) * 2 * side
        if random.random() < 0.5:
            draw.line([(x1, y1), (x2, y2)], fill=shade, width=thick)
        else:
            box = (min(x1, x2), min(y1, y2), max(x1, x2), max(y1, y2))
            draw.arc(box, start=(start := random.uniform(0, 360)), end=start + 120, fill=shade, width=thick)
    canvas = canvas.reduce(2).filter(ImageFilter.GaussianBlur(random.uniform(0.3, 1.0) * side / 160))
    return np.asarray(canvas, dtype=np.float32).copy()


def _try_to_add_shape(random: np.random.Generator, scene: _Scene, image_size: int) -> None:
    """Draws one more shape on top, unless that would leave too little to see of it or of an earlier one."""
    height, width = scene.pixels.shape[:2]
    label = int(random.integers(len(CLASSES)))
    side = image_size * math.exp(random.uniform(math.log(SMALLEST), math.log(LARGEST)))
    centre = random.uniform(0.08, 0.92, 2) * (width, height)
    softness = random.uniform(0.3, 1.6) * image_size / 160
    margin = math.ceil(6 * image_size / 160)
    outline = _outline(random, CLASSES[label])
    outline = outline * (side / np.ptp(outline, axis=0).max()) + centre
    left, top = (np.floor(outline.min(axis=0)) - margin).astype(int)
    right, bottom = (np.ceil(outline.max(axis=0)) + margin).astype(int)

    canvas = Image.new("1", ((right - left) * SUPERSAMPLING, (bottom - top) * SUPERSAMPLING))
    draw = ImageDraw.Draw(canvas)
    vertices = (outline - (left, top)) * SUPERSAMPLING
    draw.polygon([tuple(p) for p in vertices.tolist()], fill=1)
    if CLASSES[label] == "ring":
        middle = (vertices.min(axis=0) + vertices.max(axis=0)) / 2
        hole = middle + (vertices - middle) * random.uniform(0.45, 0.6)
        draw.polygon([tuple(p) for p in hole.tolist()], fill=0)
    covered = np.asarray(canvas)

    # From here on the part of the shape's patch that lies within the image.
    x1, y1, x2, y2 = max(left, 0), max(top, 0), min(right, width), min(bottom, height)
    inside = (slice(y1 - top, y2 - top), slice(x1 - left, x2 - left))
    inside_samples = tuple(slice(s.start * SUPERSAMPLING, s.stop * SUPERSAMPLING) for s in inside)
    visible = covered[inside_samples]
    owner = scene.owner[y1 * SUPERSAMPLING : y2 * SUPERSAMPLING, x1 * SUPERSAMPLING : x2 * SUPERSAMPLING]
    newly_hidden = np.bincount(owner[visible] + 1, minlength=len(scene.labels) + 1)[1:]
    whole_now = np.append(scene.whole, np.count_nonzero(covered))
    visible_now = np.append(scene.visible - newly_hidden, np.count_nonzero(visible))
    if (visible_now < MINIMUM_VISIBLE * whole_now).any():
        return
    owner[visible] = len(scene.labels)
    scene.labels.append(label)
    scene.whole, scene.visible = whole_now, visible_now

    grid = (bottom - top, SUPERSAMPLING, right - left, SUPERSAMPLING)
    alpha = covered.reshape(grid).mean(axis=(1, 3), dtype=np.float32)
    opaque = _blurred(alpha, softness)[inside][..., None]
    shift = max(1, round(1.5 * image_size / 160))
    shadow = np.roll(_blurred(alpha, 2 * image_size / 160), (shift, shift), axis=(0, 1))[inside][..., None]
    patch = scene.pixels[y1:y2, x1:x2]
    behind = (patch * opaque).sum(axis=(0, 1)) / max(float(opaque.sum()), 1e-6)
    paint = _paint(random, label, patch.shape[:2], behind, image_size)
    patch *= 1 - random.uniform(0.15, 0.45) * shadow
    patch += (paint - patch) * opaque


def _outline(random: np.random.Generator, name: str) -> NDArray[np.float64]:
    """(V, 2) the vertices of a shape of about unit size around the origin, tilted at random."""
    if name in ("ellipse", "ring"):
        vertices = _polygon(np.ones(64)) * (1, random.uniform(0.6 if name == "ellipse" else 0.8, 1))
    elif name == "rectangle":
        vertices = np.array([(-1, -1), (1, -1), (1, 1), (-1, 1)]) * (1, random.uniform(0.5, 1))
    elif name == "triangle":
        vertices = _polygon(np.ones(3)) * (1, random.uniform(0.75, 1.2))
    elif name == "star":
        vertices = _polygon(np.tile([1, random.uniform(0.4, 0.5)], 5))
    else:
        arm = random.uniform(0.26, 0.38)
        quarter = np.array([(arm, arm), (arm, 1), (-arm, 1)])
        turn = np.array([(0, 1), (-1, 0)])
        vertices = np.concatenate([quarter @ np.linalg.matrix_power(turn, k) for k in range(4)])
    angle = random.uniform(-LARGEST_TILT, LARGEST_TILT)
    rotation = np.array([(math.cos(angle), math.sin(angle)), (-math.sin(angle), math.cos(angle))])
    return vertices @ rotation


def _polygon(radii: NDArray[np.float64]) -> NDArray[np.float64]:
    angles = np.linspace(0, 2 * math.pi, len(radii), endpoint=False)
    return radii[:, None] * np.stack([np.sin(angles), -np.cos(angles)], axis=1)


def _paint(random: np.random.Generator, label: int, shape: tuple[int, int], behind: Floats, image_size: int) -> Floats:
    """(h, w, 3) the class's colour, shaded and sometimes striped, that stands out from the mean colour behind it."""
    for _ in range(5):
        hue = 6 / len(CLASSES) * (label + random.normal(0, HUE_SPREAD))
        colour = _colour(random, hue, (0.4, 0.85), (0.55, 1.0))
        if np.linalg.norm(colour - behind) > 90:
            break
    height, width = shape
    y, x = np.mgrid[0:height, 0:width].astype(np.float32)
    ramp = _ramp(random, x, y)
    shade = 0.85 + 0.3 * (ramp - ramp.min()) / max(float(np.ptp(ramp)), 1e-6)
    if random.random() < 0.2:
        shade = shade * (1 + 0.15 * np.sin(_ramp(random, x, y) * 160 / image_size * random.uniform(0.6, 1.5)))
    return np.asarray(colour * shade[..., None], dtype=np.float32).clip(0, 255)


def _ramp(random: np.random.Generator, x: Floats, y: Floats) -> Floats:
    angle = random.uniform(0, 2 * math.pi)
    return np.float32(math.cos(angle)) * x + np.float32(math.sin(angle)) * y


def _colour(
    random: np.random.Generator, hue: float, saturation: tuple[float, float], value: tuple[float, float]
) -> Floats:
    """(3,) RGB, 0 to 255, of a hue given in sixths of the circle; 0 is red."""
    amount, bright = random.uniform(*saturation), random.uniform(*value)
    distance = np.abs((hue - np.array([0.0, 2.0, 4.0]) + 3) % 6 - 3)
    return (255 * bright * (1 - amount * (distance - 1).clip(0, 1))).astype(np.float32)


def _blurred(alpha: Floats, radius: float) -> Floats:
    smooth = Image.fromarray((alpha * 255).astype(np.uint8)).filter(ImageFilter.GaussianBlur(radius))
    return np.asarray(smooth, dtype=np.float32) / np.float32(255)


def _annotation(scene: _Scene, shape: int) -> dict[str, object]:
    """The visible part's box (in px, to 1/S) and area."""
    visible = scene.owner == shape
    # Opening by 3 x 3 samples (1 px): a thinner sliver next to an occluder cannot be made out, and must not stretch the
    # box. In tiny pictures a whole ring may be thinner.
    core = _over_three(_over_three(visible, np.logical_and), np.logical_or)
    core = core if core.any() else visible
    columns, rows = np.flatnonzero(core.any(axis=0)), np.flatnonzero(core.any(axis=1))
    x1, y1, x2, y2 = columns[0], rows[0], columns[-1] + 1, rows[-1] + 1
    return {
        "category_id": scene.labels[shape] + 1,
        "bbox": [round(float(v) / SUPERSAMPLING, 2) for v in (x1, y1, x2 - x1, y2 - y1)],
        "area": round(int(scene.visible[shape]) / SUPERSAMPLING**2, 2),
    }


def _over_three(mask: NDArray[np.bool_], combine: np.ufunc) -> NDArray[np.bool_]:
    """Combines each sample with its 8 neighbours; at the border it stands for those outside."""
    padded = np.pad(mask, 1, mode="edge")
    rows = combine(combine(padded[:-2], padded[1:-1]), padded[2:])
    return np.asarray(combine(combine(rows[:, :-2], rows[:, 1:-1]), rows[:, 2:]))
