"""Command lines become sweeps: options for all rows, seeds, axes, and finished runs in the place of trainings."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from detector.config import RetinaNetConfig, ScoringConfig, TorchvisionRetinaNetConfig
from detector.errors import ConfigError
from detector.files import write_json
from runyard.commandline import command
from runyard.commandline.dry_run import describe_command
from runyard.commandline.options import Options
from runyard.driver.command import run_command
from runyard.grid import labels
from runyard.runs.folder import RunFolder
from runyard.runs.storage import FORMAT
from runyard.spec import ExperimentSpec, to_dict
from runyard.spec.identity import training_hash

ROWS = ("baseline", "none", "0.5")


def recipe(row: str) -> ExperimentSpec:
    if row == "baseline":
        return ExperimentSpec(recipe="baseline", model=RetinaNetConfig(iou_head=False))
    scoring = ScoringConfig(confidence="none") if row == "none" else ScoringConfig(alpha=float(row))
    return ExperimentSpec(recipe="iou", scoring=scoring)


def smoke(spec: ExperimentSpec) -> ExperimentSpec:
    return replace(spec, recipe=f"smoke-{spec.recipe}", optim=replace(spec.optim, epochs=1))


TABLE = command.Table("table", recipe, ROWS, smoke)


def parse(*arguments: str, table: command.Table = TABLE) -> command.Command:
    options, given = command.parse(table, "", Options, arguments)
    return command.build(table, options, given)


def test_no_options_give_the_table() -> None:
    sweep = parse()
    assert (sweep.name, [trial.row for trial in sweep.trials]) == ("table", list(ROWS))
    assert [trial.spec for trial in sweep.trials] == [recipe(row) for row in ROWS]


def test_an_option_holds_for_all_rows_and_names_another_sweep() -> None:
    sweep = parse("--optim.epochs", "3", "--workers", "2", "--data", "/data/coco")
    assert {trial.spec.optim.epochs for trial in sweep.trials} == {3}
    assert {trial.spec.runtime.workers for trial in sweep.trials} == {2}
    assert [trial.spec.scoring for trial in sweep.trials] == [recipe(row).scoring for row in ROWS]
    assert sweep.name.startswith("table-")
    assert parse("--optim.epochs", "3").name == sweep.name != parse("--optim.epochs", "4").name


def test_an_option_that_only_another_detector_has_names_another_sweep() -> None:
    spec = ExperimentSpec(recipe="torchvision", model=TorchvisionRetinaNetConfig())
    table = command.Table("table", lambda _: spec, ("torchvision",), smoke)
    names = [parse(*options, table=table).name for options in ((), ("--model.trainable-layers", "2"))]
    assert names[0] == "table"
    assert names[1].startswith("table-")


def test_a_grown_grid_is_the_same_sweep() -> None:
    small = parse("--rows", "baseline", "none")
    grown = parse("--seeds", "2", "--vary", "optim.learning_rate=0.01,0.02")
    assert small.name == grown.name == "table"
    assert len(grown.trials) == 12
    assert {trial.id for trial in small.trials} < {trial.id for trial in grown.trials}


def test_a_name_names_the_sweep_and_no_run() -> None:
    sweep = parse("--name", "mine")
    assert sweep.name == "mine"
    assert {trial.spec.runtime.name for trial in sweep.trials} == {None}


def test_smoke_makes_every_row_tiny() -> None:
    sweep = parse("--smoke")
    assert sweep.name == "smoke-table"
    assert {trial.spec.optim.epochs for trial in sweep.trials} == {1}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--rows", "l3"), "rows: unknown row"),
        (("--scoring.alpha", "0.3", "--vary", "scoring.confidence=alpha"), "are the same trial"),
        (("--vary", "scoring.alpha=0.5,1.01"), "scoring.alpha: expected a number from 0 to 1"),
        (("--vary", "scoring.alhpa=0.5"), "scoring.alhpa: expected a field that changes results"),
        (("--vary", "seed=1", "--vary", "seed=2"), "vary: names a field twice"),
    ],
)
def test_mistakes_are_named(arguments: Sequence[str], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        parse(*arguments)


def test_a_dry_run_lists_trainings_with_the_trials_that_share_them(capsys: pytest.CaptureFixture[str]) -> None:
    options, given = command.parse(TABLE, "", Options, ["--dry-run", "--workers", "2"])
    run_command(TABLE, command.build(TABLE, options, given), options, {})
    printed = json.loads(capsys.readouterr().out)
    assert (printed["trials"], printed["trainings"], printed["estimated_gpu_hours"]) == (3, 2, "not measured")
    assert [[t["label"] for t in g["trials"]] for g in printed["each_training"]] == [["baseline"], ["none", "0.5"]]
    assert printed["each_training"][0]["cpus"] == 2


def test_gpu_hours_come_from_a_measured_speed(tiny_data: Path) -> None:
    arguments = ["--data", str(tiny_data), "--images-per-second", "0.01", "--optim.epochs", "3", "--optim.milestones"]
    options, given = command.parse(TABLE, "", Options, arguments)
    sweep = command.build(TABLE, options, given)
    described = describe_command(sweep, options.images_per_second)
    assert described["estimated_gpu_hours"] == round(2 * 3 * 21 / 0.01 / 3600, 2)
    assert described["each_training"][0]["estimated_gpu_hours"] == round(3 * 21 / 0.01 / 3600, 2)
    assert describe_command(sweep, None)["estimated_gpu_hours"] == "not measured"
    with pytest.raises(ConfigError, match="must be above 0"):
        describe_command(sweep, 0.0)


def finished(storage: Path, spec: ExperimentSpec, *, trained: bool = True) -> Path:
    folder = RunFolder(storage / f"run-{spec.recipe}")
    hashes = {"training_hash": training_hash(spec), "scoring_hash": spec.scoring_hash}
    write_json(folder.manifest, {"format": FORMAT, **hashes})
    write_json(folder.spec, to_dict(spec), indent=2)
    if trained:
        write_json(folder.evaluation(spec.scoring_hash).metrics, {}, indent=2)
        folder.checkpoint(2).mkdir()
    return folder.root


def build_existing(runs: Mapping[str, Path | None], *arguments: str) -> command.Command:
    options, given = command.parse(TABLE, "", Options, arguments)
    return command.build_existing(TABLE, {row: runs.get(row) for row in ROWS}, options, given)


def test_finished_runs_are_scored_as_they_were_trained(tmp_path: Path) -> None:
    trained = replace(recipe("0.5"), seed=7, optim=replace(recipe("0.5").optim, epochs=2))
    run = finished(tmp_path, trained)
    sweep = build_existing({"none": run, "0.5": run}, "--workers", "3", "--vary", "scoring.top_k=9,10")
    assert list(labels(sweep.trials).values()) == [
        f"{row}, scoring.top_k={k}" for row in ("none", "0.5") for k in (9, 10)
    ]
    for trial in sweep.trials:
        assert trial.spec.training_hash == trained.training_hash
        runtime = trial.spec.runtime
        assert (runtime.storage, runtime.name, runtime.workers) == (tmp_path, run.name, 3)
    assert sweep.name == f"table-{run.name}"
    described = describe_command(sweep, 0.01)
    assert (described["trials"], described["trainings"], described["estimated_gpu_hours"]) == (4, 0, 0.0)
    assert [len(group["trials"]) for group in described["each_finished_run"]] == [4]


def test_runs_that_cannot_be_scored_are_named(tmp_path: Path) -> None:
    unfinished = finished(tmp_path, replace(recipe("none"), recipe="unfinished"), trained=False)
    baseline = finished(tmp_path, recipe("baseline"))
    run = finished(tmp_path, recipe("none"))
    for runs, arguments, message in (
        ({"none": unfinished}, (), "its training is not finished"),
        ({"none": baseline}, (), "has no IoU head"),
        ({"baseline": run}, (), "it is not a baseline"),
        ({"none": tmp_path}, (), "is not the folder of a run"),
        ({"none": run}, ("--optim.epochs", "3"), "optim.epochs: concerns the training"),
        ({"none": run}, ("--seeds", "2"), "seeds: concerns the training"),
        ({"none": run}, ("--smoke",), "smoke: concerns the training"),
        ({"none": None}, (), "at least one row"),
    ):
        with pytest.raises(ConfigError, match=message):
            build_existing(runs, *arguments)


def test_an_option_that_equals_the_first_rows_value_holds_for_the_others() -> None:
    def recipe_with_batch_size(row: str) -> ExperimentSpec:
        spec = recipe(row)
        return spec if row == "baseline" else replace(spec, optim=replace(spec.optim, batch_size=8))

    batch_size = recipe("baseline").optim.batch_size
    table = replace(TABLE, recipe=recipe_with_batch_size)
    trials = parse("--optim.batch-size", str(batch_size), "--seeds", "2", table=table).trials
    assert {trial.spec.optim.batch_size for trial in trials} == {batch_size}
    assert [trial.spec.paper.changed for trial in trials if trial.row == "baseline"] == [(), ()]
    assert {trial.spec.paper.changed for trial in trials if trial.row != "baseline"} == {("optim.batch_size",)}
