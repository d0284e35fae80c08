"""The detection confidence, Eq. 5."""

import pytest
import torch

from detector.config import ScoringConfig
from detector.models.confidence import combine_scores


@pytest.fixture
def scores() -> tuple[torch.Tensor, torch.Tensor]:
    torch.manual_seed(0)
    return torch.rand(2, 30, 5), torch.rand(2, 30)


def test_by_hand() -> None:
    p, q = torch.tensor([[0.25, 0.81]]), torch.tensor([0.64])
    combined = combine_scores(p, q, ScoringConfig(alpha=0.5))
    torch.testing.assert_close(combined, torch.tensor([[0.5 * 0.8, 0.9 * 0.8]]))
    torch.testing.assert_close(combine_scores(p, q, ScoringConfig(confidence="none")), p * 0.64)
    skewed = combine_scores(p, q, ScoringConfig(alpha=0.9))
    torch.testing.assert_close(skewed, torch.tensor([[0.25**0.9 * 0.64**0.1, 0.81**0.9 * 0.64**0.1]]))


def test_ends_are_exact_even_at_zero(scores: tuple[torch.Tensor, torch.Tensor]) -> None:
    p, q = scores
    p[0, :3], q[0, :2], q[1, :2] = 0.0, 0.0, 1.0
    assert torch.equal(combine_scores(p, q, ScoringConfig(alpha=1.0)), p)
    assert torch.equal(combine_scores(p, q, ScoringConfig(alpha=0.0)), q[..., None].expand_as(p))


def test_class_score_alone(scores: tuple[torch.Tensor, torch.Tensor]) -> None:
    p, q = scores
    assert torch.equal(combine_scores(p, q, ScoringConfig(confidence="class")), p)
    for confidence in ("alpha", "none", "class"):
        assert torch.equal(combine_scores(p, None, ScoringConfig(confidence=confidence)), p)


@pytest.mark.parametrize("alpha", [0.0, 0.1, 0.5, 0.9, 1.0])
def test_lies_between_its_parts(scores: tuple[torch.Tensor, torch.Tensor], alpha: float) -> None:
    p, q = scores
    combined = combine_scores(p, q, ScoringConfig(alpha=alpha))
    low, high = torch.minimum(p, q[..., None]), torch.maximum(p, q[..., None])
    assert ((combined >= low * (1 - 1e-6)) & (combined <= high * (1 + 1e-6))).all()


def test_none_and_alpha_half_rank_identically(scores: tuple[torch.Tensor, torch.Tensor]) -> None:
    p, q = scores
    product = combine_scores(p, q, ScoringConfig(confidence="none"))
    root = combine_scores(p, q, ScoringConfig(alpha=0.5))
    assert torch.equal(product.flatten().argsort(), root.flatten().argsort())


def test_float32_for_half_precision_and_nothing_for_nothing() -> None:
    p, q = torch.rand(4, 3, dtype=torch.float64).bfloat16(), torch.rand(4).bfloat16()
    for scoring in (ScoringConfig(), ScoringConfig(confidence="none"), ScoringConfig(confidence="class")):
        assert combine_scores(p, q, scoring).dtype == torch.float32
    assert combine_scores(torch.zeros(2, 0, 3), torch.zeros(2, 0), ScoringConfig()).shape == (2, 0, 3)
