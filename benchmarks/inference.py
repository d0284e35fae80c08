"""P6: one image from input tensor to final boxes against torchvision's, and P7: batches of images as evaluation runs.

An untrained head gives every anchor the same low score, and nothing would be left for NMS: both detectors' class logits
are rescaled until as many pairs pass the threshold as a trained detector's do.
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from benchmarks import our_detector, torchvision_detector
from benchmarks.rows import AnyRow, Row
from benchmarks.settings import H100, Settings, precision
from benchmarks.timing import Measurement, seconds
from benchmarks.variants import compare_variants
from benchmarks.workloads import BACKGROUND_LOGIT, COCO_CLASSES, FULL_SIZE, training_batch
from detector.config import ScoringConfig
from detector.models.detector import ScoringRow
from detector.predictor import Predictor

ROWS = (ScoringRow(ScoringConfig()),)


def measure(settings: Settings) -> list[AnyRow]:
    """P6."""
    size = settings.size(FULL_SIZE, (256, 320))
    device, dtype = settings.device, settings.dtype
    host = training_batch(1, size)
    batch = host.to(device)
    model = our_detector.build(COCO_CLASSES, device)
    spread_scores(model.heads.cls_logits, lambda: Predictor(model, device, dtype)(batch, ROWS))
    theirs = torchvision_detector.build(COCO_CLASSES, size).eval().to(device)
    floats = [image.to(device) for image in torchvision_detector.float_images(host)]
    spread_scores(theirs.head.classification_head.cls_logits, lambda: torchvision_predict(theirs, floats, dtype))
    predict = seconds(lambda: torchvision_predict(theirs, floats, dtype), device)
    shape = settings.describe(f"1 x {size[0]}x{size[1]}, {precision(dtype)}", full=settings.on_gpu)

    def ours(compiled: bool) -> Measurement:
        predictor = Predictor(model, device, dtype, compiled=compiled)
        return seconds(lambda: predictor(batch, ROWS), device)

    def amount(compiled: bool, times: Sequence[float]) -> Row:
        bound, how = (0.011, "compiled") if compiled else (0.020, "eager")
        return Row(
            key="P6",
            what=f"one image to final boxes, {how}: time",
            size=shape,
            kind="value",
            unit="s",
            ours=times,
            goal=settings.goal(bound, at_least=False, on=H100),
            goal_text=f"at most {1000 * bound:.0f} ms, on one H100",
        )

    return compare_variants(
        settings,
        "P6",
        "one image to final boxes",
        shape,
        ours=ours,
        other=predict,
        repeats=settings.repeats(50 if settings.on_gpu else 10),
        warm_up=5 if settings.on_gpu else 1,
        speed_up=2.0,
        amount=amount,
        not_here="one image to final boxes (11 ms compiled, 20 ms eager on one H100)",
    )


def measure_batches(settings: Settings) -> list[AnyRow]:
    """P7."""
    images = 16 if settings.on_gpu else 2
    size = settings.size(FULL_SIZE, (256, 320))
    device, dtype = settings.device, settings.dtype
    host = training_batch(images, size)
    host = host.pin_memory() if settings.on_gpu else host
    model = our_detector.build(COCO_CLASSES, device)
    spread_scores(model.heads.cls_logits, lambda: Predictor(model, device, dtype)(host.to(device), ROWS))
    theirs = torchvision_detector.build(COCO_CLASSES, size).eval().to(device)
    floats = torchvision_detector.float_images(host)

    def predict() -> object:
        return torchvision_predict(theirs, [image.to(device, non_blocking=True) for image in floats], dtype)

    spread_scores(theirs.head.classification_head.cls_logits, predict)
    shape = settings.describe(f"{images} x {size[0]}x{size[1]}, {precision(dtype)}", full=settings.on_gpu)

    def ours(compiled: bool) -> Measurement:
        predictor = Predictor(model, device, dtype, compiled=compiled)
        return seconds(lambda: predictor(host, ROWS), device)

    def amount(compiled: bool, times: Sequence[float]) -> Row:
        return Row(
            key="P7",
            what=f"images evaluated a second, {'compiled' if compiled else 'eager'}",
            size=shape,
            kind="value",
            unit="images/s",
            ours=[images / value for value in times],
            goal=settings.goal(400.0, at_least=True, on=H100),
            goal_text="400 images/s, on one H100",
        )

    return compare_variants(
        settings,
        "P7",
        "a batch evaluated",
        shape,
        ours=ours,
        other=seconds(predict, device),
        repeats=settings.repeats(20 if settings.on_gpu else 8),
        warm_up=3 if settings.on_gpu else 1,
        speed_up=None,
        amount=amount,
        not_here="images evaluated a second (400 and more on one H100)",
    )


@torch.inference_mode()
def torchvision_predict(model: nn.Module, images: list[Tensor], dtype: torch.dtype | None) -> object:
    """Detections of torchvision's model."""
    with torchvision_detector.autocast(images[0].device, dtype):
        return model(images)


@torch.no_grad()
def spread_scores(cls_logits: nn.Conv2d, forward: Callable[[], object]) -> None:
    """Rescales the last convolution of the class head: logits around -7.5 with a deviation of 1.3, by one `forward`."""
    assert cls_logits.bias is not None
    seen: list[Tensor] = []
    hook = cls_logits.register_forward_hook(lambda module, inputs, output: seen.append(output.float().flatten()))
    forward()
    hook.remove()
    mean, deviation = BACKGROUND_LOGIT
    cls_logits.weight.mul_(deviation / torch.cat(seen).std())
    cls_logits.bias.fill_(mean)
