"""A sweep's cells: rows, seeds and axes become trials, each a spec with a stable id. Pure: no files, no torch.

A trial is a training hash and a scoring hash. Trials that share the training hash share the trained weights, so that
they are trained once and scored once each.
"""

import itertools
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from detector.errors import ConfigError
from detector.fields import flatten
from runyard.identity import field_names
from runyard.spec import ExperimentSpec, from_dict, to_dict

_HASH_LENGTH_IN_IDS = 12


@dataclass(frozen=True)
class Trial:
    """One cell of a sweep."""

    spec: ExperimentSpec
    row: str
    """The table's row."""
    line: str
    """The row and what tells this trial from the others of it besides the seed: one line of a table."""
    label: str
    """The line and the seed, where there are several; unique in a sweep."""

    @property
    def id(self) -> str:
        """Training and scoring hash: the same for the same trial, whatever sweep or order it stands in."""
        training, scoring = self.spec.training_hash, self.spec.scoring_hash
        return f"{training[:_HASH_LENGTH_IN_IDS]}-{scoring[:_HASH_LENGTH_IN_IDS]}"


def expand(
    rows: Mapping[str, ExperimentSpec], *, seeds: int = 1, axes: Mapping[str, Sequence[Any]] | None = None
) -> tuple[Trial, ...]:
    """Every row with every combination of the axes' values and every seed from 0 to `seeds - 1`, rows outermost.

    A single seed is the row's own. An axis is a field's dotted name and its values; where it makes no difference to a
    row (the IoU loss of a detector without IoU head), the row stands once. Raises ConfigError for an unknown field, a
    value out of range, and two rows that are the same trial.
    """
    if not rows:
        raise ConfigError("a sweep needs at least one row", field="rows")
    if seeds < 1:
        raise ConfigError("must be at least 1", field="seeds", value=seeds)
    axes = dict(axes or {})
    for name, values in axes.items():
        if name not in field_names(next(iter(rows.values()))):
            raise ConfigError("is no field that changes results", field=name)
        if not values:
            raise ConfigError("has no values", field=name)
    if seeds > 1:
        if "seed" in axes:
            raise ConfigError("is given twice", field="seed", remedy="Give a number of seeds, or vary the seed")
        axes["seed"] = range(seeds)
    trials: dict[str, Trial] = {}
    for row, base in rows.items():
        cells = [dict(zip(axes, values, strict=True)) for values in itertools.product(*axes.values())]
        trials_of_row = [Trial(with_fields(base, cell), row, row, row) for cell in cells]
        ids = [trial.id for trial in trials_of_row]
        told = [name for name in axes if _matters(name, cells, ids)]
        for cell, bare in zip(cells, trials_of_row, strict=True):
            texts = {name: f"{name}={_text(cell[name])}" for name in told}
            line = ", ".join([row, *(text for name, text in texts.items() if name != "seed")])
            trial = replace(bare, line=line, label=", ".join([row, *texts.values()]))
            known = trials.setdefault(trial.id, trial)
            if known.row != row:
                raise ConfigError(
                    f"{known.label!r} and {trial.label!r} are the same trial", field="rows",
                    remedy="Leave out one of them, or the option that makes them equal",
                )  # fmt: skip
    return tuple(trials.values())


def parse_axis(text: str) -> tuple[str, tuple[Any, ...]]:
    """'loss.iou_loss=bce,l2' or 'optim.milestones=[8,11],[6]' as a field and its values; ConfigError for other texts.

    Values are JSON; what is not, is a word.
    """
    name, equals, values = text.partition("=")
    if not equals or not name or not values:
        raise ConfigError(
            "is no axis", value=text, remedy="Write FIELD=VALUE,VALUE, as in optim.learning_rate=0.01,0.02"
        )
    try:
        return name, tuple(json.loads(f"[{values}]"))
    except ValueError:
        return name, tuple(_word_or_json(part) for part in values.split(","))


def with_fields(spec: ExperimentSpec, values: Mapping[str, Any]) -> ExperimentSpec:
    """The spec with some fields, by dotted name, set to plain values; ConfigError as `from_dict` raises it."""
    tree = to_dict(spec)
    fields = list(flatten(tree))
    for name, value in values.items():
        if name not in fields:
            part = name.rpartition(".")[0]
            known = [field for field in fields if field.rpartition(".")[0] == part] or fields
            raise ConfigError("is no field of an experiment", field=name, remedy=f"Known: {', '.join(known)}")
        *parents, leaf = name.split(".")
        branch = tree
        for parent in parents:
            branch = branch[parent]
        branch[leaf] = value
    return from_dict(tree)


def by_training(trials: Sequence[Trial]) -> list[tuple[Trial, ...]]:
    """The trials that share trained weights together, in order of first appearance."""
    groups: dict[str, list[Trial]] = {}
    for trial in trials:
        groups.setdefault(trial.spec.training_hash, []).append(trial)
    return [tuple(group) for group in groups.values()]


def _matters(axis: str, cells: Sequence[Mapping[str, Any]], ids: Sequence[str]) -> bool:
    """Whether two cells that differ in this axis alone are different trials, by their ids."""
    alike: dict[str, set[str]] = {}
    for cell, trial_id in zip(cells, ids, strict=True):
        others = json.dumps({name: value for name, value in cell.items() if name != axis})
        alike.setdefault(others, set()).add(trial_id)
    return any(len(different) > 1 for different in alike.values())


def _word_or_json(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        return text


def _text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)
