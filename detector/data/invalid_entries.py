"""Naming what is wrong in long lists: the first ten and the count, each short enough for one line."""

import reprlib
from collections.abc import Callable, Sequence
from typing import TypeVar

SHOWN = 10

Offender = TypeVar("Offender")

_short = reprlib.Repr()
_short.maxstring = _short.maxother = 80
_short.maxlevel = 3  # six entries a level: lists within lists grow fast
_LONGEST = 200


def short_repr(value: object) -> str:
    """repr() of a value from an untrusted file, bounded in length and depth; control characters are escaped."""
    text = _short.repr(value)
    return text if len(text) <= _LONGEST else f"{text[: _LONGEST - 1]}…"


def first_offenders(offenders: Sequence[Offender], describe: Callable[[Offender], str] = short_repr) -> str:
    """The first ten offenders described, and how many more there are: 'a; b; and 7 more'. Empty for none."""
    shown = "; ".join(describe(offender) for offender in offenders[:SHOWN])
    return f"{shown}; and {len(offenders) - SHOWN} more" if len(offenders) > SHOWN else shown
