"""Taking turns: who is measured when, and what is counted."""

import gc

import torch

from benchmarks.timing import interleaved, repeated, seconds


def test_both_are_measured_in_turn_and_the_first_one_alternates() -> None:
    calls: list[str] = []

    def measurement(name: str) -> float:
        calls.append(name)
        return float(len(calls))

    ours, other = interleaved(lambda: measurement("a"), lambda: measurement("b"), repeats=3, warm_up=2)
    assert "".join(calls) == "ab" + "ba" + "ab" + "ba" + "ab"
    assert ours == [5.0, 8.0, 9.0]
    assert other == [6.0, 7.0, 10.0]


def test_garbage_is_collected_between_measurements_only() -> None:
    seen = []
    interleaved(lambda: float(seen.append(gc.isenabled()) or 0), lambda: 0.0, repeats=1)
    assert seen == [False, False]
    assert gc.isenabled()


def test_collection_is_switched_on_again_after_an_error() -> None:
    try:
        interleaved(lambda: 1 / 0, lambda: 0.0, repeats=1)
    except ZeroDivisionError:
        assert gc.isenabled()


def test_seconds_counts_every_call() -> None:
    calls: list[int] = []
    value = seconds(lambda: calls.append(1), torch.device("cpu"), calls=4)()
    assert len(calls) == 4
    assert value >= 0


def test_repeated_does_not_count_the_warm_up() -> None:
    values = iter([9.0, 1.0, 2.0])
    assert repeated(lambda: next(values), repeats=2) == [1.0, 2.0]
