"""A small real run for the comparisons that need the whole training loop: generated shapes, a small detector."""

from dataclasses import replace
from pathlib import Path

from detector.config import BackboneConfig, DataConfig, OptimConfig, RetinaNetConfig
from detector.data.synthetic import generate_shapes
from runyard.spec import ExperimentSpec, RuntimeConfig, SourceConfig


def small_spec(folder: Path, *, steps: int, batch_size: int = 8, side_px: int = 160) -> ExperimentSpec:
    """One epoch of `steps` steps on images made in `folder`, which becomes the storage too; nothing is validated but
    a handful of images at the end."""
    data = generate_shapes(
        folder / "shapes", train_images=steps * batch_size, val_images=4, image_size=max(side_px, 32), seed=0
    )
    return ExperimentSpec(
        recipe="benchmark",
        model=RetinaNetConfig(
            backbone=BackboneConfig(name="resnet18", weights="none"), fpn_channels=64, tower_depth=1, tower_norm="group"
        ),
        optim=OptimConfig(batch_size=batch_size, epochs=1, milestones=(), warmup_steps=2),
        data=DataConfig(short_side_px=side_px, long_side_px=side_px, min_image_side_px=1),
        source=SourceConfig(data=data),
        runtime=RuntimeConfig(storage=folder / "runs", log_every_steps=10, experiment="benchmarks"),
    )


def named(spec: ExperimentSpec, name: str) -> ExperimentSpec:
    """The same run in a folder of its own."""
    return replace(spec, runtime=replace(spec.runtime, name=name))
