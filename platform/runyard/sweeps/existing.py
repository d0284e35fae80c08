"""Runs that are finished already, as rows of a sweep."""

import json
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path

from detector.errors import ConfigError, InputError
from runyard.layout import RunFolder
from runyard.spec import ExperimentSpec, from_dict
from runyard.sweeps.command import SweepCommand, SweepOptions, changes_of, expand_options, sweep_name
from runyard.sweeps.grid import with_fields


def build(
    table: str, recipe: Callable[[str], ExperimentSpec], runs: Mapping[str, Path | None], options: SweepOptions
) -> SweepCommand:
    """The trials that score finished runs as the rows of a table are scored; what was trained stays as it is.

    Args:
        recipe: a row's spec, of which the scoring and the paper's row are taken.
        runs: a run's folder for each of the table's rows, in their order; rows without one are left out.

    Raises ConfigError as `finished_run` does, and for options that would change the training.
    """
    changes = changes_of(recipe(next(iter(runs))), options)
    training = ["smoke"] * options.smoke + ["seeds"] * (options.seeds > 1)
    training += [name for name in changes if name.split(".")[0] not in ("scoring", "protocol")]
    if training:
        raise ConfigError("concerns the training, and finished runs are not trained", field=training[0])
    specs = {}
    for row, path in runs.items():
        if path is None or row not in options.rows:
            continue
        wanted = with_fields(recipe(row), changes)
        trained = finished_run(path, iou_head=wanted.model.iou_head)
        specs[row] = replace(
            trained,
            paper=wanted.paper,
            scoring=wanted.scoring,
            protocol=wanted.protocol,
            source=options.source if options.source.data is not None else trained.source,
            runtime=replace(options.runtime, storage=trained.runtime.storage, name=trained.runtime.name),
        )
    trials = expand_options(specs, recipe, options)
    return SweepCommand(sweep_name(f"{table}-{trials[-1].spec.runtime.name}", options, changes), trials)


def finished_run(path: Path, *, iou_head: bool) -> ExperimentSpec:
    """The spec of a run whose training is finished, with the place where its folder lies now.

    Raises ConfigError where the folder holds no such run, or where it has an IoU head and must not, or the reverse.
    """
    folder = RunFolder(path.expanduser().resolve())
    try:
        spec: ExperimentSpec = from_dict(json.loads(folder.spec.read_text()))
    except (OSError, ValueError) as error:
        remedy = "Give the folder of one run: the one that holds spec.json"
        raise ConfigError(f"is not the folder of a run ({_reason(error)})", file=folder.root, remedy=remedy) from error
    if not folder.evaluations() or not folder.checkpoints():
        raise ConfigError("its training is not finished", file=folder.root, remedy="Run its command again first")
    if spec.model.iou_head != iou_head:
        problem = "has no IoU head: every alpha scores it alike" if iou_head else "has an IoU head: it is no baseline"
        raise ConfigError(problem, file=folder.root)
    return replace(spec, runtime=replace(spec.runtime, storage=folder.root.parent, name=folder.root.name))


def _reason(error: Exception) -> str:
    if isinstance(error, OSError):
        return f"{error.strerror}: {error.filename}"
    return str(error) if isinstance(error, InputError) else "spec.json is no JSON"
