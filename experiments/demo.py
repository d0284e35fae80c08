#!/usr/bin/env python3
"""The whole platform in a few minutes on two CPU cores: generated images, two trainings, one comparison.

    make demo

Generates a seeded data set of shapes, trains the baseline and the IoU-aware detector on it with two Ray Train workers,
evaluates both on held-out images and ends with a table of the two. The difference is printed with its interval,
whatever its sign. Needs no network, no data set and no server. Run again, it continues or shows what is finished.
"""

import sys

import _bootstrap

RUNTIME_ENV = _bootstrap.bootstrap()

from dataclasses import dataclass, replace  # noqa: E402
from pathlib import Path  # noqa: E402

import tyro  # noqa: E402

from recipes import DEMO_IMAGES, demo  # noqa: E402
from runyard import entry  # noqa: E402


@dataclass(frozen=True)
class Options:
    """The demo's command line."""

    storage: Path = Path("runs/demo")
    """Where data, runs and the MLflow store go."""
    workers: int = 2


def run() -> None:
    """Generates, trains twice, compares."""
    options = tyro.cli(Options, description=__doc__)
    from runyard.comparison import compare
    from runyard.experiment import generated_data, how_to_browse, run_experiment

    storage = options.storage.resolve()
    train_images, val_images, image_size = DEMO_IMAGES
    print(f"Generating {train_images} training and {val_images} held-out images of shapes in {storage / 'shapes'}")
    data = generated_data(storage / "shapes", train_images, val_images, image_size)
    outcomes = []
    for iou_head in (False, True):
        spec = demo(iou_head)
        spec = replace(
            spec,
            source=replace(spec.source, data=data),
            runtime=replace(spec.runtime, storage=storage, workers=options.workers),
        )
        outcomes.append(run_experiment(spec, runtime_env=RUNTIME_ENV))
    compare(outcomes[0], outcomes[1], storage / "comparison")
    print(f"\nTo browse both runs: {how_to_browse(outcomes[1])}   (then open http://127.0.0.1:5000)")


if __name__ == "__main__":
    sys.exit(entry.main(run))
