"""Files of a finished evaluation in a run's folder."""

from typing import Any

from detector.data.samples import Dataset
from detector.evaluation.results import DetectionTable, write_coco_results
from detector.files import write_json
from runyard.runs.folder import EvaluationFolder


def write_evaluation(
    folder: EvaluationFolder, dataset: Dataset, table: DetectionTable, metrics: dict[str, Any]
) -> None:
    """Write the result file (original ids, with the two factors of each score) and, last, the metrics."""
    write_coco_results(table, dataset, folder.detections, factors=True)
    write_json(folder.metrics, metrics, indent=2)
