"""P1: one training step against torchvision's, and P2: cost of the IoU branch and its targets.

ResNet-50-FPN, IoU head on, from a batch in the host's memory to updated weights. Ours uploads uint8 pixels and
normalises on the device; torchvision's users upload floats.
"""

from collections.abc import Sequence

from benchmarks import our_detector, torchvision_detector
from benchmarks.rows import AnyRow, Row
from benchmarks.settings import H100, LEARNING_RATE, Settings, precision
from benchmarks.timing import Measurement, interleaved, seconds
from benchmarks.variants import compare_variants
from benchmarks.workloads import COCO_CLASSES, FULL_SIZE, training_batch
from detector.data.batching import Batch


def pinned_batch(settings: Settings, images: int, size: tuple[int, int]) -> Batch:
    """As the loader hands it over."""
    batch = training_batch(images, size, COCO_CLASSES)
    return batch.pin_memory() if settings.on_gpu else batch


def measure(settings: Settings) -> list[AnyRow]:
    """P1."""
    images = 16 if settings.on_gpu else 2
    size = settings.size(FULL_SIZE, (256, 320))
    batch = pinned_batch(settings, images, size)
    device, dtype = settings.device, settings.dtype

    theirs = torchvision_detector.build(COCO_CLASSES, size).train().to(device)
    updates = torchvision_detector.optimizer(theirs)
    updates.param_groups[0]["lr"] = LEARNING_RATE
    floats, truth = torchvision_detector.float_images(batch), torchvision_detector.targets(batch)
    step = seconds(lambda: torchvision_detector.train_step(theirs, updates, floats, truth, device, dtype), device)
    shape = settings.describe(f"{images} x {size[0]}x{size[1]}, {precision(dtype)}", full=settings.on_gpu)

    def ours(compiled: bool) -> Measurement:
        engine = our_detector.engine(our_detector.build(COCO_CLASSES, device), dtype, compiled=compiled)
        return seconds(lambda: engine.step([batch], LEARNING_RATE), device)

    def amount(compiled: bool, times: Sequence[float]) -> Row:
        return Row(
            key="P1",
            what=f"images trained on a second, {'compiled' if compiled else 'eager'}",
            size=shape,
            kind="value",
            unit="images/s",
            ours=[images / value for value in times],
            goal=settings.goal(150.0, at_least=True, on=H100),
            goal_text="150 images/s, on one H100",
        )

    return compare_variants(
        settings,
        "P1",
        "training step",
        shape,
        ours=ours,
        other=step,
        repeats=settings.repeats(20 if settings.on_gpu else 8),
        warm_up=3 if settings.on_gpu else 1,
        speed_up=2.0,
        amount=amount,
        not_here="images trained on a second (150 and more on one H100)",
    )


def measure_iou_branch(settings: Settings) -> list[Row]:
    """P2."""
    images = 16 if settings.on_gpu else 2
    size = settings.size(FULL_SIZE, (192, 256))
    batch = pinned_batch(settings, images, size)
    device, dtype = settings.device, settings.dtype
    with_head, without = (
        our_detector.engine(our_detector.build(COCO_CLASSES, device, iou_head=head), dtype) for head in (True, False)
    )
    ours, other = interleaved(
        seconds(lambda: with_head.step([batch], LEARNING_RATE), device),
        seconds(lambda: without.step([batch], LEARNING_RATE), device),
        repeats=settings.repeats(40),
        warm_up=3 if settings.on_gpu else 1,
    )
    shape = settings.describe(f"{images} x {size[0]}x{size[1]}, {precision(dtype)}", full=settings.on_gpu)
    return [
        Row(
            key="P2",
            what="cost of the IoU branch",
            size=shape,
            kind="overhead",
            unit="s",
            ours=ours,
            other=other,
            other_name="without it",
            goal=settings.goal(0.01, at_least=False),
            goal_text="at most 1 %",
        )
    ]
