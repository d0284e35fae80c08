"""Small data sets in COCO's layout whose images and entries a test chooses, and whole runs on them."""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from detector.config import DataConfig
from runyard.reports.run_plots import make_reports
from runyard.runs.folder import RunFolder
from runyard.runs.prepare import PreparedRun, prepare
from runyard.spec import ExperimentSpec, SourceConfig
from runyard.tracking.outcome import journaled
from runyard.training.launch import launch

CATEGORIES = ({"id": 1, "name": "cat"}, {"id": 2, "name": "dog"})
BOX = {"category_id": 1, "bbox": [8, 8, 30, 30]}


def _picture(width: int = 64, height: int = 64, seed: int = 0) -> Image.Image:
    """Noise."""
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8))


@dataclass
class Split:
    """Images in the order of their entries, with ids from `first_id` on."""

    folder: Path
    first_id: int = 1
    content: dict[str, Any] = field(default_factory=lambda: {"images": [], "annotations": [], "categories": CATEGORIES})

    def add(
        self,
        name: str,
        picture: Image.Image | bytes | None = None,
        *,
        size: tuple[int, int] | None = None,
        boxes: Sequence[dict[str, Any]] = (BOX,),
        **options: Any,
    ) -> Path:
        """Writes an image, as its suffix says unless `options` have a format, with its entry and annotations."""
        picture = _picture() if picture is None else picture
        path = self.folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if isinstance(picture, bytes):
            path.write_bytes(picture)
        else:
            picture.save(path, **options)
        size = size or (picture.size if isinstance(picture, Image.Image) else (64, 64))
        image_id = self.first_id + len(self.content["images"])
        self.content["images"].append({"id": image_id, "file_name": name, "width": size[0], "height": size[1]})
        for box in boxes:
            annotation_id = self.first_id + len(self.content["annotations"])
            self.content["annotations"].append({"id": annotation_id, "image_id": image_id, **box})
        return path


@dataclass
class Data:
    """A data set of two splits; `write` before a run."""

    root: Path
    train: Split
    val: Split

    @property
    def file(self) -> Path:
        """The training annotations."""
        return self.root / "annotations" / "instances_train.json"

    def write(self) -> Path:
        self.file.parent.mkdir(exist_ok=True)
        self.file.write_text(json.dumps(self.train.content))
        self.file.with_name("instances_val.json").write_text(json.dumps(self.val.content))
        return self.root


@pytest.fixture
def picture() -> Callable[..., Image.Image]:
    return _picture


@pytest.fixture
def data(tmp_path: Path) -> Data:
    """Two sound training images and one to validate on, to add to."""
    root = tmp_path / "odd"
    made = Data(root, Split(root / "train"), Split(root / "val"))
    for name in ("sound-1.png", "sound-2.png"):
        made.train.add(name)
    made.val.add("sound.png")
    return made


@pytest.fixture
def spec_of(tiny_spec: ExperimentSpec) -> Callable[..., ExperimentSpec]:
    """The spec of a run of one epoch of all images; arguments are fields of its DataConfig."""

    def make(data: Data, **fields: Any) -> ExperimentSpec:
        config = DataConfig(short_side_px=64, long_side_px=64, min_image_side_px=1, **fields)
        optim = replace(tiny_spec.optim, epochs=1, milestones=(), batch_size=4)
        return replace(tiny_spec, data=config, source=SourceConfig(data=data.write()), optim=optim)

    return make


@dataclass(frozen=True)
class Outcome:
    """A finished run."""

    prepared: PreparedRun
    metrics: dict[str, Any]

    @property
    def folder(self) -> RunFolder:
        return self.prepared.folder

    @property
    def detections(self) -> list[dict[str, Any]]:
        return json.loads(self.folder.evaluation(self.prepared.spec.scoring_hash).detections.read_text())


@pytest.fixture
def train_on() -> Callable[[ExperimentSpec], Outcome]:
    """Prepares, trains, evaluates and draws, as the driver does with the plain launcher."""

    def run(spec: ExperimentSpec) -> Outcome:
        prepared = prepare(spec)
        folder = prepared.folder
        with journaled(folder.journal, prepared.spec, (folder.spec, folder.manifest)) as artifacts:
            metrics = launch(prepared.spec, folder, "local")
            artifacts += make_reports(prepared.spec, folder)
        return Outcome(prepared, metrics)

    return run
