"""The command line of a sweep: a table's rows as recipes, with typed options over all of them. Imports no torch."""

import argparse
import json
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

import tyro

from detector.errors import ConfigError
from runyard.commandline.entry import CommonOptions, describe, estimated_gpu_hours
from runyard.grid import Trial, by_training, expand, parse_axis, with_fields
from runyard.identity import changed_fields, digest
from runyard.spec import ExperimentSpec, against_recipe, to_dict

if TYPE_CHECKING:
    from runyard.paper import PaperTable


@dataclass(frozen=True)
class SweepOptions(CommonOptions):
    """The command line of one table. An option of the model, the data and so on holds for all rows."""

    rows: tuple[str, ...] = ()
    """Which of the table's rows."""
    seeds: int = 1
    """Every row is trained with the seeds 0 to N - 1."""
    vary: tyro.conf.UseAppendAction[tuple[str, ...]] = ()
    """A further axis, as FIELD=VALUE,VALUE: optim.learning_rate=0.005,0.01. May be given several times; every row runs
    with every combination."""
    max_concurrent: int | None = None
    """Trainings at once. None: as many as the cluster can hold."""
    given: Annotated[Mapping[str, Mapping[str, Any]], tyro.conf.Fixed, tyro.conf.Suppress] = field(default_factory=dict)
    """By row, the fields that change results and that the command line has set, by dotted name: what a row's recipe
    says already is not among them."""


AnyOptions = TypeVar("AnyOptions", bound=SweepOptions)


@dataclass(frozen=True)
class SweepCommand:
    """What a command line asks for."""

    name: str
    """Of the sweep: other options make another sweep, other rows, seeds and axes the same one with a grown grid."""
    trials: tuple[Trial, ...]
    trains: bool = True
    """False: the trials score runs that are finished."""


def parse(
    recipe: Callable[[str], ExperimentSpec],
    rows: Sequence[str],
    smoke: Callable[[ExperimentSpec], ExperimentSpec],
    description: str,
    options_type: type[AnyOptions],
    arguments: Sequence[str] | None = None,
) -> tuple[AnyOptions, Callable[[str], ExperimentSpec]]:
    """The options, and the recipe of a row, made tiny for --smoke.

    Args:
        rows: all of the table; the first one's values are shown as the options' defaults.
    """
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    # It decides the defaults of all others, so it is read first.
    first = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    first.add_argument("--smoke", action="store_true")
    made_tiny = first.parse_known_args(arguments)[0].smoke

    def made(row: str) -> ExperimentSpec:
        return smoke(recipe(row)) if made_tiny else recipe(row)

    def parsed(row: str) -> AnyOptions:
        default = options_type.of(made(row), rows=tuple(rows))
        return tyro.cli(options_type, default=default, args=arguments, description=description)

    options = parsed(rows[0])
    # Rows differ in what they leave to the command line, so each is asked: an option may be one row's own value.
    chosen = [row for row in rows if row in options.rows] if arguments else []
    given = {row: changed_fields(made(row), parsed(row).apply(made(row))) for row in chosen}
    return replace(options, given=given), made


def build(
    table: str, recipe: Callable[[str], ExperimentSpec], rows: Sequence[str], options: SweepOptions
) -> SweepCommand:
    """The trials that options ask for; an option holds for all rows.

    Args:
        table: the sweep's name before options are added to it.
        rows: all of the table, as for `parse`.

    Raises ConfigError for unknown rows, bad axes, and options that make two rows equal.
    """
    unknown = [row for row in options.rows if row not in rows]
    if options.max_concurrent is not None and options.max_concurrent < 1:
        raise ConfigError("must be at least 1", field="max_concurrent", value=options.max_concurrent)
    if unknown:
        raise ConfigError("is no row of this table", field="rows", value=unknown[0], remedy=f"Rows: {', '.join(rows)}")
    runtime = replace(options.runtime, name=None)
    specs = {
        row: replace(with_fields(recipe(row), options.given.get(row, {})), source=options.source, runtime=runtime)
        for row in options.rows
    }
    return SweepCommand(sweep_name(table, options), expand_options(specs, recipe, options))


def expand_options(
    specs: Mapping[str, ExperimentSpec], recipe: Callable[[str], ExperimentSpec], options: SweepOptions
) -> tuple[Trial, ...]:
    """The rows with the seeds and the axes that the options ask for; their specs say how they differ from `recipe`."""
    axes = [parse_axis(text) for text in options.vary]
    if len(dict(axes)) < len(axes):
        raise ConfigError("names a field twice", field="vary", value=options.vary)
    trials = expand(specs, seeds=options.seeds, axes=dict(axes))
    return tuple(replace(trial, spec=against_recipe(trial.spec, recipe(trial.row))) for trial in trials)


def sweep_name(table: str, options: SweepOptions) -> str:
    """--name, or the table with what was changed in its rows."""
    if options.runtime.name is not None:
        return options.runtime.name
    changes: dict[str, Any] = {}
    for of_row in options.given.values():
        changes |= of_row
    parts = ["smoke"] * options.smoke + [table] + [digest(dict(changes))[:8]] * bool(changes)
    return "-".join(parts)


def run(
    command: SweepCommand,
    options: SweepOptions,
    runtime_env: dict[str, Any],
    paper: Sequence["PaperTable"],
) -> None:
    """Runs the sweep, or prints what it would run.

    Args:
        paper: the tables that the rows reproduce.
    """
    if options.dry_run:
        print(json.dumps(describe_sweep(command, options.images_per_second), indent=1))
        return
    from runyard.driver.experiment import how_to_browse
    from runyard.driver.sweep import run_sweep

    result = run_sweep(
        command.trials,
        command.name,
        launcher=options.launcher,
        smoke=options.smoke,
        runtime_env=runtime_env,
        max_concurrent=options.max_concurrent,
        paper=paper,
    )
    print(f"To print it again: runyard table {result.folder.root}")
    print(f"To browse it: {how_to_browse(result.results[0].spec)}")


def describe_sweep(command: SweepCommand, images_per_second: float | None = None) -> dict[str, Any]:
    """What a dry run prints: each training, or finished run, once, with the trials that share it."""
    groups = by_training(command.trials)
    trainings = [group[0].spec for group in groups] if command.trains else []
    hours = estimated_gpu_hours(trainings, images_per_second) if trainings else 0.0
    return {
        "sweep": command.name,
        "trials": len(command.trials),
        "trainings": len(trainings),
        "estimated_gpu_hours": hours,
        "each_training" if command.trains else "each_finished_run": [
            _describe_group(group, command.trains, images_per_second) for group in groups
        ],
    }


def _describe_group(group: Sequence[Trial], trains: bool, images_per_second: float | None) -> dict[str, Any]:
    shared = describe(group[0].spec, images_per_second if trains else None)
    del shared["trials"], shared["spec"]
    if not trains:
        del shared["estimated_gpu_hours"]
    trials = [{"label": trial.label, "id": trial.id, "scoring": vars(trial.spec.scoring)} for trial in group]
    return {**shared, "trials": trials, "spec": to_dict(group[0].spec)}
