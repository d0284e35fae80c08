"""From outputs to detections: against the definition written out plainly, on ties, empty and damaged outputs."""

from typing import Literal

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from detector.boxes import clip_boxes
from detector.config import ScoringConfig
from detector.models import postprocess as module
from detector.models.box_coder import decode
from detector.models.confidence import combine_scores
from detector.models.postprocess import (
    candidates_to_detections,
    postprocess,
    probability,
    select_anchors,
)
from tests.detector.models.postprocess_cases import (
    ALPHAS,
    assert_equals_plain,
    assert_same,
    changed,
    logit,
    make_case,
    one_level,
    plain_postprocess,
    select_candidates,
)

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


@pytest.mark.parametrize("confidence", ["alpha", "none", "class"])
@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 2**31),
    spread=st.sampled_from([0.0, 1.0, 5.0, 40.0]),
    step=st.sampled_from([0.0, 1.0]),
    alpha=st.sampled_from([0.0, 0.1, 0.5, 0.9, 1.0]),
    top_k=st.sampled_from([1, 7, 60]),
    iou_head=st.booleans(),
    tiny_ious=st.booleans(),
    damaged=st.booleans(),
)
def test_leaving_out_what_cannot_be_at_the_top_changes_nothing(
    confidence: Literal["alpha", "none", "class"],
    seed: int,
    spread: float,
    step: float,
    alpha: float,
    top_k: int,
    iou_head: bool,
    tiny_ious: bool,
    damaged: bool,
) -> None:
    """The choice of anchors on a CPU, of which few are scored, against the same with all of them scored."""
    generator = torch.Generator().manual_seed(seed)
    best = torch.randn(2, 1500, generator=generator) * spread - 2 * spread
    best = (best / step).round() * step if step else best  # many equal scores
    ious = torch.rand(2, 1500, generator=generator)
    ious = torch.exp(-120 * ious) if tiny_ious else ious
    if damaged:
        best[:, ::7], best[:, ::11], ious[:, ::5], ious[:, ::13] = torch.nan, -torch.inf, 0.0, torch.nan
    valid = torch.rand(2, 1500, generator=generator) < 0.9
    valid[1] &= torch.arange(1500) < 30
    scoring = ScoringConfig(confidence=confidence, alpha=alpha, top_k=top_k)
    found = select_anchors([best], [ious] if iou_head else None, valid, scoring)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "_may_be_at_the_top", lambda best, ious, valid, scoring: valid)
        assert torch.equal(found, select_anchors([best], [ious] if iou_head else None, valid, scoring))


def test_most_anchors_are_left_out_before_they_are_scored() -> None:
    """Else the test above would compare a thing with itself."""
    generator = torch.Generator().manual_seed(0)
    best, ious = torch.randn(20_000, generator=generator) - 3, torch.rand(20_000, generator=generator)
    for alpha in (0.1, 0.5):
        scoring = ScoringConfig(alpha=alpha, top_k=100)
        near = module._may_be_at_the_top(best, ious, torch.ones(20_000, dtype=torch.bool), scoring)
        assert 100 <= int(near.sum()) < 400


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


@settings(max_examples=100, deadline=None)
@given(
    seed=st.integers(0, 2**31),
    scale=st.sampled_from([1.0, 8.0, 40.0]),
    threshold=st.sampled_from([0.0, 1e-45, 1e-30, 1e-6, 0.05, 0.5, 0.999999, 1.0]),
    scoring=st.sampled_from(
        [ScoringConfig(confidence="class"), ScoringConfig(confidence="none")]
        + [ScoringConfig(alpha=alpha) for alpha in (0.0, 1e-6, 0.1, 0.5, 0.9, 1.0)]
    ),
    iou_head=st.booleans(),
)
def test_pairs_that_are_not_scored_would_not_have_passed(
    seed: int, scale: float, threshold: float, scoring: ScoringConfig, iou_head: bool
) -> None:
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(200, 5, generator=generator) * scale
    ious = torch.rand(200, generator=generator)
    ious[:5] = torch.tensor([0.0, 1e-42, 1e-12, 1.0, torch.nan])
    scores = combine_scores(probability(logits), ious if iou_head else None, scoring)
    # The threshold may also be the score of one of them.
    for least in (threshold, scores[100, 0].item()):
        may_pass = module._may_pass(logits, ious if iou_head else None, scoring, least)
        assert not ((scores > least) & ~may_pass).any()
        assert may_pass.shape == logits.shape


@pytest.mark.parametrize("alpha", [0.1, 0.5, 1.0])
def test_hardly_more_pairs_are_scored_than_pass(alpha: float) -> None:
    generator = torch.Generator().manual_seed(0)
    logits, ious = torch.randn(2000, 10, generator=generator) * 3 - 4, torch.rand(2000, generator=generator)
    scoring = ScoringConfig(alpha=alpha)
    passing = combine_scores(probability(logits), ious, scoring) > 0.05
    assert module._may_pass(logits, ious, scoring, 0.05).sum() <= passing.sum() + 20


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


def test_candidates_are_ordered_and_as_declared() -> None:
    outputs, anchors, valid, sizes = make_case(1, num_images=2)
    assert outputs.iou_logits is not None
    all_iou_logits = torch.cat(outputs.iou_logits, dim=1)
    for image, candidates in enumerate(select_candidates(outputs, anchors, valid, sizes, ScoringConfig(top_k=10))):
        index = candidates.anchor_index
        assert (index.diff() > 0).all()
        assert valid[image, index].all()
        assert torch.equal(candidates.cls_logits, torch.cat(outputs.cls_logits, dim=1)[image, index])
        assert candidates.iou_logits is not None
        assert torch.equal(candidates.iou_logits, all_iou_logits[image, index])
        decoded = decode(torch.cat(anchors)[index], torch.cat(outputs.box_deltas, dim=1)[image, index])
        assert torch.equal(candidates.boxes, clip_boxes(decoded[None], sizes[image : image + 1])[0])


def test_a_score_equal_to_the_threshold_is_left_out() -> None:
    case = one_level(logit([[0.75, 0.5]]))
    (found,) = postprocess(*case, ScoringConfig(confidence="class", score_threshold=0.5))
    (all_found,) = postprocess(*case, ScoringConfig(confidence="class", score_threshold=0.49))
    assert (found.labels.tolist(), all_found.scores.tolist()) == ([0], [0.75, 0.5])


def test_given_ious_take_the_place_of_the_predicted() -> None:
    case = one_level(logit([[0.5], [0.5]]), logit([0.2, 0.9]))
    (candidates,) = select_candidates(*case, ScoringConfig())
    found = candidates_to_detections(candidates, ScoringConfig(), ious=torch.tensor([0.8, 0.02]))
    assert found.anchor_index.tolist() == [0, 1]
    torch.testing.assert_close(found.ious, torch.tensor([0.8, 0.02]))
    torch.testing.assert_close(found.scores, torch.tensor([0.4**0.5, 0.1]))
