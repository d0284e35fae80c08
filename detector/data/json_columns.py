"""Columns of numbers out of a list of JSON objects: one pass over valid lists; invalid entries are named.

K rows. Python's types are checked before numpy sees the values, for numpy would take "12", true and null in silence.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from detector.data.invalid_entries import first_ten, short_repr
from detector.data.samples import LARGEST_COORDINATE_PX
from detector.errors import DatasetError

_LARGEST_ID = 2**63 - 1


@dataclass(frozen=True)
class Rows:
    """The objects of one list of an annotation file ('images', 'annotations', 'categories')."""

    file: Path
    list_name: str
    rows: list[dict[str, Any]]

    @classmethod
    def from_list(cls, file: Path, content: dict[str, Any], list_name: str) -> "Rows":
        """The list of that name; DatasetError where it is missing or holds anything but objects."""
        if list_name not in content:
            raise DatasetError(
                f"has no list {list_name!r}",
                file=file,
                value=sorted(content),
                remedy="A COCO file is an object with 'images', 'annotations' and 'categories'",
            )
        rows = content[list_name]
        if not isinstance(rows, list):
            raise DatasetError("must be a list", file=file, field=list_name, value=type(rows).__name__)
        if not set(map(type, rows)) <= {dict}:
            invalid = [index for index, row in enumerate(rows) if type(row) is not dict]
            raise DatasetError(
                f"{len(invalid)} entries are not objects: {first_ten(invalid, lambda i: f'number {i}')}",
                file=file,
                field=list_name,
            )
        return cls(file, list_name, rows)

    def column(self, key: str) -> list[Any]:
        """The values of a member that every row must have."""
        try:
            return [row[key] for row in self.rows]
        except KeyError:
            lacking = [index for index, row in enumerate(self.rows) if key not in row]
            raise self.error(f"have no {key!r}", lacking, key, show=None) from None

    def integers(self, key: str) -> NDArray[np.int64]:
        """(K,) integers; a float counts as one where it is whole."""
        return self.as_integers(self.column(key), key)

    def ids(self, key: str) -> NDArray[np.int64] | NDArray[np.str_]:
        """(K,) strings where all values are strings without a null, else `integers`."""
        values = self.column(key)
        if values and set(map(type, values)) == {str} and not any("\0" in value for value in values):
            return np.array(values)
        return self.as_integers(values, key)

    def as_integers(self, values: Sequence[Any], key: str) -> NDArray[np.int64]:
        """`values` of the member `key`, one a row, as `integers` gives them."""
        types = set(map(type, values))
        if types <= {int, float}:
            try:
                return np.array(values if types <= {int} else [_whole(value) for value in values], dtype=np.int64)
            except (OverflowError, TypeError):
                pass
        bad = [index for index, value in enumerate(values) if not _is_integer(value)]
        raise self.error("must be a whole number of at most 2^63 - 1", bad, key)

    def sizes(self, values: Sequence[Any], key: str) -> NDArray[np.int64]:
        """`values` of the member `key`, one a row, as whole numbers from 1 on."""
        sizes = self.as_integers(values, key)
        if len(sizes) and sizes.min() < 1:
            raise self.error("must be at least 1", np.flatnonzero(sizes < 1).tolist(), key)
        return sizes

    def texts(self, key: str) -> list[str]:
        """K strings."""
        values = self.column(key)
        if not set(map(type, values)) <= {str}:
            bad = [index for index, value in enumerate(values) if type(value) is not str]
            raise self.error("must be a string", bad, key)
        return values

    def flags(self, key: str) -> NDArray[np.bool_]:
        """(K,) from 0, 1, false, true; missing or null is false."""
        values = [row.get(key) or 0 for row in self.rows]
        bad = [index for index, value in enumerate(values) if value != 0 and value != 1]
        if bad:
            raise self.error("must be 0 or 1", bad, key)
        return np.array(values, dtype=bool)

    def any_mark(self, *keys: str) -> NDArray[np.bool_] | None:
        """(K,) rows in which one of these members is a true value; None where no row has any of them."""
        if not any(key in row for row in self.rows for key in keys):
            return None
        return np.array([any(row.get(key) in (1, "1") for key in keys) for row in self.rows], dtype=bool)

    def boxes(self, key: str) -> NDArray[np.float64]:
        """(K, 4) x, y, width, height up to `LARGEST_COORDINATE_PX`; width and height of at least 0."""
        values = self.column(key)
        boxes = _stack(values)
        if boxes is None:
            bad = [index for index, value in enumerate(values) if _stack([value]) is None]
            raise self.error("must be a list of four numbers x, y, width, height", bad, key)
        bad = np.flatnonzero(~np.isfinite(boxes).all(axis=1)).tolist()
        if bad:
            raise self.error("must be finite", bad, key)
        bad = np.flatnonzero((abs(boxes) > LARGEST_COORDINATE_PX).any(axis=1)).tolist()
        if bad:
            raise self.error(f"must lie within {LARGEST_COORDINATE_PX:,.0f} px", bad, key)
        bad = np.flatnonzero((boxes[:, 2:] < 0).any(axis=1)).tolist()
        if bad:
            raise self.error("must not have a negative width or height (x, y, width, height)", bad, key)
        return boxes

    def areas(self, key: str, default: NDArray[np.float64]) -> NDArray[np.float64]:
        """(K,) finite numbers of at least 0; `default`'s where one is missing or null."""
        values = [row.get(key) for row in self.rows]
        bad = [index for index, value in enumerate(values) if type(value) not in (int, float, type(None))]
        if bad:
            raise self.error("must be a number", bad, key)
        given = np.array([math.nan if value is None else _as_float(value) for value in values], dtype=np.float64)
        missing = np.array([value is None for value in values], dtype=bool)
        bad = np.flatnonzero(~missing & ~(np.isfinite(given) & (given >= 0))).tolist()
        if bad:
            raise self.error("must be finite and at least 0", bad, key)
        return np.where(missing, default, given)

    def require_unique(self, ids: NDArray[np.int64] | NDArray[np.str_], key: str = "id") -> None:
        """DatasetError naming the values that occur more than once."""
        values, counts = np.unique(ids, return_counts=True)
        repeated = values[counts > 1].tolist()
        if repeated:
            raise DatasetError(
                f"{len(repeated)} values are used more than once: {first_ten(repeated)}",
                file=self.file,
                field=f"{self.list_name}.{key}",
                remedy="Each must be used once",
            )

    def error(
        self, problem: str, invalid: Sequence[int], key: str, *, show: str | None = "value", remedy: str | None = None
    ) -> DatasetError:
        """An error about the rows at these positions; `show=None` leaves their values out."""

        def describe(index: int) -> str:
            row = self.rows[index]
            name = f"id {short_repr(row['id'])}" if "id" in row and key != "id" else f"number {index}"
            return f"{name} ({short_repr(row.get(key))})" if show else name

        return DatasetError(
            f"{len(invalid)} of {len(self.rows)} {problem}: {first_ten(invalid, describe)}",
            file=self.file,
            field=f"{self.list_name}.{key}",
            remedy=remedy,
        )


def _whole(value: int | float) -> int | None:
    if type(value) is float:
        return int(value) if value.is_integer() else None
    return int(value)


def _is_integer(value: Any) -> bool:
    whole = _whole(value) if type(value) in (int, float) else None
    return whole is not None and -_LARGEST_ID - 1 <= whole <= _LARGEST_ID


def _stack(values: list[Any]) -> NDArray[np.float64] | None:
    """Lists of four numbers as (K, 4) float64; None where one is anything else."""
    if not set(map(type, values)) <= {list} or not set(map(len, values)) <= {4}:
        return None
    if not set(map(type, chain.from_iterable(values))) <= {int, float}:
        return None
    try:
        flat = np.fromiter(chain.from_iterable(values), dtype=np.float64, count=4 * len(values))
    except OverflowError:
        return None
    return flat.reshape(-1, 4)


def _as_float(value: int | float) -> float:
    try:
        return float(value)
    except OverflowError:
        return math.inf
