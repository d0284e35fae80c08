"""Detections of a finished run on any images, as a result file for an evaluation server (`runyard detect`)."""

from dataclasses import replace
from pathlib import Path

from detector.checkpoint import load_checkpoint
from detector.data.cache import load_dataset
from detector.data.formats.coco import load_coco
from detector.engine import autocast_dtype
from detector.errors import ConfigError, InputError
from detector.evaluation.results import write_coco_results
from detector.models.build import build_detector
from detector.predictor import Predictor
from runyard.context import LocalContext, loader_processes
from runyard.runs.finished import final_checkpoint, finished_run
from runyard.runs.folder import RunFolder
from runyard.scoring.inference import detect
from runyard.scoring.outputs import RESULT_FILE, check_output


def detect_images(
    run: Path, annotations: Path, images: Path, out: Path, *, alpha: float | None = None, batch_size: int = 8
) -> tuple[int, int]:
    """Write the plain COCO result file of a run's final weights; on one GPU, or the CPU of a machine without a GPU.

    Args:
        run: folder of a finished run.
        annotations: COCO JSON whose 'images' and 'categories' are read, not its annotations: image_info_*.json will do.
            Its categories must have the names of the run's classes; results carry their ids.
        images: folder of the images.
        out: a new file, or an earlier result file, which is replaced.
        alpha: None: ranked as the run was evaluated.
        batch_size: images at a time, at least 1.

    Return the numbers of images and detections. Raise InputError, before any inference, for what cannot be read, does
    not fit the run, or cannot be written.
    """
    if batch_size < 1:
        raise ConfigError("must be at least 1", field="--batch-size", value=batch_size)
    out = check_output(out, "--out", RESULT_FILE, annotations)
    spec = finished_run(run)
    folder = RunFolder(run.expanduser().resolve())
    scoring = spec.scoring if alpha is None else replace(spec.scoring, confidence="alpha", alpha=alpha)
    if alpha is not None and not spec.model.iou_head:
        raise ConfigError("means nothing to a run without an IoU head", field="alpha", value=alpha)
    classes = load_dataset(folder.val_data(spec.validation_hash)).class_names
    dataset = load_coco(annotations, images, classes, annotations.stem, labelled=False)
    context = LocalContext()
    detector = build_detector(spec.model, spec.loss, len(classes))
    load_checkpoint(final_checkpoint(folder), detector)
    dtype = autocast_dtype(spec.optim.precision, context.device)
    table = detect(
        Predictor(detector, context.device, dtype, channels_last=spec.runtime.channels_last),
        dataset,
        spec.data,
        scoring,
        context,
        batch_size=batch_size,
        loader_workers=loader_processes(spec.runtime.loader_workers, context),
    )
    assert table is not None, "there is one process"
    try:
        write_coco_results(table, dataset, out)
    except OSError as error:
        raise InputError(f"cannot be written ({error.strerror or error})", file=out) from error
    return len(dataset), len(table)
