"""The `runyard` command: detect objects, score result files, check data, print tables, browse and upload results.

Showing help imports no torch.
"""

import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Literal

import tyro

from detector.config import DataConfig
from runyard.commandline import main as entry
from runyard.commandline.options import SourceOptions
from runyard.spec import ExperimentSpec, RuntimeConfig


@dataclass(frozen=True)
class Evaluate:
    """Score a result file (COCO result JSON) against annotations."""

    annotations: Path
    """COCO annotation JSON, whose images are not needed; the folder of a data set, such as a VOC devkit, with --split;
    or the saved columns (.npz) of a run's validation images."""
    detections: Path
    """COCO result JSON: a list of {"image_id", "category_id", "bbox", "score"}."""
    split: str | None = None
    """Split of the folder: 2007:test."""
    classes: tuple[str, ...] | None = None
    """Class names of a folder in the order of the detector's labels. None: those of the split."""
    protocol: Literal["coco", "voc07", "voc12"] = "coco"
    """coco: AP over IoU 0.50:0.05:0.95; voc07: 11-point AP; voc12: area under the curve."""
    backend: Literal["hotcoco", "pycocotools"] | None = None
    """Library that computes COCO AP; None: hotcoco. pycocotools is the slow arbiter."""
    offset: float | None = None
    """Added to widths and heights by the VOC protocols. None: as VOC and YOLO folders need it. A COCO file needs 0
    where width = x2 - x1 + 1 or boxes are half-open, 1 where width = x2 - x1 of VOC's inclusive corners."""
    max_detections: int | None = None
    """COCO's limit for one image and class; None: 100."""
    json: Path | None = None
    """Write every number here as well."""

    def run(self) -> None:
        """Score and print."""
        from runyard.scoring.evaluate import evaluate_files
        from runyard.scoring.evaluation_text import render_report

        report = evaluate_files(
            self.annotations,
            self.detections,
            split=self.split,
            classes=self.classes,
            protocol=self.protocol,
            backend=self.backend,
            offset=self.offset,
            max_detections=self.max_detections,
            json_out=self.json,
        )
        print(render_report(report))


@dataclass(frozen=True)
class Detect:
    """Write a finished run's detections on any images as a plain COCO result file, test-dev's for the server too."""

    run_folder: tyro.conf.Positional[Path]
    annotations: Path
    """COCO JSON with 'images' and 'categories'; annotations are not needed (image_info_test-dev2017.json)."""
    images: Path
    """Folder of the images."""
    out: Path
    """The result file."""
    alpha: float | None = None
    """None: ranked as the run was evaluated."""
    batch_size: int = 8

    def run(self) -> None:
        """Detects and says how much."""
        from runyard.scoring.detect import detect_images

        images, detections = detect_images(
            self.run_folder, self.annotations, self.images, self.out, alpha=self.alpha, batch_size=self.batch_size
        )
        print(f"{self.out}: {detections:,} detections in {images:,} images")


@dataclass(frozen=True)
class Doctor:
    """Check a data set as a run would use it: every image decoded, every box looked at."""

    source: Annotated[SourceOptions, tyro.conf.arg(name="")] = field(default_factory=SourceOptions)
    data: DataConfig = field(default_factory=DataConfig)
    storage: Path | None = None
    """Folder of all runs, which then need not look at these images again. None: as for a run."""

    def run(self) -> None:
        """Checks and prints; DatasetError where a run would refuse to start."""
        from runyard.runs.doctor import check_data

        spec = ExperimentSpec(source=self.source, data=self.data, runtime=RuntimeConfig(storage=self.storage))
        check_data(spec)


@dataclass(frozen=True)
class Table:
    """Print a sweep's tables beside the paper's, and write them (Markdown, CSV, LaTeX) with their plots."""

    sweep: Annotated[Path, tyro.conf.Positional]
    """Folder of the sweep, below <storage>/sweeps."""
    server_results: Path | None = None
    """For Table 1: a JSON file with the answers of COCO's evaluation server in %, by row and column; without it
    nothing of ours stands against the paper's test-dev numbers."""

    def run(self) -> None:
        """Makes and prints."""
        from rich.console import Console

        from runyard.reports.report import read_server_results, report
        from runyard.scoring.results import load_sweep

        server = None if self.server_results is None else read_server_results(self.server_results)
        report(load_sweep(self.sweep), Console(), server)


@dataclass(frozen=True)
class Sync:
    """Upload what a run, or a sweep with its trials, could not while the tracking server was away."""

    folder: tyro.conf.Positional[Path]
    """Folder of the run or sweep."""
    tracking_uri: str | None = None
    """None: $MLFLOW_TRACKING_URI, else mlflow.db in the storage folder."""

    def run(self) -> None:
        """Upload and print the number of records."""
        from runyard.runs.folder import RunFolder
        from runyard.runs.storage import check_format
        from runyard.tracking.stores import resolve_tracking_uri
        from runyard.tracking.sync import storage_of, sync

        folder = RunFolder(self.folder.resolve())
        check_format(storage_of(folder.root))
        uri = resolve_tracking_uri(self.tracking_uri, storage_of(folder.root))
        print(f"{sync(folder, uri)} records uploaded")


@dataclass(frozen=True)
class Ui:
    """Open the MLflow UI on a store; ends with Ctrl-C."""

    storage: Path = Path("runs")
    """Folder of runs, whose mlflow.db is shown."""
    tracking_uri: str | None = None
    port: int | None = None
    """0: any free port. None: 5000, or a free port if that is taken."""

    def run(self) -> None:
        """Replace this process by the server; InputError if there is nothing to show, or the port cannot be used."""
        from runyard.tracking.stores import resolve_tracking_uri
        from runyard.tracking.ui import choose_port, require_store, ui_command

        uri = resolve_tracking_uri(self.tracking_uri, self.storage.resolve())
        require_store(uri)
        command = ui_command(uri, choose_port(self.port))
        print(command, flush=True)
        os.execvp("/bin/sh", ["/bin/sh", "-c", f"exec env {command}"])


Command = (
    Annotated[Evaluate, tyro.conf.subcommand("evaluate")]
    | Annotated[Detect, tyro.conf.subcommand("detect")]
    | Annotated[Doctor, tyro.conf.subcommand("doctor")]
    | Annotated[Table, tyro.conf.subcommand("table")]
    | Annotated[Sync, tyro.conf.subcommand("sync")]
    | Annotated[Ui, tyro.conf.subcommand("ui")]
)


def main(arguments: Sequence[str] | None = None) -> int:
    """The `runyard` command; returns the exit status."""
    return entry.main(lambda: tyro.cli(Command, prog="runyard", description=__doc__, args=arguments).run())


if __name__ == "__main__":
    sys.exit(main())
