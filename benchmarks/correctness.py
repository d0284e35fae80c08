"""Checks before anything is timed on a device: fast paths equal the plain ones, to a stated tolerance."""

import tempfile
import traceback
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import DataDependentOutputException, DynamicOutputShapeException, FakeTensorMode

from benchmarks import matching_and_losses, our_detector, post_processing
from benchmarks.settings import Settings
from benchmarks.workloads import COCO_CLASSES, FULL_SIZE, to_device, trained_outputs, training_batch
from detector.config import BackboneConfig, DataConfig, OptimConfig, RetinaNetConfig, ScoringConfig
from detector.data.formats import open_dataset
from detector.data.loaders import make_train_loader
from detector.data.samples import Dataset
from detector.data.synthetic import generate_shapes
from detector.engine import TrainingEngine
from detector.evaluation.voc_ap import voc_average_precision
from detector.models.heads import HeadOutputs
from detector.models.pixels import normalise
from detector.models.retinanet import RetinaNet
from detector.optim import build_optimizer, learning_rate_at
from detector.predictor import Predictor
from runyard.scoring.inference import detect
from runyard.training.local import LocalContext

_TENSORS = ("images", "sizes", "boxes", "labels", "valid", "image_index", "image_weight")  # of a batch
LOGIT_TOLERANCE = 1e-3
"""Tolerance of float32 outputs on the device against the CPU's plain memory format, relative to the largest output."""
BF16_LOSS_TOLERANCE = 0.02
"""Tolerance of a step's loss in bfloat16 against float32, relative."""
BF16_AP_TOLERANCE = 0.005
"""Tolerance of AP (0.50:0.05:0.95, area under the curve) in bfloat16 against float32, same weights."""


@dataclass(frozen=True)
class Check:
    """One question and its answer."""

    name: str
    passed: bool
    found: str


def run_checks(settings: Settings) -> list[Check]:
    """Checks for the settings' variants; a failed one does not keep the others from being made."""
    checks: dict[str, Callable[[Settings], str]] = {}
    if False in settings.variants:
        checks |= {
            "post-processing against its definition": check_postprocessing,
            "matching and losses against their definition": matching_and_losses.check,
            "network in float32 against the CPU": check_network,
            "bfloat16 step against float32": check_bf16_loss,
            "bfloat16 AP against float32": check_bf16_ap,
            "a training step waits for nothing": check_waits,
        }
    if True in settings.variants:
        checks["compiled network in float32 against the CPU"] = partial(check_network, compiled=True)
    results = []
    for name, check in checks.items():
        try:
            results.append(Check(name, True, check(settings)))
        except AssertionError as error:
            results.append(Check(name, False, str(error)))
        except Exception as error:
            traceback.print_exc()
            results.append(Check(name, False, f"could not be checked: {type(error).__name__}: {str(error)[:300]}"))
    return results


def check_postprocessing(settings: Settings) -> str:
    """Post-processing of generated outputs of a trained detector, for two alphas."""
    case = trained_outputs(settings.size(FULL_SIZE, FULL_SIZE))
    on_device = to_device(case, settings.device)
    found = [post_processing.check(case, on_device, ScoringConfig(alpha=alpha)) for alpha in post_processing.ALPHAS]
    return "; ".join(found)


@torch.inference_mode()
def check_network(settings: Settings, *, compiled: bool = False) -> str:
    """Channels-last on the device against contiguous on the CPU, compiled or not."""
    batch = training_batch(1, (128, 160))
    images = normalise(batch.images, batch.sizes)
    model = our_detector.build(COCO_CLASSES, torch.device("cpu")).eval()
    expected = model.to(memory_format=torch.contiguous_format)(images)
    model = model.to(memory_format=torch.channels_last).to(settings.device)
    on_device = images.to(settings.device).contiguous(memory_format=torch.channels_last)
    network: Callable[[Tensor], HeadOutputs] = torch.compile(model) if compiled else model
    with _exact_float32():
        error = _largest_difference(network(on_device), expected)
    assert error <= LOGIT_TOLERANCE, f"outputs differ by {error:.1e}, more than {LOGIT_TOLERANCE:.0e}"
    return f"outputs within {error:.0e} of the largest"


def check_bf16_loss(settings: Settings) -> str:
    """The losses that a step reports."""
    batch = training_batch(2, (128, 160))
    losses = []
    for dtype in (None, torch.bfloat16):
        engine = our_detector.engine(our_detector.build(COCO_CLASSES, settings.device), dtype)
        losses.append(engine.step([batch], 0.0).read()["loss"])
    error = abs(losses[1] - losses[0]) / abs(losses[0])
    assert error <= BF16_LOSS_TOLERANCE, f"losses {losses} differ by {error:.1e}, more than {BF16_LOSS_TOLERANCE}"
    return f"loss within {error:.0e}"


def check_bf16_ap(settings: Settings) -> str:
    """A small detector, trained for a minute on generated shapes, evaluated in both."""
    train_images, val_images, epochs, processes = (24, 8, 1, 0) if settings.quick else (800, 200, 8, 4)
    with tempfile.TemporaryDirectory() as text:
        root = generate_shapes(
            Path(text) / "shapes", train_images=train_images, val_images=val_images, image_size=128, seed=0
        )
        data = DataConfig(short_side_px=128, long_side_px=128)
        model = _train(open_dataset(root, "train"), data, epochs, processes, settings)
        val = open_dataset(root, "val")
        scores = [_ap(model, val, data, dtype) for dtype in (None, torch.bfloat16)]
    error = abs(scores[1] - scores[0])
    assert error <= BF16_AP_TOLERANCE, f"AP {scores} differ by {error:.4f}, more than {BF16_AP_TOLERANCE}"
    return f"AP {scores[0]:.4f} in float32, {scores[1]:.4f} in bfloat16"


def check_waits(settings: Settings) -> str:
    """Check that a training step, from a batch in page-locked memory on, never makes the host wait for the GPU.

    Without a GPU the step is made on tensors that have shapes and no values: asking for a value is an error.
    """
    if not settings.on_gpu:
        _step_without_values()
        return "no value of a tensor is asked for on the host (on tensors without values)"
    batch = training_batch(2, (128, 160)).pin_memory()
    engine = our_detector.engine(our_detector.build(COCO_CLASSES, settings.device), settings.dtype)
    engine.step([batch], 0.0)  # the first step fills caches
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("warn")
    try:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            engine.step([batch], 0.0)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    waits = [f"{warning.filename.rpartition('/')[2]}:{warning.lineno}" for warning in caught]
    assert not waits, f"the step waits {len(waits)} times, at {', '.join(waits[:5])}"
    return "the host never waits"


def _step_without_values() -> None:
    batch = training_batch(2, (64, 96))
    model = RetinaNet(RetinaNetConfig(), COCO_CLASSES)
    our_detector.engine(model, None).step([batch], 0.0)  # fills caches with tensors that have values
    try:
        with FakeTensorMode(allow_non_fake_inputs=True) as mode:
            hollow = our_detector.engine(RetinaNet(RetinaNetConfig(), COCO_CLASSES), None)
            without: dict[str, Any] = {name: mode.from_tensor(getattr(batch, name)) for name in _TENSORS}
            hollow.step([replace(batch, **without)], 0.0)
    except (DataDependentOutputException, DynamicOutputShapeException) as error:
        raise AssertionError(f"the step asks for a value: {error}") from error


def _train(dataset: Dataset, data: DataConfig, epochs: int, processes: int, settings: Settings) -> RetinaNet:
    config = RetinaNetConfig(
        backbone=BackboneConfig(name="resnet18", weights="none"), fpn_channels=64, tower_depth=1, tower_norm="group"
    )
    optim = OptimConfig(
        optimizer="adamw", learning_rate=1e-3, weight_decay=0.05, epochs=epochs, milestones=(), warmup_steps=30
    )
    torch.manual_seed(0)
    model = RetinaNet(config, len(dataset.categories)).to(memory_format=torch.channels_last).to(settings.device)
    engine = TrainingEngine(model.train(), build_optimizer(model, optim), optim, autocast_dtype=settings.dtype)
    loader = make_train_loader(
        dataset,
        data,
        seed=0,
        start_epoch=0,
        start_step=0,
        epochs=epochs,
        batch_size=optim.batch_size,
        loader_workers=processes,
        pin_memory=settings.on_gpu,
    )
    for step, batch in enumerate(loader):
        engine.step([batch], learning_rate_at(optim, step, len(loader) // epochs))
    return model


def _ap(model: RetinaNet, dataset: Dataset, data: DataConfig, dtype: torch.dtype | None) -> float:
    context = LocalContext(use_gpu=next(model.parameters()).device.type == "cuda")
    with _exact_float32():
        table = detect(Predictor(model, context.device, dtype), dataset, data, ScoringConfig(), context, batch_size=16)
    assert table is not None
    thresholds = [0.5 + 0.05 * number for number in range(10)]
    return voc_average_precision(dataset, table, iou=thresholds, points="area").ap or 0.0


def _largest_difference(found: HeadOutputs, expected: HeadOutputs) -> float:
    """Relative to the largest value of each kind of output."""
    assert found.iou_logits is not None
    assert expected.iou_logits is not None
    kinds = (
        (found.cls_logits, expected.cls_logits),
        (found.box_deltas, expected.box_deltas),
        (found.iou_logits, expected.iou_logits),
    )
    errors = []
    for ours, other in kinds:
        scale = max(float(level.abs().max()) for level in other)
        errors += [float((a.cpu() - b).abs().max()) / scale for a, b in zip(ours, other, strict=True)]
    return max(errors)


@contextmanager
def _exact_float32() -> Iterator[None]:
    """Float32 convolutions without TensorFloat-32, which rounds their factors to 10 bits."""
    before = torch.backends.cudnn.allow_tf32
    torch.backends.cudnn.allow_tf32 = False
    try:
        yield
    finally:
        torch.backends.cudnn.allow_tf32 = before
