"""Identity of experiments: which weights, images and numbers are the same, and in which fields two differ.

Everything derives from the metadata of the fields (`detector.config.fields`): the hashes that name run and evaluation
folders, the differences that a message lists, which results may be averaged or compared, and the text that tells two
lines of a table apart. Only what differs from a field's default is hashed, so that a new field changes no existing
hash; a changed default does (golden identities in the tests). Imports no torch.
"""

import dataclasses
import functools
import hashlib
import json
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from detector.config import IOU_HEAD, NUMERICS_VERSION
from detector.config.fields import KIND, Part, condition_of, parts_of, to_dict

ALL_PARTS: tuple[Part, ...] = ("training", "validation", "scoring")
SEED = "seed"
_HASH_LENGTH_IN_IDS = 12


@dataclass(frozen=True)
class Leaf:
    """One field of a specification that holds no further fields."""

    value: Any
    """Plain form."""
    default: Any
    parts: tuple[Part, ...]
    condition: str | Callable[[Any], bool] | None


def identity_of(spec: Any, *parts: Part) -> dict[str, Any]:
    """Fields that count in any of the parts and differ from their defaults, by dotted name; plain values.

    Args:
        spec: an ExperimentSpec, or any tree of dataclasses.
    """
    fields = {name: leaf.value for name, leaf in _counted(spec, parts).items() if leaf.value != leaf.default}
    numerics = {"numerics": NUMERICS_VERSION} if "training" in parts and NUMERICS_VERSION != 1 else {}
    return numerics | fields


def training_hash(spec: Any) -> str:
    """16 hexadecimal digits that name the trained weights."""
    return _hash_of(spec, "training")


def validation_hash(spec: Any) -> str:
    """16 hexadecimal digits that name the selection of evaluated images."""
    return _hash_of(spec, "validation")


def evaluation_hash(spec: Any) -> str:
    """16 hexadecimal digits that name the selection of images and the way outputs become numbers."""
    return _hash_of(spec, "validation", "scoring")


def trial_id(spec: Any) -> str:
    """Training and evaluation hash, shortened: the same for the same trial in any sweep."""
    return f"{training_hash(spec)[:_HASH_LENGTH_IN_IDS]}-{evaluation_hash(spec)[:_HASH_LENGTH_IN_IDS]}"


def setting_of(spec: Any) -> dict[str, Any]:
    """Identity without the seed: results of one setting may be averaged."""
    return {name: value for name, value in identity_of(spec, *ALL_PARTS).items() if name != SEED}


def baseline_setting_of(spec: Any) -> dict[str, Any]:
    """Setting without the IoU head and all that concerns only the head: what a baseline has to share."""
    leaves = _leaves(spec)
    return {name: value for name, value in setting_of(spec).items() if not _concerns_head(name, leaves)}


def field_names(spec: Any) -> tuple[str, ...]:
    """Dotted names of the fields that can change results."""
    return tuple(name for name, leaf in _leaves(spec).items() if leaf.parts)


def parts_of_field(spec: Any, name: str) -> tuple[Part, ...]:
    """Parts of the identity that the named field belongs to; empty for an unknown field and for one without any."""
    leaf = _leaves(spec).get(name)
    return leaf.parts if leaf else ()


def changed_fields(before: Any, after: Any, *parts: Part) -> dict[str, Any]:
    """Fields of the parts (all of them by default) that differ, by dotted name, with their plain values in `after`.

    In the order of the fields. One that counts in one of the two only is listed too, as None where `after` lacks it.
    """
    old, new = (identity_of(spec, *(parts or ALL_PARTS)) for spec in (before, after))
    leaves = _leaves(after)
    order = dict.fromkeys((*leaves, *_leaves(before), *new, *old))
    names = [name for name in order if old.get(name) != new.get(name)]
    return {name: leaves[name].value if name in leaves else None for name in names}


def differences(before: Any, after: Any, *parts: Part) -> list[str]:
    """Fields of the parts (the training's by default) that differ, as 'model.iou_head: True -> False'."""
    known = {**_leaves(before), **_leaves(after)}
    old, new = ({n: leaf.value for n, leaf in _leaves(spec).items()} for spec in (before, after))
    return [
        f"{name}: {old.get(name)!r} -> {new.get(name)!r}"
        for name in changed_fields(before, after, *(parts or ("training",)))
        if name in known
    ]


def differing_fields(specs: Sequence[Any]) -> tuple[str, ...]:
    """Fields besides the seed in which the settings of the specifications differ, in the order of the fields."""
    settings = [setting_of(spec) for spec in specs]
    names = dict.fromkeys(name for setting in settings for name in setting)
    different = {name for name in names if len({_key(setting.get(name, _ABSENT)) for setting in settings}) > 1}
    order = dict.fromkeys(name for spec in specs for name in _leaves(spec))
    return tuple(name for name in order if name in different)


def describe(spec: Any, names: Iterable[str]) -> str:
    """'scoring.nms_iou=0.5, loss.iou_loss=l2': the named fields as far as they count for the specification."""
    counted = _counted(spec, ALL_PARTS)
    return ", ".join(f"{name}={value_text(counted[name].value)}" for name in names if name in counted)


def value_text(value: Any) -> str:
    """A plain value as the command line takes it: words bare, everything else as JSON."""
    return value if isinstance(value, str) else json.dumps(value)


def digest(content: Mapping[str, Any]) -> str:
    """16 hexadecimal digits that name a plain mapping, whatever its order."""
    return hashlib.sha256(_key(content).encode()).hexdigest()[:16]


_ABSENT = {"absent": True}


def _hash_of(spec: Any, *parts: Part) -> str:
    # With the parts, so that two kinds of hashes of one specification are never equal.
    return digest({"parts": parts, "fields": identity_of(spec, *parts)})


def _key(value: Any) -> str:
    return json.dumps(value, sort_keys=True)


def _counted(spec: Any, parts: Iterable[Part]) -> dict[str, Leaf]:
    """Fields of any of the parts whose condition holds."""
    wanted, leaves = set(parts), _leaves(spec)
    return {name: leaf for name, leaf in leaves.items() if wanted & set(leaf.parts) and _counts(leaf, spec, leaves)}


def _leaves(spec: Any, inherited: tuple[Part, ...] = (), prefix: str = "") -> dict[str, Leaf]:
    found: dict[str, Leaf] = {}
    kind: Any = type(spec)
    defaults = _defaults(kind)
    for field in dataclasses.fields(spec):
        value, default = getattr(spec, field.name), getattr(defaults, field.name)
        parts, name = parts_of(field, inherited), f"{prefix}{field.name}"
        if not dataclasses.is_dataclass(value):
            found[name] = Leaf(to_dict(value), to_dict(default), parts, condition_of(field))
            continue
        if hasattr(value, KIND):
            found[f"{name}.{KIND}"] = Leaf(getattr(value, KIND), getattr(default, KIND), parts, None)
        found |= _leaves(value, parts, f"{name}.")
    return found


@functools.cache
def _defaults(config: Hashable) -> Any:
    """Default instance of a dataclass."""
    assert callable(config)
    return config()


def _counts(leaf: Leaf, spec: Any, leaves: Mapping[str, Leaf]) -> bool:
    if leaf.condition is None:
        return True
    if callable(leaf.condition):
        return leaf.condition(spec)
    name, has_value, wanted = leaf.condition.partition("=")
    if name in leaves and not _counts(leaves[name], spec, leaves):
        return False
    value: Any = spec
    for part in name.split("."):
        value = getattr(value, part)
    return value_text(value) == wanted if has_value else bool(value)


def _concerns_head(name: str, leaves: Mapping[str, Leaf]) -> bool:
    """Whether a field is the IoU head's, or counts only with it."""
    if name == IOU_HEAD:
        return True
    condition = leaves[name].condition if name in leaves else None
    return isinstance(condition, str) and _concerns_head(condition.partition("=")[0], leaves)
