"""Pace of a training by a clock that the test moves."""

from collections.abc import Iterator
from typing import Any

import pytest

from runyard.training import throughput


class Clock:
    """`time` with a `monotonic` that stands still between the test's own seconds."""

    def __init__(self) -> None:
        self.now_s = 100.0

    def monotonic(self) -> float:
        return self.now_s


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    made = Clock()
    monkeypatch.setattr(throughput, "time", made)
    return made


def batches(clock: Clock, seconds: float, count: int) -> Iterator[Any]:
    for number in range(count):
        clock.now_s += seconds
        yield number


def test_the_share_of_the_time_that_is_spent_waiting_for_data(clock: Clock) -> None:
    pace = throughput.Throughput()
    for _ in pace.timed(batches(clock, seconds=1.0, count=3)):
        clock.now_s += 3.0
        pace.count(6, pace.now())
    assert pace.pace() == {"images_per_s": pytest.approx(1.5), "data_wait": pytest.approx(0.25)}
    for _ in pace.timed(batches(clock, seconds=0.0, count=2)):
        clock.now_s += 2.0
        pace.count(6, pace.now())
    assert pace.pace() == {"images_per_s": pytest.approx(3.0), "data_wait": 0.0}  # since the last call alone
    assert pace.pace() == {}


def test_a_step_that_is_read_later_counts_up_to_its_launch(clock: Clock) -> None:
    pace = throughput.Throughput()
    launched = []
    for _ in pace.timed(batches(clock, seconds=1.0, count=2)):
        clock.now_s += 3.0
        launched.append(pace.now())
    pace.count(8, launched[0])  # while the second is on its way
    assert pace.pace() == {"images_per_s": pytest.approx(2.0), "data_wait": pytest.approx(0.25)}
    pace.count(8, launched[1])
    assert pace.pace() == {"images_per_s": pytest.approx(2.0), "data_wait": pytest.approx(0.25)}


def test_evaluations_and_checkpoints_count_for_nothing(clock: Clock) -> None:
    pace = throughput.Throughput()
    for _ in pace.timed(batches(clock, seconds=5.0, count=1)):
        clock.now_s += 100.0
        pace.restart()
        clock.now_s += 2.0
        pace.count(8, pace.now())
    assert pace.pace() == {"images_per_s": pytest.approx(4.0), "data_wait": 0.0}
