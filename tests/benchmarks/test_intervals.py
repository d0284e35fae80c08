"""The statistics: medians, intervals and verdicts, by hand, by property and at the edges."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from benchmarks.intervals import LEAST_PAIRS, Goal, Interval, interval, paired, verdict

VALUES = st.lists(st.floats(0.01, 100), min_size=1, max_size=20)


def test_each_statistic_by_hand() -> None:
    ours, other = [2.0, 4.0], [6.0, 2.0]
    assert paired("speed-up", ours, other) == [3.0, 0.5]
    assert paired("ratio", ours, other) == [1 / 3, 2.0]
    assert paired("overhead", ours, other) == [pytest.approx(-2 / 3), 1.0]
    assert paired("difference", ours, other) == [-4.0, 2.0]
    assert paired("value", ours, None) == ours


@pytest.mark.parametrize("other", [None, [1.0]])
def test_pairs_must_be_pairs(other: list[float] | None) -> None:
    with pytest.raises(ValueError, match="needs pairs: 2 of ours"):
        paired("ratio", [1.0, 2.0], other)


def test_too_few_pairs_have_an_endless_interval() -> None:
    found = interval([1.0, 2.0, 3.0, 4.0, 5.0])
    assert (found.median, found.low, found.high) == (3.0, -math.inf, math.inf)
    assert verdict(found, Goal(0.0, at_least=True)) == "not resolved"


def test_equal_values_have_an_interval_without_width() -> None:
    assert interval([2.5] * LEAST_PAIRS) == Interval(2.5, 2.5, 2.5)


@pytest.mark.parametrize("values", [[], [1.0, math.nan], [math.inf]])
def test_no_interval_for_what_is_no_number(values: list[float]) -> None:
    with pytest.raises(ValueError, match="no interval"):
        interval(values)


@given(VALUES)
def test_the_interval_holds_the_median_and_lies_within_the_values(values: list[float]) -> None:
    found = interval(values)
    assert found.low <= found.median <= found.high
    if len(values) >= LEAST_PAIRS:
        assert min(values) <= found.low
        assert found.high <= max(values)
    assert found == interval(values)


def test_the_interval_covers_the_true_median_nearly_always() -> None:
    random = np.random.default_rng(0)
    covered = 0
    for _ in range(200):
        found = interval(random.lognormal(0.0, 0.3, 15).tolist())
        covered += found.low <= 1.0 <= found.high
    assert 180 <= covered <= 200


def test_a_wide_outlier_does_not_move_the_median() -> None:
    assert interval([1.0] * 9 + [1000.0]).high == 1.0


@pytest.mark.parametrize(
    ("low", "high", "at_least", "expected"),
    [
        (3.0, 4.0, True, "met"),
        (2.9, 4.0, True, "not resolved"),
        (1.0, 2.9, True, "not met"),
        (2.0, 3.0, False, "met"),
        (2.0, 3.1, False, "not resolved"),
        (3.1, 4.0, False, "not met"),
    ],
)
def test_only_the_worse_end_meets_a_goal(low: float, high: float, at_least: bool, expected: str) -> None:
    assert verdict(Interval((low + high) / 2, low, high), Goal(3.0, at_least)) == expected
    assert verdict(Interval((low + high) / 2, low, high), None) == "no goal"
