"""From outputs to detections: against the definition written out plainly, on ties, empty and damaged outputs."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any, Literal

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from detector import postprocess as module
from detector.box_coder import decode
from detector.boxes import clip_boxes
from detector.config import ScoringConfig
from detector.postprocess import (
    Candidates,
    Detections,
    best_logits,
    candidates_to_detections,
    gather_candidates,
    postprocess,
    probability,
    select_anchors,
    select_candidates,
)
from detector.retinanet import HeadOutputs

ALPHAS = [0.0, 0.1, 0.3, 0.5, 0.9, 1.0]
Case = tuple[HeadOutputs, tuple[Tensor, ...], Tensor, Tensor]
Found = tuple[np.float32, int, int, np.ndarray]
"""Score, anchor, class, box."""
FIELDS = ("boxes", "scores", "labels", "class_scores", "ious", "anchor_index")


@pytest.fixture(scope="module", autouse=True)
def _one_thread() -> Iterator[None]:
    """Tensors are small here: threads only wait for each other, badly where cores are shared."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def make_case(
    seed: int,
    *,
    num_images: int = 1,
    level_sizes: tuple[int, ...] = (30, 12, 5),
    num_classes: int = 3,
    iou_head: bool = True,
    step: float = 0.0,
    duplicates: bool = False,
    mean: float = -1.0,
) -> Case:
    """Random outputs over boxes that overlap a good deal; `step` above 0 rounds the logits, which makes ties."""
    generator = torch.Generator().manual_seed(seed)
    anchors, cls_logits, box_deltas, iou_logits = [], [], [], []
    for size in level_sizes:
        corner = torch.rand(size, 2, generator=generator) * 60
        anchors.append(torch.cat([corner, corner + 5 + torch.rand(size, 2, generator=generator) * 40], dim=1))
        logits = torch.randn(num_images, size, num_classes, generator=generator) * 2 + mean
        deltas = torch.randn(num_images, size, 4, generator=generator) * 0.2
        quality = torch.randn(num_images, size, generator=generator)
        if duplicates:
            anchors[-1][1:] = anchors[-1][torch.arange(size - 1) // 4]
            deltas = torch.zeros_like(deltas)
        if step > 0:
            logits, quality = (logits / step).round() * step, (quality / step).round() * step
        cls_logits.append(logits)
        box_deltas.append(deltas)
        iou_logits.append(quality)
    outputs = HeadOutputs(
        cls_logits=tuple(cls_logits), box_deltas=tuple(box_deltas), iou_logits=tuple(iou_logits) if iou_head else None
    )
    valid = torch.rand(num_images, sum(level_sizes), generator=generator) > 0.2
    sizes = torch.randint(50, 90, (num_images, 2), generator=generator)
    return outputs, tuple(anchors), valid, sizes


def changed(outputs: HeadOutputs, change: Callable[[Tensor], Tensor]) -> HeadOutputs:
    """The outputs with `change` applied to each tensor."""
    iou_logits = outputs.iou_logits
    return HeadOutputs(
        cls_logits=tuple(map(change, outputs.cls_logits)),
        box_deltas=tuple(map(change, outputs.box_deltas)),
        iou_logits=None if iou_logits is None else tuple(map(change, iou_logits)),
    )


def plain_scores(cls_logits: Tensor, iou_logits: Tensor | None, scoring: ScoringConfig) -> np.ndarray:
    """Eq. 5 in float64 with numpy, rounded once: (A, C) float32."""
    p = (1 / (1 + np.exp(-cls_logits.double().numpy()))).astype(np.float32).astype(np.float64)
    if iou_logits is None or scoring.confidence == "class":
        return p.astype(np.float32)
    q = (1 / (1 + np.exp(-iou_logits.double().numpy()))).astype(np.float32).astype(np.float64)[:, None]
    if scoring.confidence == "none":
        return p.astype(np.float32) * q.astype(np.float32)
    return (p**scoring.alpha * q ** (1 - scoring.alpha)).astype(np.float32)


def plain_postprocess(
    outputs: HeadOutputs, anchors: Sequence[Tensor], anchor_valid: Tensor, image_sizes: Tensor, scoring: ScoringConfig
) -> list[list[Found]]:
    """The definition: all scores, then everything by sorting and loops."""
    results = []
    for image, size in enumerate(image_sizes):
        candidates, offset = [], 0
        for level, level_anchors in enumerate(anchors):
            iou_logits = None if outputs.iou_logits is None else outputs.iou_logits[level][image].float()
            scores = plain_scores(outputs.cls_logits[level][image].float(), iou_logits, scoring)
            boxes = clip_boxes(decode(level_anchors, outputs.box_deltas[level][image].float())[None], size[None])[0]
            best = scores.max(axis=1)
            places = [a for a in range(len(scores)) if anchor_valid[image, offset + a]]
            ranked = sorted((-best[place], place) for place in places)[: scoring.top_k]
            for _, place in ranked:
                for label, score in enumerate(scores[place]):
                    if score > np.float32(scoring.score_threshold):
                        candidates.append((score, offset + place, label, boxes[place].numpy()))
            offset += len(level_anchors)
        kept: list[Found] = []
        for found in sorted(candidates, key=lambda c: (-c[0], c[1], c[2])):
            if all(found[2] != k[2] or not plain_iou(found[3], k[3]) > scoring.nms_iou for k in kept):
                kept.append(found)
        results.append(kept[: scoring.max_detections])
    return results


def plain_iou(a: np.ndarray, b: np.ndarray) -> float:
    width = max(min(a[2], b[2]) - max(a[0], b[0]), np.float32(0))
    height = max(min(a[3], b[3]) - max(a[1], b[1]), np.float32(0))
    union = (a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - width * height
    return float(width * height / union) if union > 0 else 0.0


def assert_equals_plain(detections: Detections, expected: list[Found]) -> None:
    assert list(zip(detections.anchor_index.tolist(), detections.labels.tolist(), strict=True)) == [
        (anchor, label) for _, anchor, label, _ in expected
    ]
    assert detections.scores.tolist() == [float(score) for score, *_ in expected]
    for box, (*_, expected_box) in zip(detections.boxes, expected, strict=True):
        assert np.array_equal(box.numpy(), expected_box)


def assert_same(first: Detections, second: Detections) -> None:
    for name in FIELDS:
        torch.testing.assert_close(getattr(first, name), getattr(second, name), rtol=0, atol=0, equal_nan=True)


def one_level(cls_logits: Any, iou_logits: Any = None, boxes: Tensor | None = None) -> Case:
    """One image and level whose boxes are as given (default: apart from each other)."""
    cls_logits = torch.as_tensor(cls_logits, dtype=torch.float32)
    count = len(cls_logits)
    if boxes is None:
        left = torch.arange(count) * 20.0
        boxes = torch.stack([left, torch.zeros(count), left + 10, torch.full((count,), 10.0)], dim=1)
    outputs = HeadOutputs(
        cls_logits=(cls_logits[None],),
        box_deltas=(torch.zeros(1, count, 4),),
        iou_logits=None if iou_logits is None else (torch.as_tensor(iou_logits, dtype=torch.float32)[None],),
    )
    return outputs, (boxes,), torch.ones(1, count, dtype=torch.bool), torch.tensor([[1000, 100_000]])


def logit(p: Any) -> Tensor:
    return torch.as_tensor(p, dtype=torch.float64).logit().float()


# --- the definition ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("alpha", ALPHAS)
@settings(max_examples=30, deadline=None)
@given(
    seed=st.integers(0, 2**31),
    confidence=st.sampled_from(["alpha", "alpha", "alpha", "none", "class"]),
    iou_head=st.booleans(),
    num_images=st.integers(1, 2),
    num_classes=st.integers(1, 4),
    step=st.sampled_from([0.0, 0.5, 2.0, 40.0]),
    duplicates=st.booleans(),
    mean=st.sampled_from([-6.0, -1.0, 30.0]),
    top_k=st.sampled_from([1, 5, 13, 1000]),
    score_threshold=st.sampled_from([0.0, 0.05, 0.5]),
    max_detections=st.sampled_from([1, 7, 100]),
    first_rows=st.sampled_from([2, 10, 1024]),
)
def test_equals_the_definition(
    alpha: float,
    seed: int,
    confidence: Literal["alpha", "none", "class"],
    iou_head: bool,
    num_images: int,
    num_classes: int,
    step: float,
    duplicates: bool,
    mean: float,
    top_k: int,
    score_threshold: float,
    max_detections: int,
    first_rows: int,
) -> None:
    scoring = ScoringConfig(
        confidence=confidence, alpha=alpha, top_k=top_k, score_threshold=score_threshold, max_detections=max_detections
    )
    case = make_case(
        seed, num_images=num_images, num_classes=num_classes, iou_head=iou_head, step=step, duplicates=duplicates,
        mean=mean,
    )  # fmt: skip
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "_FIRST_ROWS", first_rows)
        results = postprocess(*case, scoring)
    for detections, expected in zip(results, plain_postprocess(*case, scoring), strict=True):
        assert_equals_plain(detections, expected)


@pytest.mark.parametrize("alpha", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("step", [0.0, 0.5])
def test_scoring_the_best_anchors_first_changes_nothing(
    alpha: float, step: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    filled = 0
    for seed in range(10):
        case = make_case(seed, level_sizes=(150, 40), num_classes=6, mean=1.0, step=step)
        for limit in (5, 20, 50):
            scoring = ScoringConfig(alpha=alpha, max_detections=limit, nms_iou=0.7)
            monkeypatch.setattr(module, "_FIRST_ROWS", 10_000)
            (expected,) = postprocess(*case, scoring)
            filled += len(expected.scores) == limit
            for first_rows in (3, 10, 25, 60):
                monkeypatch.setattr(module, "_FIRST_ROWS", first_rows)
                assert_same(postprocess(*case, scoring)[0], expected)
    assert filled > 10


def test_by_hand() -> None:
    # p = 0.8 and 0.2 with q = 0.2 and 0.9; alpha 0.5: sqrt(0.16) = 0.4 and sqrt(0.18) = 0.4243.
    case = one_level(logit([[0.8], [0.2]]), logit([0.2, 0.9]))
    (found,) = postprocess(*case, ScoringConfig())
    assert found.anchor_index.tolist() == [1, 0]
    torch.testing.assert_close(found.scores, torch.tensor([0.18**0.5, 0.4]))
    torch.testing.assert_close(found.class_scores, torch.tensor([0.2, 0.8]))
    torch.testing.assert_close(found.ious, torch.tensor([0.9, 0.2]))
    assert found.boxes.tolist() == [[20, 0, 30, 10], [0, 0, 10, 10]]
    assert found.labels.dtype == found.anchor_index.dtype == torch.int64
    (found,) = postprocess(*case, ScoringConfig(confidence="class"))
    assert found.anchor_index.tolist() == [0, 1]


def test_top_k_keeps_all_classes_of_an_anchor() -> None:
    case = one_level(logit([[0.9, 0.8], [0.85, 0.84], [0.95, 0.1]]))
    (found,) = postprocess(*case, ScoringConfig(top_k=2))
    pairs = list(zip(found.anchor_index.tolist(), found.labels.tolist(), strict=True))
    assert pairs == [(2, 0), (0, 0), (0, 1), (2, 1)]  # anchor 1 is third by its best class, though its pairs score more


def test_top_k_is_by_the_combined_score() -> None:
    case = one_level(logit([[0.9], [0.5]]), logit([0.1, 0.9]))
    assert postprocess(*case, ScoringConfig(top_k=1))[0].anchor_index.tolist() == [1]
    assert postprocess(*case, ScoringConfig(top_k=1, alpha=1.0))[0].anchor_index.tolist() == [0]


def test_none_and_alpha_one_half_rank_alike_and_differ_by_the_threshold() -> None:
    # The grid keeps any two products p q apart by far more than float32 resolves.
    products = torch.linspace(0.001, 0.6, 90)
    q = torch.linspace(0.95, 0.7, 90)[torch.randperm(90, generator=torch.Generator().manual_seed(0))]
    case = one_level(logit(products / q)[:, None], logit(q))
    (none,) = postprocess(*case, ScoringConfig(confidence="none"))
    (half,) = postprocess(*case, ScoringConfig(alpha=0.5))
    assert len(none.scores) == int((products > 0.05).sum())
    assert len(half.scores) == int((products > 0.0025).sum())
    assert half.anchor_index[: len(none.scores)].tolist() == none.anchor_index.tolist()
    (lower,) = postprocess(*case, ScoringConfig(confidence="none", score_threshold=0.0025))
    assert lower.anchor_index.tolist() == half.anchor_index.tolist()
    torch.testing.assert_close(half.scores**2, lower.scores)


# --- ties -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("alpha", ALPHAS)
def test_equal_logits_score_equally_wherever_they_stand(alpha: float) -> None:
    # 37 and 301 leave a rest after the widest vector of any processor; PyTorch's float32 kernels fail this.
    generator = torch.Generator().manual_seed(0)
    for count in (37, 301):
        for p, q in torch.randn(8, 2, generator=generator).tolist():
            case = one_level(torch.full((count, 1), p), torch.full((count,), q))
            (found,) = postprocess(*case, ScoringConfig(alpha=alpha, max_detections=count, top_k=2000))
            assert found.scores.unique().numel() == 1
            assert found.anchor_index.tolist() == list(range(count))


@pytest.mark.parametrize("value", [-30.0, 0.0, 40.0])
def test_all_equal_scores_are_taken_by_level_anchor_class(value: float) -> None:
    outputs, anchors, _, sizes = make_case(0, level_sizes=(9, 5), num_classes=2)
    outputs = changed(outputs, lambda x: torch.zeros_like(x) if x.shape[-1] == 4 else torch.full_like(x, value))
    scoring = ScoringConfig(top_k=3, nms_iou=1.0, score_threshold=0.0)
    (found,) = postprocess(outputs, anchors, torch.ones(1, 14, dtype=torch.bool), sizes, scoring)
    expected = [(anchor, label) for anchor in (0, 1, 2, 9, 10, 11) for label in (0, 1)]
    assert list(zip(found.anchor_index.tolist(), found.labels.tolist(), strict=True)) == expected


def test_probability_rises_with_the_logit_and_forgets_the_place() -> None:
    logits = torch.linspace(-20, 20, 100_003)
    values = probability(logits)
    assert (values.diff() >= 0).all()
    assert torch.equal(probability(logits[::7]), values[::7])
    assert torch.equal(torch.cat([probability(part) for part in logits[:500].split(1)]), values[:500])


# --- candidates -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("step", [0.0, 1.0])
def test_candidates_for_several_alphas_give_direct_inference_for_each(step: float) -> None:
    case = make_case(3, num_images=3, level_sizes=(200, 60, 20), step=step)
    outputs, anchors, valid, sizes = case
    scorings = [ScoringConfig(alpha=alpha, top_k=15) for alpha in ALPHAS]
    scorings += [ScoringConfig(confidence="none", top_k=15), ScoringConfig(confidence="class", top_k=15)]
    assert outputs.iou_logits is not None
    best, ious = best_logits(outputs), [probability(x) for x in outputs.iou_logits]
    kept = torch.stack([select_anchors(best, ious, valid, scoring) for scoring in scorings]).any(dim=0)
    stored = gather_candidates(outputs, anchors, sizes, kept)
    assert all(len(candidates.level) > 45 for candidates in stored)
    for scoring in scorings:
        for variant in (scoring, replace(scoring, top_k=7), replace(scoring, score_threshold=0.3, nms_iou=0.3)):
            for candidates, expected in zip(stored, postprocess(*case, variant), strict=True):
                assert_same(candidates_to_detections(candidates, variant), expected)


def test_candidates_are_ordered_and_as_declared() -> None:
    outputs, anchors, valid, sizes = make_case(1, num_images=2)
    assert outputs.iou_logits is not None
    all_iou_logits = torch.cat(outputs.iou_logits, dim=1)
    for image, candidates in enumerate(select_candidates(outputs, anchors, valid, sizes, ScoringConfig(top_k=10))):
        index = candidates.anchor_index
        assert (index.diff() > 0).all()
        assert valid[image, index].all()
        assert candidates.level.tolist() == [0 if i < 30 else 1 if i < 42 else 2 for i in index.tolist()]
        assert torch.equal(candidates.cls_logits, torch.cat(outputs.cls_logits, dim=1)[image, index])
        assert candidates.iou_logits is not None
        assert torch.equal(candidates.iou_logits, all_iou_logits[image, index])
        decoded = decode(torch.cat(anchors)[index], torch.cat(outputs.box_deltas, dim=1)[image, index])
        assert torch.equal(candidates.boxes, clip_boxes(decoded[None], sizes[image : image + 1])[0])


def test_given_ious_take_the_place_of_the_predicted() -> None:
    case = one_level(logit([[0.5], [0.5]]), logit([0.2, 0.9]))
    (candidates,) = select_candidates(*case, ScoringConfig())
    found = candidates_to_detections(candidates, ScoringConfig(), ious=torch.tensor([0.8, 0.02]))
    assert found.anchor_index.tolist() == [0, 1]
    torch.testing.assert_close(found.ious, torch.tensor([0.8, 0.02]))
    torch.testing.assert_close(found.scores, torch.tensor([0.4**0.5, 0.1]))


# --- edges ------------------------------------------------------------------------------------------------------------


def test_without_iou_head_the_class_score_counts_and_the_iou_is_nan() -> None:
    (found,) = postprocess(*make_case(5, iou_head=False), ScoringConfig(alpha=0.2))
    assert len(found.scores) > 0
    assert torch.equal(found.scores, found.class_scores)
    assert found.ious.isnan().all()


def test_an_image_does_not_depend_on_its_batch() -> None:
    outputs, anchors, valid, sizes = make_case(8, num_images=4, level_sizes=(300, 80, 21), step=0.5)
    valid[2] = False
    scoring = ScoringConfig(alpha=0.3, top_k=50)
    batch = postprocess(outputs, anchors, valid, sizes, scoring)
    assert len(batch) == 4
    for image in range(4):
        part = slice(image, image + 1)
        alone = changed(outputs, lambda x, part=part: x[part])  # type: ignore[misc]
        assert_same(postprocess(alone, anchors, valid[part], sizes[part], scoring)[0], batch[image])


@pytest.mark.parametrize("iou_head", [False, True])
@pytest.mark.parametrize("why", ["threshold", "padding"])
def test_nothing_found_gives_empty_tensors(why: str, iou_head: bool) -> None:
    outputs, anchors, valid, sizes = make_case(2, num_images=2, iou_head=iou_head)
    if why == "padding":
        valid = torch.zeros_like(valid)
    scoring = ScoringConfig(score_threshold=1.0 if why == "threshold" else 0.0)
    for found in postprocess(outputs, anchors, valid, sizes, scoring):
        assert found.boxes.shape == (0, 4)
        assert all(getattr(found, name).shape == (0,) for name in FIELDS[1:])
        assert found.labels.dtype == found.anchor_index.dtype == torch.int64


def test_anchors_in_the_padding_take_no_place_in_the_top_k() -> None:
    outputs, anchors, valid, sizes = one_level(logit([[0.9], [0.8], [0.7]]))
    valid[0, 0] = False
    (found,) = postprocess(outputs, anchors, valid, sizes, ScoringConfig(top_k=2))
    assert found.anchor_index.tolist() == [1, 2]


def test_boxes_are_clipped_to_their_own_image() -> None:
    boxes = torch.tensor([[-5.0, -5.0, 50.0, 50.0]])
    outputs, anchors, _, _ = one_level([[5.0]], boxes=boxes)
    outputs = changed(outputs, lambda x: x.repeat(2, 1, 1))
    sizes = torch.tensor([[20, 30], [40, 10]])
    found = postprocess(outputs, anchors, torch.ones(2, 1, dtype=torch.bool), sizes, ScoringConfig())
    assert [image.boxes.tolist() for image in found] == [[[0, 0, 30, 20]], [[0, 0, 10, 40]]]


def test_never_more_than_the_limit() -> None:
    case = one_level(torch.linspace(3, -2, 400)[:, None])
    (found,) = postprocess(*case, ScoringConfig(score_threshold=0.0))
    assert found.anchor_index.tolist() == list(range(100))


@pytest.mark.parametrize("where", ["class", "iou", "box"])
@pytest.mark.parametrize("top_k", [2, 1000])
def test_nan_outputs_are_dropped(where: str, top_k: int) -> None:
    case = one_level(logit([[0.9, 0.2], [0.8, 0.2], [0.7, 0.2]]), logit([0.5, 0.5, 0.5]))
    (cls_logits,), (box_deltas,), (iou_logits,) = case[0].cls_logits, case[0].box_deltas, case[0].iou_logits or ()
    {"class": cls_logits, "box": box_deltas, "iou": iou_logits}[where][0, 0] = torch.nan
    (found,) = postprocess(*case, ScoringConfig(top_k=top_k))
    assert 0 not in found.anchor_index.tolist()
    assert 1 in found.anchor_index.tolist()
    assert not any(getattr(found, name).isnan().any() for name in FIELDS)
    (candidates,) = select_candidates(*case, ScoringConfig())
    assert_same(candidates_to_detections(candidates, ScoringConfig(top_k=top_k)), found)


def test_infinite_outputs_do_not_fail() -> None:
    case = one_level([[torch.inf], [-torch.inf], [1.0]], [1.0, torch.inf, -torch.inf])
    (found,) = postprocess(*case, ScoringConfig(score_threshold=0.0))
    assert found.anchor_index.tolist() == [0]  # the others score 0, which is not above 0


def test_n3_bfloat16_outputs_are_computed_on_in_float32() -> None:
    outputs, anchors, valid, sizes = make_case(4, level_sizes=(300, 50), num_classes=5)
    half = changed(outputs, Tensor.bfloat16)
    exact = changed(half, Tensor.float)
    for alpha in (0.1, 0.5):
        (found,) = postprocess(half, anchors, valid, sizes, ScoringConfig(alpha=alpha))
        (expected,) = postprocess(exact, anchors, valid, sizes, ScoringConfig(alpha=alpha))
        assert_same(found, expected)
        assert all(getattr(found, name).dtype == torch.float32 for name in ("boxes", "scores", "class_scores", "ious"))


def test_no_gradient_is_kept() -> None:
    outputs, anchors, valid, sizes = make_case(4)
    outputs = changed(outputs, lambda x: x.requires_grad_())
    (found,) = postprocess(outputs, anchors, valid, sizes, ScoringConfig())
    assert not found.scores.requires_grad


class LargestTensor(TorchDispatchMode):
    """Records the size of the largest tensor that any operation makes (views of the outputs aside)."""

    def __init__(self) -> None:
        super().__init__()
        self.num_bytes = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for value in result if isinstance(result, tuple | list) else [result]:
            if isinstance(value, torch.Tensor) and not func.is_view:
                self.num_bytes = max(self.num_bytes, value.numel() * value.element_size())
        return result


def test_memory_is_bounded_at_small_alpha_and_full_size() -> None:
    generator = torch.Generator().manual_seed(0)
    sizes = [9 * -(-800 // s) * -(-1344 // s) for s in (8, 16, 32, 64, 128)]
    assert sum(sizes) == 201_600
    corners = [torch.rand(n, 2, generator=generator) * 1000 for n in sizes]
    outputs = HeadOutputs(
        cls_logits=tuple(torch.randn(1, n, 80, generator=generator) - 6 for n in sizes),
        box_deltas=tuple(torch.zeros(1, n, 4) for n in sizes),
        iou_logits=tuple(torch.randn(1, n, generator=generator) for n in sizes),
    )
    anchors = tuple(torch.cat([corner, corner + 100], dim=1) for corner in corners)
    valid = torch.ones(1, sum(sizes), dtype=torch.bool)
    scoring = ScoringConfig(alpha=0.1)
    (candidates,) = select_candidates(outputs, anchors, valid, torch.tensor([[800, 1333]]), scoring)
    assert candidates.iou_logits is not None
    q = probability(candidates.iou_logits)[:, None].double()
    pairs = probability(candidates.cls_logits).double() ** 0.1 * q**0.9 > 0.05
    assert pairs.sum() > 370_000  # the bound is tested where it matters
    with LargestTensor() as largest:
        (found,) = postprocess(outputs, anchors, valid, torch.tensor([[800, 1333]]), scoring)
    assert len(found.scores) == 100
    assert largest.num_bytes <= 4693 * 80 * 8  # float64 of all pairs; the logits alone are 64.5 MB


def test_candidates_of_no_anchor_give_no_detections() -> None:
    nothing = Candidates(
        anchor_index=torch.zeros(0, dtype=torch.int64),
        level=torch.zeros(0, dtype=torch.int64),
        boxes=torch.zeros(0, 4),
        cls_logits=torch.zeros(0, 3),
        iou_logits=torch.zeros(0),
    )
    assert candidates_to_detections(nothing, ScoringConfig()).boxes.shape == (0, 4)
