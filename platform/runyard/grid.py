"""A sweep's grid: rows, seeds and axes become trials; trials of one setting form one line of a table.

A trial is a specification: its training hash names the weights and its evaluation hash the numbers. Trials that share
the training hash are trained once. Pure: no files, no torch.
"""

import itertools
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from detector.config.fields import flatten
from detector.errors import ConfigError
from runyard.spec import ExperimentSpec, from_dict, to_dict
from runyard.spec.identity import SEED, describe, differing_fields, field_names, setting_of, value_text


@dataclass(frozen=True)
class Trial:
    """One cell of a sweep."""

    spec: ExperimentSpec
    row: str
    """The table's row."""

    @cached_property
    def id(self) -> str:
        """Training and evaluation hash: the same for the same trial in any sweep and order."""
        return self.spec.trial_id

    @cached_property
    def setting(self) -> str:
        """Key of everything but the seed: results of one setting may be averaged."""
        return json.dumps(setting_of(self.spec), sort_keys=True)


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
        raise ConfigError("expected at least 1", field="seeds", value=seeds)
    axes = dict(axes or {})
    for name, values in axes.items():
        _check_axis(name, values, next(iter(rows.values())))
    if seeds > 1:
        if SEED in axes:
            remedy = "Give a number of seeds, or vary the seed"
            raise ConfigError("is given by two options", field=SEED, remedy=remedy)
        axes[SEED] = range(seeds)
    trials: dict[str, Trial] = {}
    for row, base in rows.items():
        for values in itertools.product(*axes.values()):
            trial = Trial(with_fields(base, dict(zip(axes, values, strict=True))), row)
            trials.setdefault(trial.id, trial)
            if trials[trial.id].row != row:
                raise _same_trial(trials[trial.id].row, row)
    return tuple(trials.values())


def merge(earlier: Sequence[Trial], now: Sequence[Trial]) -> tuple[Trial, ...]:
    """Trials of a sweep that goes on with a part of its grid: all it ever had, those of `now` as they are now.

    In the earlier order, new ones behind the trial that they follow in `now`. Raises ConfigError where one setting
    would stand in two rows: each row of a table is one line or several, and no line belongs to two rows.
    """
    merged = {trial.id: trial for trial in earlier}
    order = list(merged)
    place = 0
    for trial in now:
        if trial.id in merged:
            place = order.index(trial.id) + 1
        else:
            order.insert(place, trial.id)
            place += 1
        merged[trial.id] = trial if trial.id not in merged or merged[trial.id].row == trial.row else merged[trial.id]
    trials = tuple(merged[trial_id] for trial_id in order)
    row_of: dict[str, str] = {}
    for trial in (*trials, *now):
        if row_of.setdefault(trial.setting, trial.row) != trial.row:
            raise _same_trial(row_of[trial.setting], trial.row)
    return trials


def line_names(trials: Iterable[Trial]) -> dict[str, str]:
    """Text of each trial's line by trial id: the row, and what tells the settings of one row apart.

    The fields that are named are those in which any two settings of a row differ; a row that has one setting names them
    too, so that lines of several rows can be compared.
    """
    trials = list(trials)
    by_row: dict[str, dict[str, ExperimentSpec]] = {}
    for trial in trials:
        by_row.setdefault(trial.row, {})[trial.setting] = trial.spec
    differing = dict.fromkeys(name for specs in by_row.values() for name in differing_fields(list(specs.values())))
    texts = {trial.id: describe(trial.spec, differing) for trial in trials}
    return {trial.id: ", ".join(filter(None, (trial.row, texts[trial.id]))) for trial in trials}


def labels(trials: Iterable[Trial]) -> dict[str, str]:
    """Text of each trial by trial id: its line, and its seed where the line has several."""
    trials = list(trials)
    lines = line_names(trials)
    seeds: dict[str, set[int]] = {}
    for trial in trials:
        seeds.setdefault(trial.setting, set()).add(trial.spec.seed)
    return {
        trial.id: f"{lines[trial.id]}, seed={trial.spec.seed}" if len(seeds[trial.setting]) > 1 else lines[trial.id]
        for trial in trials
    }


def parse_axis(text: str) -> tuple[str, tuple[Any, ...]]:
    """'loss.iou_loss=bce,l2' or 'optim.milestones=[8,11],[6]' as a field and its values; ConfigError for other texts.

    Values are JSON; everything else is a word.
    """
    name, equals, values = text.partition("=")
    if not equals or not name or not values:
        remedy = "Write an axis as in optim.learning_rate=0.01,0.02"
        raise ConfigError("expected FIELD=VALUE,VALUE", field="vary", value=text, remedy=remedy)
    try:
        return name, tuple(json.loads(f"[{values}]"))
    except ValueError:
        return name, tuple(_word_or_json(part) for part in values.split(","))


def with_fields(spec: ExperimentSpec, values: Mapping[str, Any]) -> ExperimentSpec:
    """The spec with some fields, by dotted name, set to plain values; ConfigError as `from_dict` raises it."""
    tree = to_dict(spec)
    known = flatten(tree)
    for name, value in values.items():
        if name not in known:
            section = name.rpartition(".")[0]
            near = [field for field in known if field.rpartition(".")[0] == section] or sorted(field_names(spec))
            raise ConfigError("unknown field of an experiment", field=name, remedy=f"Known: {', '.join(near)}")
        *parents, leaf = name.split(".")
        branch = tree
        for parent in parents:
            branch = branch[parent]
        branch[leaf] = value
    return from_dict(tree)


def by_training(trials: Sequence[Trial]) -> list[tuple[Trial, ...]]:
    """The trials that share trained weights, grouped, in order of first appearance."""
    groups: dict[str, list[Trial]] = {}
    for trial in trials:
        groups.setdefault(trial.spec.training_hash, []).append(trial)
    return [tuple(group) for group in groups.values()]


def _check_axis(name: str, values: Sequence[Any], spec: ExperimentSpec) -> None:
    varied = [field for field in field_names(spec) if not field.startswith(("runtime.", "source."))]
    if name not in varied:
        remedy = f"Vary one of {', '.join(varied)}"
        raise ConfigError("expected a field that changes results, not a path or resource", field=name, remedy=remedy)
    if not values:
        raise ConfigError("expected at least one value", field=name)
    if len({value_text(value) for value in values}) < len(values):
        raise ConfigError("expected different values", field=name, value=list(values))


def _same_trial(one: str, other: str) -> ConfigError:
    return ConfigError(
        f"rows {one!r} and {other!r} are the same trial",
        field="rows",
        remedy="Leave out one of them, or the option that makes them equal",
    )


def _word_or_json(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        return text
