"""Statistics of a few paired measurements: median, 95 % interval, and whether a goal is met. Pure functions.

Each pair is one measurement of ours and one of the other, taken right after each other, so that a machine that slows
down slows down both. The statistic is computed pair by pair; its median is bootstrapped over the pairs.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

Kind = Literal["speed-up", "ratio", "overhead", "difference", "value"]

LEAST_PAIRS = 6
"""All of n values lie on one side of the true median with probability 2 / 2^n: 3 % for 6, 6 % for 5. So with fewer
than 6 not even the whole range of what was measured is a 95 % interval."""
_RESAMPLES = 10_000


@dataclass(frozen=True)
class Interval:
    """A median and its 95 % interval, which is endless where there were too few measurements."""

    median: float
    low: float
    high: float


@dataclass(frozen=True)
class Goal:
    """A bound on a statistic."""

    bound: float
    at_least: bool
    """True: the statistic should not be below the bound; False: not above."""
    needs: str = ""
    """Equipment that the goal needs and this machine lacks: 'a GPU'. Measurements here say nothing about it."""


def paired(kind: Kind, ours: Sequence[float], other: Sequence[float] | None) -> list[float]:
    """The statistic of each pair: 'speed-up' other / ours, 'ratio' ours / other, 'overhead' ours / other - 1,
    'difference' ours - other, 'value' ours alone.

    Raises ValueError for columns of different lengths, or none where one is needed.
    """
    if kind == "value":
        return list(ours)
    if other is None or len(other) != len(ours):
        raise ValueError(f"'{kind}' needs pairs: {len(ours)} of ours, {'none' if other is None else len(other)}")
    pairs = zip(ours, other, strict=True)
    if kind == "speed-up":
        return [theirs / own for own, theirs in pairs]
    if kind == "ratio":
        return [own / theirs for own, theirs in pairs]
    if kind == "overhead":
        return [own / theirs - 1.0 for own, theirs in pairs]
    return [own - theirs for own, theirs in pairs]


def interval(values: Sequence[float], *, seed: int = 0) -> Interval:
    """Median of the values and its 95 % interval by percentile bootstrap; the same for the same values.

    Raises ValueError for no values and for values that are not finite.
    """
    measured = np.asarray(values, dtype=np.float64)
    if len(measured) == 0 or not np.isfinite(measured).all():
        raise ValueError(f"no interval for {list(values)!r}")
    median = float(np.median(measured))
    if len(measured) < LEAST_PAIRS:
        return Interval(median, -math.inf, math.inf)
    random = np.random.default_rng(seed)
    drawn = measured[random.integers(0, len(measured), (_RESAMPLES, len(measured)))]
    low, high = np.percentile(np.median(drawn, axis=1), [2.5, 97.5])
    return Interval(median, float(low), float(high))


def verdict(found: Interval, goal: Goal | None) -> str:
    """'met' if even the worse end of the interval meets the goal, 'not met' if even the better end does not, else
    'not resolved'; 'needs a GPU: not measured' where the goal is about one, 'no goal' without one."""
    if goal is None:
        return "no goal"
    if goal.needs:
        return f"needs {goal.needs}: not measured"
    worse, better = (found.low, found.high) if goal.at_least else (found.high, found.low)
    sign = 1.0 if goal.at_least else -1.0
    if sign * worse >= sign * goal.bound:
        return "met"
    return "not resolved" if sign * better >= sign * goal.bound else "not met"
