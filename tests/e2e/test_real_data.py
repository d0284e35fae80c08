"""Real photographs through the real training loop; minutes long."""

import json
from pathlib import Path

import pytest

from detector.config import BackboneConfig, DataConfig, OptimConfig, RetinaNetConfig
from runyard.driver.run import run_one
from runyard.spec import ExperimentSpec, RuntimeConfig, SourceConfig
from runyard.tracking.journal import effective_metrics

pytestmark = pytest.mark.slow

ROOT = Path(__file__).resolve().parents[2]
RUNTIME_ENV = {"env_vars": {"PYTHONPATH": f"{ROOT / 'platform'}:{ROOT}"}}

MODEL = RetinaNetConfig(
    backbone=BackboneConfig(name="resnet18", weights="none"), fpn_channels=64, tower_depth=1, tower_norm="group"
)


@pytest.mark.timeout(1800)
def test_sixteen_photographs_are_overfitted(shared_data: Path, tmp_path: Path) -> None:
    annotations = few_large_objects(shared_data / "aquarium" / "train" / "_annotations.coco.json", 16)
    (tmp_path / "sixteen.json").write_text(json.dumps(annotations))
    images = shared_data / "aquarium" / "train"
    spec = ExperimentSpec(
        recipe="overfit",
        model=MODEL,
        optim=OptimConfig(
            optimizer="adamw", learning_rate=1e-3, reference_batch_size=4, batch_size=4, epochs=80,
            milestones=(70,), warmup_steps=20,
        ),
        data=DataConfig(short_side_px=192, long_side_px=256),
        source=SourceConfig(
            train_annotations=tmp_path / "sixteen.json", train_images=images,
            val_annotations=tmp_path / "sixteen.json", val_images=images,
        ),
        runtime=RuntimeConfig(storage=tmp_path / "runs", log_every_steps=4),
    )  # fmt: skip
    outcome = run_one(spec, launcher="local")
    assert outcome.metrics["val/images"] == 16
    assert outcome.metrics["val/AP50"] > 0.9


@pytest.mark.ray
@pytest.mark.timeout(1800)
def test_aquarium_trains_on_two_workers_and_its_loss_falls(shared_data: Path, tmp_path: Path) -> None:
    spec = ExperimentSpec(
        recipe="aquarium",
        model=MODEL,
        optim=OptimConfig(
            optimizer="adamw", learning_rate=5e-4, reference_batch_size=16, epochs=2, milestones=(), warmup_steps=10
        ),
        data=DataConfig(short_side_px=192, long_side_px=256),
        source=SourceConfig(data=shared_data / "aquarium"),
        runtime=RuntimeConfig(storage=tmp_path, workers=2, log_every_steps=1),
    )
    outcome = run_one(spec, runtime_env=RUNTIME_ENV)
    losses = [value for _, value in effective_metrics(outcome.run.journal)["train/loss"]]
    assert len(losses) == 2 * 28
    assert sum(losses[-10:]) < 0.8 * sum(losses[:10])
    assert outcome.metrics["val/images"] == 127


def few_large_objects(path: Path, count: int) -> dict[str, list[dict]]:  # type: ignore[type-arg]
    """The first `count` images with one to four objects that all have sides of 40 px and more, as a COCO file."""
    whole = json.loads(path.read_text())
    of_image: dict[int, list[dict]] = {}  # type: ignore[type-arg]
    for annotation in whole["annotations"]:
        of_image.setdefault(annotation["image_id"], []).append(annotation)
    chosen = [
        image
        for image in whole["images"]
        if 1 <= len(of_image.get(image["id"], [])) <= 4
        and all(min(annotation["bbox"][2:]) >= 40 for annotation in of_image[image["id"]])
    ][:count]
    annotations = [annotation for image in chosen for annotation in of_image[image["id"]]]
    return {"images": chosen, "annotations": annotations, "categories": whole["categories"]}
