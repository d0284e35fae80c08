"""A command line as a sweep: the rows of a table, with the options that were given, become trials. Imports no torch."""

import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, TypeVar

import tyro

from detector.config.fields import flatten
from detector.errors import ConfigError
from runyard.commandline.options import Options
from runyard.grid import Trial, expand, parse_axis, with_fields
from runyard.paper import PaperTable
from runyard.spec import ExperimentSpec, RuntimeConfig, SourceConfig, against_recipe, to_dict
from runyard.spec.identity import SEED, digest, parts_of_field

AnyOptions = TypeVar("AnyOptions", bound=Options)
Recipe = Callable[[str], ExperimentSpec]
"""The spec of a row."""


@dataclass(frozen=True)
class Table:
    """A table that an entry point runs."""

    name: str
    """Name of the sweep before options are added to it."""
    recipe: Recipe
    rows: tuple[str, ...]
    smoke: Callable[[ExperimentSpec], ExperimentSpec]
    """Makes a recipe tiny, for --smoke."""
    paper: tuple[PaperTable, ...] = ()
    """Tables of the paper that the rows reproduce."""


@dataclass(frozen=True)
class Command:
    """A sweep that a command line asks for."""

    name: str
    """Name of the sweep: other options make another sweep; other rows, seeds and axes let it grow."""
    trials: tuple[Trial, ...]
    trains: bool = True
    """Whether the trials are trained; False: they score finished runs."""


def parse(
    table: Table,
    description: str,
    options_type: type[AnyOptions],
    arguments: Sequence[str] | None = None,
    *,
    rows: Sequence[str] | None = None,
) -> tuple[AnyOptions, dict[str, Any]]:
    """The options of a command line, and which fields of a spec it gives, by dotted name, with their plain values.

    Rows differ in what they leave to the command line, so only the fields that it names are set in each of them.

    Args:
        rows: default of --rows; None: all of the table. The first one's values are shown as the options' defaults.
    """
    given = list(sys.argv[1:] if arguments is None else arguments)
    shown = table.recipe(_first_row(table, given, rows))
    default = options_type.for_recipe(
        table.smoke(shown) if "--smoke" in given else shown, rows=tuple(rows or table.rows)
    )
    options = tyro.cli(options_type, default=default, args=_row_as_rows(given), description=description)
    return options, _given_fields(options, given)


def build(table: Table, options: Options, given: Mapping[str, Any]) -> Command:
    """The trials that options ask for; ConfigError for unknown rows, bad axes, and options that make two rows equal."""
    _check(table, options)
    if options.seeds > 1 and SEED in given:
        raise ConfigError("is given by two options", field=SEED, remedy="Give --seeds or --seed")
    runtime = _runtime(options)
    specs = {}
    for row in options.rows:
        recipe = table.recipe(row)
        spec = with_fields(table.smoke(recipe) if options.smoke else recipe, given)
        specs[row] = replace(spec, source=_source(options), runtime=runtime)
    return Command(sweep_name(table.name, options, given), expand_options(table, specs, options))


def build_existing(table: Table, runs: Mapping[str, Any], options: Options, given: Mapping[str, Any]) -> Command:
    """The trials that score finished runs as the rows of a table are scored; what was trained stays as it is.

    Args:
        runs: a run's folder for each of the table's rows, in their order; rows without one are left out.

    Raises ConfigError as `finished_run` does, for a run that has an IoU head and must not, or the reverse, and for
    options that would change the training.
    """
    from runyard.runs.finished import finished_run  # imports torch

    _check(table, options)
    training = ["smoke"] * options.smoke + ["seeds"] * (options.seeds > 1)
    training += [name for name in given if "training" in parts_of_field(table.recipe(table.rows[0]), name)]
    if training:
        raise ConfigError("concerns the training, and finished runs are not trained", field=training[0])
    named = {name: value for name, value in vars(_source(options)).items() if value != getattr(SourceConfig(), name)}
    specs = {}
    for row, path in runs.items():
        if path is None or row not in options.rows:
            continue
        wanted, trained = with_fields(table.recipe(row), given), finished_run(path)
        if trained.model.iou_head != wanted.model.iou_head:
            headless = "has no IoU head: every alpha scores it alike"
            problem = "has an IoU head: it is not a baseline" if trained.model.iou_head else headless
            raise ConfigError(problem, file=path)
        specs[row] = replace(
            trained,
            paper=wanted.paper,
            scoring=wanted.scoring,
            protocol=wanted.protocol,
            data=with_fields(trained, {n: v for n, v in given.items() if n.startswith("data.")}).data,
            source=replace(trained.source, **named),
            runtime=replace(_runtime(options), storage=trained.runtime.storage, name=trained.runtime.name),
        )
    trials = expand_options(table, specs, options)
    name = f"{table.name}-{trials[-1].spec.runtime.name}"
    return Command(sweep_name(name, options, given), trials, trains=False)


def expand_options(table: Table, specs: Mapping[str, ExperimentSpec], options: Options) -> tuple[Trial, ...]:
    """The rows with the seeds, axes and test split of the options; their specs say how they differ from the recipe."""
    axes = [parse_axis(text) for text in options.vary]
    if len(dict(axes)) < len(axes):
        raise ConfigError("names a field twice", field="vary", value=options.vary)
    if options.test_split is not None:
        if "data.val_split" in dict(axes):
            raise ConfigError("is given by two options", field="data.val_split", remedy="Leave one of them out")
        axes.append(("data.val_split", (options.data.val_split, options.test_split)))
    trials = expand(specs, seeds=options.seeds, axes=dict(axes))
    return tuple(replace(trial, spec=against_recipe(trial.spec, table.recipe(trial.row))) for trial in trials)


def sweep_name(table: str, options: Options, given: Mapping[str, Any]) -> str:
    """--name, or the table with a hash of the fields that were given and change results."""
    if options.runtime.name is not None:
        return options.runtime.name
    spec = ExperimentSpec(model=options.model)
    changes = {name: value for name, value in given.items() if parts_of_field(spec, name)}
    parts = ["smoke"] * options.smoke + [table] + [digest(changes)[:8]] * bool(changes)
    return "-".join(parts)


def _check(table: Table, options: Options) -> None:
    if not options.rows:
        raise ConfigError("expected at least one row", field="rows", remedy=f"Rows: {', '.join(table.rows)}")
    for position, row in enumerate(options.rows):
        if row not in table.rows:
            raise ConfigError("unknown row", field="rows", value=row, remedy=f"Rows: {', '.join(table.rows)}")
        if row in options.rows[:position]:
            raise ConfigError("is given twice", field="rows", value=row)
    if options.max_concurrent is not None and options.max_concurrent < 1:
        raise ConfigError("expected at least 1", field="max_concurrent", value=options.max_concurrent)
    if options.test_split is not None and options.smoke and options.source.data is None:
        raise ConfigError("the generated images have no such split", field="test_split", value=options.test_split)
    if options.launcher == "local" and options.runtime.workers > 1:
        raise ConfigError(
            "'local' trains in one process",
            field="runtime.workers",
            value=options.runtime.workers,
            remedy="Leave --workers out, or use --launcher ray",
        )


def _source(options: Options) -> SourceConfig:
    return SourceConfig(**{f.name: getattr(options.source, f.name) for f in fields(SourceConfig)})


def _runtime(options: Options) -> RuntimeConfig:
    values = {f.name: getattr(options.runtime, f.name) for f in fields(RuntimeConfig)}
    return RuntimeConfig(**{**values, "name": None})


def _first_row(table: Table, arguments: Sequence[str], rows: Sequence[str] | None) -> str:
    """The row whose values are the options' defaults: the first that the command line names."""
    for position, argument in enumerate(arguments):
        option, equals, value = argument.partition("=")
        if option in ("--row", "--rows"):
            value = value if equals else next(iter(arguments[position + 1 : position + 2]), "")
            if value in table.rows:
                return value
    return (rows or table.rows)[0]


def _row_as_rows(arguments: Sequence[str]) -> list[str]:
    """--row NAME is --rows NAME."""
    return [
        f"--rows{argument[5:]}" if argument == "--row" or argument.startswith("--row=") else argument
        for argument in arguments
    ]


def _given_fields(options: Options, arguments: Sequence[str]) -> dict[str, Any]:
    """Fields of model, losses, optimisation, data, scoring, protocol and seed that the command line names."""
    parts = {
        name: to_dict(getattr(options, name))
        for name in ("model", "loss", "optim", "data", "scoring", "protocol", "seed")
    }
    known = flatten(parts)
    given = {}
    for argument in arguments:
        if argument.startswith("--"):
            name = argument[2:].partition("=")[0].replace("-", "_")
            section, _, last = name.rpartition(".")
            negated = f"{section}.{last.removeprefix('no_')}" if section else last.removeprefix("no_")
            for field in (name, negated):
                if field in known:
                    given[field] = known[field]
                    break
    return given
