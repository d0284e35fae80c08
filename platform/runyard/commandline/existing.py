"""Runs that are finished already, as rows of a sweep."""

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from detector.errors import ConfigError
from runyard.commandline.sweep import SweepCommand, SweepOptions, expand_options, sweep_name
from runyard.grid import with_fields
from runyard.runs.finished import finished_run
from runyard.spec import ExperimentSpec, SourceConfig


def build(
    table: str, recipe: Callable[[str], ExperimentSpec], runs: Mapping[str, Path | None], options: SweepOptions
) -> SweepCommand:
    """The trials that score finished runs as the rows of a table are scored; what was trained stays as it is.

    Args:
        recipe: a row's spec, of which the scoring and the paper's row are taken.
        runs: a run's folder for each of the table's rows, in their order; rows without one are left out.

    Raises ConfigError as `finished_run` does, for a run that has an IoU head and must not, or the reverse, and for
    options that would change the training.
    """
    changes: dict[str, Any] = {}
    for of_row in options.given.values():
        changes |= of_row
    training = ["smoke"] * options.smoke + ["seeds"] * (options.seeds > 1)
    training += [name for name in changes if name.split(".")[0] not in ("scoring", "protocol")]
    if training:
        raise ConfigError("concerns the training, and finished runs are not trained", field=training[0])
    named = {name: value for name, value in vars(options.source).items() if value != getattr(SourceConfig(), name)}
    specs = {}
    for row, path in runs.items():
        if path is None or row not in options.rows:
            continue
        wanted = with_fields(recipe(row), options.given.get(row, {}))
        trained = finished_run(path)
        if trained.model.iou_head != wanted.model.iou_head:
            headless = "has no IoU head: every alpha scores it alike"
            problem = "has an IoU head: it is no baseline" if trained.model.iou_head else headless
            raise ConfigError(problem, file=path)
        specs[row] = replace(
            trained,
            paper=wanted.paper,
            scoring=wanted.scoring,
            protocol=wanted.protocol,
            source=replace(trained.source, **named),
            runtime=replace(options.runtime, storage=trained.runtime.storage, name=trained.runtime.name),
        )
    trials = expand_options(specs, recipe, options)
    return SweepCommand(sweep_name(f"{table}-{trials[-1].spec.runtime.name}", options), trials, trains=False)
