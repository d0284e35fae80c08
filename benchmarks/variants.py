"""Ours against torchvision's, eager and compiled: a speed-up each and, on a GPU, an amount with a goal of its own."""

from collections.abc import Callable, Sequence
from functools import partial

from benchmarks.rows import AnyRow, NotRun, Row, rows_or_reason
from benchmarks.settings import GPU, Settings
from benchmarks.timing import Measurement, interleaved


def compare_variants(
    settings: Settings,
    key: str,
    what: str,
    size: str,
    *,
    ours: Callable[[bool], Measurement],
    other: Measurement,
    repeats: int,
    warm_up: int,
    speed_up: float | None,
    amount: Callable[[bool, Sequence[float]], Row],
    not_here: str,
) -> list[AnyRow]:
    """The rows of all variants that the settings ask for; one that fails becomes a row that says so.

    Args:
        ours: measurement in seconds, from True for a compiled network; made when its turn comes.
        speed_up: goal on a GPU; None where the ratio is reported only.
        amount: second row, from True for a compiled network and our seconds.
        not_here: subject of the second row, for machines without a GPU.
    """

    def variant(compiled: bool, name: str) -> list[Row]:
        times, others = interleaved(ours(compiled), other, repeats=repeats, warm_up=warm_up)
        relative = Row(
            key=key,
            what=name,
            size=size,
            kind="speed-up",
            unit="s",
            ours=times,
            other=others,
            other_name="torchvision",
            goal=None if speed_up is None else settings.goal(speed_up, at_least=True, on=GPU),
            goal_text="reported" if speed_up is None else f"{speed_up:g}x and more, on a GPU",
        )
        return [relative, amount(compiled, times)] if settings.on_gpu else [relative]

    rows: list[AnyRow] = []
    for compiled in settings.variants:
        name = f"{what}, {'compiled' if compiled else 'eager'}"
        rows += rows_or_reason(key, name, partial(variant, compiled, name))
    if not settings.on_gpu:
        rows.append(NotRun(key, not_here, "needs a GPU"))
    return rows
