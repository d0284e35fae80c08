"""Naming what is wrong in long lists: the first ten and the count, each short enough for one line."""

import reprlib
from collections.abc import Callable, Sequence
from typing import TypeVar

SHOWN = 10

Entry = TypeVar("Entry")

_short = reprlib.Repr()
_short.maxstring = _short.maxother = 80
_short.maxlevel = 3  # six entries a level: lists within lists grow fast
_LONGEST = 200


def short_repr(value: object) -> str:
    """repr() of a value from an untrusted file, bounded in length and depth; control characters are escaped."""
    text = _short.repr(value)
    return text if len(text) <= _LONGEST else f"{text[: _LONGEST - 1]}…"


def first_ten(entries: Sequence[Entry], describe: Callable[[Entry], str] = short_repr) -> str:
    """Description of the first ten entries, and the number of the others: 'a; b; and 7 more'. Empty for none."""
    shown = "; ".join(describe(entry) for entry in entries[:SHOWN])
    return f"{shown}; and {len(entries) - SHOWN} more" if len(entries) > SHOWN else shown
