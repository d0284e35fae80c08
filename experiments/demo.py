#!/usr/bin/env python3
"""The whole platform in a few minutes on two CPU cores: generated images, three trainings, two tables.

    make demo

Generates a seeded data set of shapes, trains the baseline and the IoU-aware detector with two IoU losses on it, each
with two Ray Train workers, and ends with small versions of the paper's Tables 2 and 3: the losses, and alpha. Every
difference stands with its interval, whatever its sign. Needs no network, no data set and no server. Run again, it
continues or shows what is finished.
"""

import sys

import _bootstrap

RUNTIME_ENV = _bootstrap.bootstrap()

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import tyro

from paper_tables import TABLE2, TABLE3
from recipes import DEMO_IMAGES, DEMO_TABLE2_ROWS, TABLE3_ROWS, demo_table2, demo_table3
from runyard.commandline import main
from runyard.grid import expand
from runyard.paper import PaperTable
from runyard.spec import ExperimentSpec

if TYPE_CHECKING:
    from runyard.scoring.results import SweepResult


@dataclass(frozen=True)
class DemoOptions:
    """Command line of the demo."""

    storage: Path = Path("runs/demo")
    """Folder of data, runs and the MLflow store."""
    workers: int = 2


def run() -> None:
    """Generate images, train three detectors, print two tables."""
    options = tyro.cli(DemoOptions, description=__doc__)
    from runyard.driver.browse import how_to_browse
    from runyard.driver.run import run_sweep
    from runyard.driver.smoke import generated_data

    storage = options.storage.resolve()
    train_images, val_images, image_size = DEMO_IMAGES
    print(f"Generating {train_images} training and {val_images} held-out images of shapes in {storage / 'shapes'}")
    data = generated_data(storage / "shapes", train_images, val_images, image_size)

    def sweep(
        name: str, recipe: Callable[[str], ExperimentSpec], rows: Sequence[str], paper: PaperTable
    ) -> "SweepResult":
        specs = {}
        for row in rows:
            spec = recipe(row)
            specs[row] = replace(
                spec,
                source=replace(spec.source, data=data),
                runtime=replace(spec.runtime, storage=storage, workers=options.workers),
            )
        # Areas mean little among small shapes; what the IoU head is for shows at high IoU.
        paper = replace(paper, columns=("AP", "AP50", "AP75", "AP90"))
        return run_sweep(expand(specs), name, runtime_env=RUNTIME_ENV, paper=(paper,))

    sweep("demo-table2", demo_table2, DEMO_TABLE2_ROWS, TABLE2)
    last = sweep("demo-table3", demo_table3, TABLE3_ROWS, TABLE3)
    print(f"\nTo browse all runs: {how_to_browse(last.results[0].spec, last.experiment_id)}")


if __name__ == "__main__":
    sys.exit(main.main(run))
