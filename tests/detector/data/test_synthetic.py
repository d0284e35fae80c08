"""The generated data set: exact boxes, seeded per image, whole or absent."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from detector.data import synthetic as shapes
from detector.data.synthetic import CLASSES, draw_image, generate_shapes
from detector.errors import ConfigError, DatasetError


def read(root: Path, split: str) -> dict:
    return json.loads((root / "annotations" / f"instances_{split}.json").read_text())


def contents(root: Path) -> dict[str, bytes]:
    return {str(f.relative_to(root)): f.read_bytes() for f in sorted(root.rglob("*")) if f.is_file()}


@pytest.fixture(scope="module")
def generated(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return generate_shapes(tmp_path_factory.mktemp("shapes") / "set", train_images=12, val_images=5, seed=3)


def test_the_layout_is_coco_2017s(generated: Path) -> None:
    for split, count in (("train", 12), ("val", 5)):
        data = read(generated, split)
        assert [image["id"] for image in data["images"]] == list(range(1, count + 1))
        assert [a["id"] for a in data["annotations"]] == list(range(1, len(data["annotations"]) + 1))
        assert [c["name"] for c in data["categories"]] == list(CLASSES)
        for image in data["images"]:
            with Image.open(generated / split / image["file_name"]) as file:
                assert file.size == (image["width"], image["height"])
                assert max(file.size) == 160
    assert not [f for f in generated.parent.iterdir() if f != generated]


def test_boxes_lie_in_the_image_and_hold_their_area(generated: Path) -> None:
    data = read(generated, "train")
    sizes = {image["id"]: (image["width"], image["height"]) for image in data["images"]}
    assert len(data["annotations"]) >= 2 * len(sizes)
    for annotation in data["annotations"]:
        x, y, w, h = annotation["bbox"]
        width, height = sizes[annotation["image_id"]]
        assert x >= 0
        assert y >= 0
        assert x + w <= width + 0.01
        assert y + h <= height + 0.01
        assert min(w, h) > 2
        # The opening trims at most a sample on each side of what counts as area.
        assert 0 < annotation["area"] <= (w + 1) * (h + 1)
        assert annotation["iscrowd"] == 0


def test_a_box_is_tight_around_what_is_visible(monkeypatch: pytest.MonkeyPatch) -> None:
    scene = shapes._Scene(
        pixels=np.zeros((20, 30, 3), dtype=np.float32),
        owner=np.full((60, 90), -1, dtype=np.int8),
        labels=[1],
        whole=np.array([30 * 27]),
        visible=np.array([18 * 27]),
    )
    scene.owner[6:33, 9:39] = 0  # 10 x 9 px at (3, 2)
    scene.owner[6:33, 27:38] = -1  # hidden but for a sliver one sample wide
    found = shapes._annotation(scene, 0)
    assert found == {"category_id": 2, "bbox": [3.0, 2.0, 6.0, 9.0], "area": 54.0}


def test_nothing_annotated_is_mostly_hidden(monkeypatch: pytest.MonkeyPatch) -> None:
    scenes: list[shapes._Scene] = []
    real = shapes._annotation
    monkeypatch.setattr(shapes, "_annotation", lambda scene, shape: (scenes.append(scene), real(scene, shape))[1])
    for seed in range(30):
        draw_image(np.random.default_rng(seed), 96)
    for scene in scenes:
        counted = np.bincount(scene.owner.ravel() + 1, minlength=len(scene.labels) + 1)[1:]
        assert counted.tolist() == scene.visible.tolist()
        assert (scene.visible >= 0.3 * scene.whole).all()


def test_every_class_and_many_sizes_come_up() -> None:
    drawn = [shape for seed in range(60) for shape in draw_image(np.random.default_rng(seed), 160)[1]]
    assert {shape["category_id"] for shape in drawn} == {1, 2, 3, 4, 5, 6}
    sides = np.array([max(shape["bbox"][2:]) for shape in drawn])
    assert (sides < 32).mean() > 0.15
    assert (sides > 60).mean() > 0.1
    assert sides.max() <= 100


def test_an_image_depends_on_seed_split_and_number_alone(generated: Path, tmp_path: Path) -> None:
    same = contents(generate_shapes(tmp_path / "same", train_images=12, val_images=5, seed=3))
    assert same == contents(generated)
    larger = contents(generate_shapes(tmp_path / "larger", train_images=13, val_images=6, seed=3))
    assert {name: data for name, data in same.items() if name.endswith(".jpg")}.items() <= larger.items()
    other = contents(generate_shapes(tmp_path / "other", train_images=1, val_images=1, seed=4))
    assert other["train/000001.jpg"] != same["train/000001.jpg"]
    assert same["train/000001.jpg"] != same["val/000001.jpg"]


def test_the_same_call_again_does_nothing(generated: Path) -> None:
    before = {f: f.stat().st_mtime_ns for f in generated.rglob("*")}
    assert generate_shapes(generated, train_images=12, val_images=5, seed=3) == generated
    assert {f: f.stat().st_mtime_ns for f in generated.rglob("*")} == before


def test_a_folder_with_anything_else_is_refused_and_left_alone(generated: Path, tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match=r"holds other generated shapes .*'seed': 3.* Name a new folder"):
        generate_shapes(generated, train_images=12, val_images=5, seed=4)
    (tmp_path / "thesis.txt").write_text("years of work")
    with pytest.raises(DatasetError, match="something other than these generated shapes"):
        generate_shapes(tmp_path, train_images=1, val_images=1)
    assert contents(tmp_path) == {"thesis.txt": b"years of work"}


def test_an_interrupted_generation_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full_disk(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    root = tmp_path / "new" / "set"
    monkeypatch.setattr(Image.Image, "save", full_disk)
    with pytest.raises(OSError, match="No space"):
        generate_shapes(root, train_images=2, val_images=1)
    assert list(root.parent.iterdir()) == []


def test_losing_the_race_to_the_same_set_is_no_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = tmp_path / "set"
    real = Path.replace

    def replace_after_another_did(self: Path, target: Path) -> Path:
        monkeypatch.setattr(Path, "replace", real)
        generate_shapes(root, train_images=1, val_images=1)
        return real(self, target)

    monkeypatch.setattr(Path, "replace", replace_after_another_did)
    assert generate_shapes(root, train_images=1, val_images=1) == root
    assert list(tmp_path.iterdir()) == [root]


@pytest.mark.parametrize(("name", "value"), [("train_images", 0), ("val_images", -1), ("image_size", 8), ("seed", -1)])
def test_arguments_out_of_range_are_named(tmp_path: Path, name: str, value: int) -> None:
    arguments = {"train_images": 1, "val_images": 1, "image_size": 64, "seed": 0, name: value}
    with pytest.raises(ConfigError, match=rf"{name}: must be at least \d+ \(found {value}\)"):
        generate_shapes(tmp_path / "set", **arguments)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("image_size", [32, 320])
def test_other_sizes_are_drawn_to_scale(image_size: int) -> None:
    pixels, found = draw_image(np.random.default_rng(0), image_size)
    assert max(pixels.shape) == image_size
    assert pixels.dtype == np.uint8
    assert len(found) >= 1
