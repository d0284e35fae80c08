"""What `runyard detect` does: a finished run's detections on any images, as a result file for an evaluation server."""

from dataclasses import replace
from pathlib import Path

import torch

from detector.checkpoint import load_checkpoint
from detector.data.cache import load_dataset
from detector.data.formats.coco import load_coco
from detector.engine import autocast_dtype
from detector.errors import ConfigError, InputError
from detector.evaluation.results import write_coco_results
from detector.models.retinanet import RetinaNet
from runyard.runs.finished import finished_run
from runyard.runs.folder import RunFolder
from runyard.scoring.inference import detect
from runyard.training.local import LocalContext


def detect_images(
    run: Path, annotations: Path, images: Path, out: Path, *, alpha: float | None = None, batch_size: int = 8
) -> tuple[int, int]:
    """Writes the plain COCO result file of a run's final weights on one GPU, where there is one, else on the CPU.

    Args:
        run: folder of a finished run.
        annotations: COCO JSON whose 'images' and 'categories' are read, not its annotations: image_info_*.json will do.
            Its categories must have the names of the run's classes; results carry their ids.
        images: folder of the images.
        alpha: None: ranked as the run was evaluated.

    Returns the numbers of images and detections. Raises InputError for what cannot be read or does not fit the run.
    """
    spec = finished_run(run)
    folder = RunFolder(run.expanduser().resolve())
    scoring = spec.scoring if alpha is None else replace(spec.scoring, confidence="alpha", alpha=alpha)
    if alpha is not None and not spec.model.iou_head:
        raise ConfigError("means nothing to a run without an IoU head", field="alpha", value=alpha)
    classes = load_dataset(folder.val_data(spec.validation_hash)).class_names
    dataset = load_coco(annotations, images, classes, annotations.stem, labelled=False)
    context = LocalContext()
    model = RetinaNet(spec.model, len(classes))
    load_checkpoint(folder.checkpoints()[0], model)
    if spec.runtime.channels_last:
        model = model.to(memory_format=torch.channels_last)
    table = detect(
        model.to(context.device).eval(),
        dataset,
        spec.data,
        scoring,
        context,
        batch_size=batch_size,
        loader_workers=spec.runtime.loader_workers,
        autocast_dtype=autocast_dtype(spec.optim.precision, context.device),
        channels_last=spec.runtime.channels_last,
    )
    assert table is not None, "there is one process"
    try:
        write_coco_results(table, dataset, out)
    except OSError as error:
        raise InputError(f"cannot be written ({error.strerror or error})", file=out) from error
    return len(dataset), len(table)
