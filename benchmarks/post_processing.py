"""P8: from the outputs for one image (201,600 anchors, 80 classes) to at most 100 detections.

torchvision scores by class alone. Ours ranks by p^alpha IoU^(1 - alpha): at alpha 0.1 nearly all 16 million pairs pass
the score threshold. The outputs are those of a trained detector (`workloads.trained_outputs`).
"""

import torch
from torch import Tensor

from benchmarks import torchvision_detector
from benchmarks.plain import plain_postprocess
from benchmarks.rows import AnyRow, NotRun, Row
from benchmarks.settings import GPU, Settings
from benchmarks.timing import interleaved, seconds
from benchmarks.workloads import FULL_SIZE, HeadCase, to_device, trained_outputs
from detector.config import ScoringConfig
from detector.models.detector import Detections
from detector.models.postprocess import postprocess

ALPHAS = (0.5, 0.1)


def measure(settings: Settings) -> list[AnyRow]:
    """P8."""
    size = settings.size(FULL_SIZE, FULL_SIZE)
    case = trained_outputs(size)
    on_device = to_device(case, settings.device)
    image = [size]
    rows: list[AnyRow] = []
    for alpha in ALPHAS:
        scoring = ScoringConfig(alpha=alpha)
        checked = check(case, on_device, scoring)
        ours, other = interleaved(
            seconds(lambda s=scoring: detect(on_device, s), settings.device),  # type: ignore[misc]
            seconds(lambda: theirs(on_device, image), settings.device),
            repeats=settings.repeats(30),
            warm_up=3,
        )
        anchors = case.anchor_valid.shape[1]
        shape = settings.describe(f"{anchors:,} anchors x 80 classes", full=True)
        name = f"post-processing of one image, alpha {alpha}"
        rows.append(
            Row(
                key="P8",
                what=name,
                size=shape,
                kind="speed-up",
                unit="s",
                ours=ours,
                other=other,
                other_name="torchvision",
                goal=None if settings.on_gpu else settings.goal(3.0, at_least=True),
                goal_text="3x and more, on a CPU",
                checked=checked,
            )
        )
        if settings.on_gpu:
            rows.append(
                Row(
                    key="P8",
                    what=f"{name}: time",
                    size=shape,
                    kind="value",
                    unit="s",
                    ours=ours,
                    goal=settings.goal(0.001, at_least=False, on=GPU),
                    goal_text="at most 1 ms",
                )
            )
    if not settings.on_gpu:
        rows.append(NotRun("P8", "post-processing of one image on a GPU (at most 1 ms)", "needs a GPU"))
    return rows


def detect(case: HeadCase, scoring: ScoringConfig) -> Detections:
    """Ours."""
    return postprocess(case.outputs, case.anchors, case.anchor_valid, case.image_sizes, scoring)[0]


@torch.inference_mode()
def theirs(case: HeadCase, sizes: list[tuple[int, int]]) -> object:
    """torchvision's."""
    return torchvision_detector.post_process(case.outputs, case.anchors, sizes)


def check(case: HeadCase, on_device: HeadCase, scoring: ScoringConfig) -> str:
    """Compare ours on the device with the definition in float64 on the CPU; AssertionError if they differ.

    The last bit of a score differs between devices, so boxes whose scores nearly tie may change places, and with them
    what NMS drops. All but 2 in 100 of the pairs must be the same.
    """
    found = detect(on_device, scoring)
    expected = plain_postprocess(case, scoring)
    pairs = {(int(anchor), int(label)) for anchor, label in zip(found.anchor_index, found.labels, strict=True)}
    same = len(pairs & expected.keys())
    if same < 0.98 * max(len(expected), len(pairs)):
        raise AssertionError(f"post-processing finds {same} of the {len(expected)} pairs that the definition gives")
    errors = [abs(float(score) - expected[key]) for key, score in _scores(found) if key in expected]
    if max(errors, default=0.0) > 1e-5:
        raise AssertionError(f"scores differ from the definition by {max(errors)}")
    return (
        f"{same} of {len(expected)} detections as by definition in float64, scores within {max(errors, default=0):.0e}"
    )


def _scores(found: Detections) -> list[tuple[tuple[int, int], Tensor]]:
    places = zip(found.anchor_index.tolist(), found.labels.tolist(), strict=True)
    return list(zip(places, found.scores.cpu(), strict=True))
