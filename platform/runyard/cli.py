"""The `runyard` command: score result files, check data, browse and upload results. Showing help imports no torch."""

import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import tyro

from detector.errors import DatasetError
from runyard import entry


@dataclass(frozen=True)
class Evaluate:
    """Score a result file (COCO result JSON) against an annotation file."""

    annotations: Path
    """COCO annotation JSON; its images are not needed."""
    detections: Path
    """COCO result JSON: a list of {"image_id", "category_id", "bbox", "score"}."""
    protocol: Literal["coco", "voc07", "voc12"] = "coco"
    """coco: AP over IoU 0.50:0.05:0.95; voc07: 11-point AP; voc12: area under the curve."""
    backend: Literal["hotcoco", "pycocotools"] = "hotcoco"
    """What computes COCO AP; pycocotools is the slow arbiter."""
    offset: float = 1.0
    """Added to widths and heights by the VOC protocols: 1 for the devkit's inclusive corners, 0 for half-open boxes."""
    max_detections: int = 100
    json: Path | None = None
    """Write every number here as well."""

    def run(self) -> None:
        """Scores and prints."""
        from runyard.evaluate import evaluate_files, render_report

        report = evaluate_files(
            self.annotations,
            self.detections,
            protocol=self.protocol,
            backend=self.backend,
            offset=self.offset,
            max_detections=self.max_detections,
            json_out=self.json,
        )
        print(render_report(report))


@dataclass(frozen=True)
class Doctor:
    """Check a data set: every image decoded, every box looked at."""

    data: Path
    """Folder of the data set."""
    split: str = "train"
    format: Literal["auto", "coco", "voc"] = "auto"
    workers: int = 4

    def run(self) -> None:
        """Checks and prints; DatasetError where an image cannot be used."""
        from rich.progress import Progress

        from detector.data.health import check_dataset
        from detector.data.layouts import open_dataset

        dataset = open_dataset(self.data, self.split, format=self.format)
        with Progress(transient=True) as bar:
            task = bar.add_task("images", total=len(dataset))
            report = check_dataset(
                dataset, workers=self.workers, progress=lambda done, _: bar.update(task, completed=done)
            )
        print(f"{dataset.name}: {report.images} images, {report.boxes} boxes, classes {', '.join(dataset.class_names)}")
        print(f"  crowds {report.crowds}, difficult {report.difficult}")
        print(f"  images without boxes {report.images_without_boxes}, tiny images {report.tiny_images}")
        print(f"  boxes that training clips or drops: {report.odd_boxes}, dropped {report.dropped_boxes}")
        for problem in report.problems:
            print(f"  {problem.path}: {problem.reason}")
        if not report.healthy:
            raise DatasetError(
                f"{len(report.unusable)} of {report.images} images cannot be used", file=self.data,
                remedy="Mend or remove the files named above",
            )  # fmt: skip


@dataclass(frozen=True)
class Sync:
    """Upload what a run could not while its tracking server was away."""

    run_folder: Path
    tracking_uri: str | None = None
    """None: $MLFLOW_TRACKING_URI, else the SQLite file beside the run."""

    def run(self) -> None:
        """Uploads and says how much."""
        from runyard.layout import RunFolder
        from runyard.tracking.replay import sync
        from runyard.tracking.stores import resolve_tracking_uri

        folder = RunFolder(self.run_folder.resolve())
        uri = resolve_tracking_uri(self.tracking_uri, folder.root.parent)
        print(f"{sync(folder, uri)} records uploaded")


@dataclass(frozen=True)
class Ui:
    """Open the MLflow UI on a store; ends with Ctrl-C."""

    storage: Path = Path("runs")
    """Folder of runs, whose mlflow.db is shown."""
    tracking_uri: str | None = None
    port: int = 5000

    def run(self) -> None:
        """Replaces this process by the server."""
        from runyard.tracking.stores import resolve_tracking_uri, ui_command

        command = ui_command(resolve_tracking_uri(self.tracking_uri, self.storage.resolve()), self.port)
        print(command, flush=True)
        os.execvp("/bin/sh", ["/bin/sh", "-c", f"exec env {command}"])


Command = (
    Annotated[Evaluate, tyro.conf.subcommand("evaluate")]
    | Annotated[Doctor, tyro.conf.subcommand("doctor")]
    | Annotated[Sync, tyro.conf.subcommand("sync")]
    | Annotated[Ui, tyro.conf.subcommand("ui")]
)


def main(arguments: Sequence[str] | None = None) -> int:
    """The `runyard` command; returns the exit status."""
    command = tyro.cli(Command, prog="runyard", description=__doc__, args=arguments)
    return entry.main(command.run)


if __name__ == "__main__":
    sys.exit(main())
