"""Fields of configuration dataclasses: the identity they belong to, their canonical values, their plain JSON form.

Imports no torch.
"""

import dataclasses
import functools
import math
import sys
import types
import typing
from collections.abc import Callable, Hashable, Mapping
from pathlib import Path
from typing import Any, Literal

from detector.errors import ConfigError

Part = Literal["training", "validation", "scoring"]
"""'training' names the weights, 'validation' the images that are evaluated, 'scoring' how outputs become numbers."""

KIND = "kind"
"""Key of the plain form that tells the members of a union of dataclasses apart; a class attribute of each."""

_PARTS, _ONLY_WITH = "identity", "only_with"


def identity(*parts: Part, only_with: "str | Callable[[Any], bool] | None" = None) -> dict[str, object]:
    """Metadata of a field that changes results; without parts, of one that does not.

    A field without metadata belongs to what the field that holds its dataclass belongs to.

    Args:
        only_with: the field counts only where this holds in the whole specification: a dotted name whose value is
            true ('model.iou_head'), a dotted name with a value ('scoring.confidence=alpha'), or a function of the
            specification. A field named here has to count itself.
    """
    return {_PARTS: parts, _ONLY_WITH: only_with}


def parts_of(field: "dataclasses.Field[Any]", inherited: tuple[Part, ...]) -> tuple[Part, ...]:
    """Parts of the identity that a field belongs to; those of the dataclass that holds it unless it has its own."""
    parts: tuple[Part, ...] = field.metadata.get(_PARTS, inherited)
    return parts


def condition_of(field: "dataclasses.Field[Any]") -> "str | Callable[[Any], bool] | None":
    """`only_with` of a field."""
    condition: str | Callable[[Any], bool] | None = field.metadata.get(_ONLY_WITH)
    return condition


def canonicalise(config: object, section: str) -> None:
    """Give every field of a frozen dataclass its canonical value; called first in `__post_init__`.

    Integers become floats where floats are declared, -0.0 becomes 0.0, lists become tuples, texts become paths. So two
    configurations that mean the same are equal, and stay so when they are written and read.

    Raises ConfigError, naming `section` and field, for values of another type and for words outside a Literal.
    """
    kind: Any = type(config)
    hints = type_hints(kind)
    for field in dataclasses.fields(config):  # type: ignore[arg-type]
        value = getattr(config, field.name)
        object.__setattr__(config, field.name, convert(value, hints[field.name], f"{section}.{field.name}"))


def to_dict(value: Any) -> Any:
    """Plain JSON form of a configuration dataclass or of any value in one."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        kind = {KIND: getattr(value, KIND)} if hasattr(value, KIND) else {}
        return kind | {field.name: to_dict(getattr(value, field.name)) for field in dataclasses.fields(value)}
    if isinstance(value, tuple):
        return [to_dict(item) for item in value]
    return str(value) if isinstance(value, Path) else value


def from_dict(tree: object, config: type, *, where: str) -> Any:
    """Inverse of `to_dict` for the dataclass `config`; absent keys keep their defaults.

    Raises ConfigError for an unknown key, a value of another type or one outside its range; `where` is the dotted name
    that it says.
    """
    if not isinstance(tree, Mapping):
        raise ConfigError("expected a mapping", field=where, value=tree)
    known = {field.name for field in dataclasses.fields(config)}
    given = {key: value for key, value in tree.items() if key != KIND or not hasattr(config, KIND)}
    if unknown := sorted(str(key) for key in given if key not in known):
        remedy = f"Known keys: {', '.join(sorted(known))}"
        raise ConfigError("unknown key", field=f"{where}.{unknown[0]}", remedy=remedy)
    hints = type_hints(config)
    return config(**{key: convert(value, hints[key], f"{where}.{key}") for key, value in given.items()})


def flatten(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Leaves of a nested mapping by dotted name, in order."""
    leaves: dict[str, Any] = {}
    for key, value in tree.items():
        if isinstance(value, Mapping):
            leaves |= flatten(value, f"{prefix}{key}.")
        else:
            leaves[f"{prefix}{key}"] = value
    return leaves


def convert(value: Any, hint: Any, where: str) -> Any:
    """Canonical form of a value for a type hint; ConfigError, naming `where`, for a value of another type."""
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        if value is None and type(None) in arguments:
            return None
        members = [argument for argument in arguments if argument is not type(None)]
        return convert(value, _member(value, members, where), where)
    if dataclasses.is_dataclass(hint) and isinstance(hint, type):
        return value if isinstance(value, hint) else from_dict(value, hint, where=where)
    if origin is Literal:
        # Compared with the type: 1 equals True, and JSON has both.
        if not any(value == word and type(value) is type(word) for word in arguments):
            raise ConfigError(f"expected one of {', '.join(map(repr, arguments))}", field=where, value=value)
        return value
    if origin is tuple:
        if not isinstance(value, list | tuple):
            raise ConfigError("expected a list", field=where, value=value)
        return tuple(convert(item, arguments[0], f"{where}[{i}]") for i, item in enumerate(value))
    if hint is Path and isinstance(value, str):
        return Path(value)
    if hint is float and isinstance(value, int | float) and not isinstance(value, bool):
        return _canonical_float(value, where)
    if not isinstance(value, hint) or (hint is int and isinstance(value, bool)):
        raise ConfigError(f"expected a value of type {hint.__name__}", field=where, value=value)
    return value


@functools.cache
def type_hints(config: Hashable) -> dict[str, Any]:
    """Type hints of a dataclass, evaluated."""
    return typing.get_type_hints(config)


def _member(value: Any, members: list[Any], where: str) -> Any:
    """Member of a union that a value is, or whose plain form it is."""
    if len(members) == 1:
        return members[0]
    if isinstance(value, Mapping):
        kinds = {member.kind: member for member in members}
        kind = value.get(KIND, members[0].kind)
        if kind not in kinds:
            raise ConfigError(f"expected one of {', '.join(kinds)}", field=f"{where}.{KIND}", value=kind)
        return kinds[kind]
    for member in members:
        if isinstance(value, member):
            return member
    raise ConfigError(
        f"expected one of {', '.join(member.__name__ for member in members)}", field=where, value=type(value).__name__
    )


def _canonical_float(value: int | float, where: str) -> float:
    if isinstance(value, int) and abs(value) > sys.float_info.max:  # JSON's integers have no limit
        raise ConfigError("is too large for a number", field=where, value=value)
    number = float(value)
    return 0.0 if number == 0 and math.copysign(1.0, number) < 0 else number
