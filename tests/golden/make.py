"""Record the golden files: `python -m tests.golden.make losses detections inputs evaluation tables`, in that order.

Only what is named is recorded anew. See README.md before one is changed.
"""

import importlib.metadata
import itertools
import json
import math
import platform
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch

from tests.golden import runs

HERE = Path(__file__).resolve().parent
COMMAND = "PYTHONPATH=platform:. OMP_NUM_THREADS=1 python -m tests.golden.make {}"
NUMERICS = "one thread, CPU, float32 throughout, channels_last; other CPUs and library versions round differently"


def header(what: str, rounding: str, comparison: str) -> dict[str, Any]:
    """Say what made a file, and how exactly it is compared."""
    packages = ("torch", "torchvision", "numpy", "pillow", "hotcoco", "pycocotools", "rich")
    return {
        "versions": {"python": platform.python_version(), **{p: importlib.metadata.version(p) for p in packages}},
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
        "machine": platform.machine(),
        "command": COMMAND.format(what),
        "numerics": NUMERICS,
        "rounding": rounding,
        "comparison": comparison,
    }


def rounded(value: Any, decimals: int) -> Any:
    """Round every float of a plain value."""
    if isinstance(value, float):
        return round(value, decimals)
    if isinstance(value, dict):
        return {key: rounded(item, decimals) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [rounded(item, decimals) for item in value]
    return value


def write(name: str, content: dict[str, Any]) -> None:
    """Write JSON with lists of plain values on one line each."""
    (HERE / name).write_text(_text(content, 0) + "\n", encoding="utf-8")


def _text(value: Any, depth: int) -> str:
    nested = isinstance(value, dict) or (isinstance(value, list) and any(isinstance(v, dict) for v in value))
    if not nested or not value:
        return json.dumps(value, allow_nan=False)
    indent = " " * (depth + 1)
    if isinstance(value, dict):
        items = [f"{indent}{json.dumps(key)}: {_text(item, depth + 1)}" for key, item in value.items()]
    else:
        items = [indent + _text(item, depth + 1) for item in value]
    opening, closing = "{}" if isinstance(value, dict) else "[]"
    return opening + "\n" + ",\n".join(items) + "\n" + " " * depth + closing


def make_losses(folder: Path) -> None:
    """Record losses.json."""
    data = runs.shapes(folder / "shapes")
    head = header("losses", "none", "relative 1e-5 (and absolute 1e-12 where the recorded value is 0)")
    cases = {name: runs.losses(training, data, folder) for name, training in runs.TRAININGS.items()}
    write("losses.json", {"header": head | {"training_images_sha256": runs.images_sha256(data)}, "losses": cases})


def make_detections(folder: Path) -> None:
    """Record detections.json; report neighbours whose order hangs on the last digits of a score."""
    found = runs.detections()
    for name, images in found.items():
        for image in images:
            scores = image["scores"]
            close = [(a, b) for a, b in itertools.pairwise(scores) if a != b and (a - b) / a < 1e-5]
            if close:
                print(f"{name}: scores that differ by less than 1e-5: {close}")
    head = header("detections", "8 decimals", "anchors, labels and counts exactly; scores and boxes relative 1e-5")
    write("detections.json", {"header": head, "detections": rounded(found, 8)})


def make_inputs(folder: Path) -> None:
    """Record evaluation_inputs.json: what the metrics are computed from."""
    head = header("inputs", "boxes 2 decimals, scores 6", "not compared: these are inputs")
    dataset, tables = runs.trained_tables(runs.shapes(folder / "shapes"), folder)
    trained = {"dataset": plain_dataset(dataset), "tables": {name: plain_table(of) for name, of in tables.items()}}
    write("evaluation_inputs.json", {"header": head, "inputs": {"random": random_inputs(), "trained": trained}})


def make_evaluation(folder: Path) -> None:
    """Record evaluation.json."""
    inputs = json.loads((HERE / "evaluation_inputs.json").read_text())["inputs"]
    head = header("evaluation", "10 decimals", "relative and absolute 1e-8")
    metrics = {name: rounded(runs.evaluation(of), 10) for name, of in inputs.items()}
    write("evaluation.json", {"header": head, "metrics": metrics})


def make_tables(folder: Path) -> None:
    """Record tables.json."""
    head = header("tables", "as rendered", "equal text")
    texts = {name: text.splitlines() for name, text in runs.tables().items()}
    write("tables.json", {"header": head, "tables": {name: {"lines": lines} for name, lines in texts.items()}})


def plain_dataset(dataset: Any) -> dict[str, Any]:
    """The columns that `runs.evaluation` takes, rounded to 2 decimals."""
    return {
        "classes": list(dataset.class_names),
        "image_ids": list(dataset.image_ids),
        "image_sizes": dataset.image_sizes.tolist(),
        "offsets": dataset.offsets.tolist(),
        "boxes_xywh": dataset.boxes_xywh.round(2).tolist(),
        "labels": dataset.labels.tolist(),
        "areas": dataset.areas.round(2).tolist(),
        "is_crowd": dataset.is_crowd.astype(int).tolist(),
        "is_difficult": dataset.is_difficult.astype(int).tolist(),
    }


def plain_table(table: Any) -> dict[str, Any]:
    """The columns that `runs.evaluation` takes: boxes rounded to 2 decimals, scores to 6."""
    columns = {name: getattr(table, name).round(6).tolist() for name in ("scores", "class_scores", "ious")}
    return {
        "image_index": table.image_index.tolist(),
        "labels": table.labels.tolist(),
        "boxes_xywh": table.boxes_xywh.round(2).tolist(),
        **{name: [None if math.isnan(v) else v for v in values] for name, values in columns.items()},
    }


def random_inputs() -> dict[str, Any]:
    """24 images of 640 px with crowds, difficult objects, equal scores and an empty image, and two detectors."""
    random = np.random.default_rng(2026)
    images, classes, count = 24, 3, 90
    image = np.sort(random.integers(0, images - 1, count))  # the last one is empty
    boxes = np.column_stack([random.uniform(0, 400, (count, 2)), random.uniform(6, 200, (count, 2))]).round(2)
    labels = random.integers(0, classes, count)
    dataset = {
        "classes": ["a", "b", "c", "never seen"],
        "image_ids": [100 + int(i) for i in random.permutation(images)],
        "image_sizes": [[640, 640]] * images,
        "offsets": np.searchsorted(image, np.arange(images + 1)).tolist(),
        "boxes_xywh": boxes.tolist(),
        "labels": labels.tolist(),
        "areas": (boxes[:, 2] * boxes[:, 3] * random.uniform(0.5, 1, count)).round(2).tolist(),
        "is_crowd": (random.random(count) < 0.08).astype(int).tolist(),
        "is_difficult": (random.random(count) < 0.12).astype(int).tolist(),
    }
    tables = {}
    for name, noise in (("first", 1.0), ("second", 0.6)):
        source = random.integers(0, count, 240)
        found = boxes[source] + noise * random.normal(0, 1, (240, 4)) * random.choice([0.5, 3, 12], (240, 1))
        found[:, 2:] = np.maximum(found[:, 2:], 0)
        class_scores, ious = random.random(240), random.random(240)
        scores = np.sqrt(class_scores * ious)
        scores[:40] = scores[:40].round(1)  # equal scores
        tables[name] = {
            "image_index": np.where(random.random(240) < 0.2, random.integers(0, images, 240), image[source]).tolist(),
            "labels": np.where(random.random(240) < 0.15, random.integers(0, classes, 240), labels[source]).tolist(),
            "boxes_xywh": found.round(2).tolist(),
            "scores": scores.round(6).tolist(),
            "class_scores": class_scores.round(6).tolist(),
            "ious": ious.round(6).tolist(),
        }
    return {"dataset": dataset, "tables": tables}


MAKERS = {
    "losses": make_losses,
    "detections": make_detections,
    "inputs": make_inputs,
    "evaluation": make_evaluation,
    "tables": make_tables,
}


def main() -> None:
    """Record the files that the command line names."""
    torch.set_num_threads(1)
    for name in sys.argv[1:]:
        with tempfile.TemporaryDirectory() as folder:
            MAKERS[name](Path(folder))


if __name__ == "__main__":
    main()
