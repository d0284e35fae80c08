"""B1: the trials of a line differ in their seeds only, and one setting stands on one line, whatever was run before.

Random sequences of two or three commands (rows, seeds, axes, options, names) are merged as a driver merges them. The
references below restate "same setting" and "same but for the IoU head" without `runyard.spec.identity`.
"""

import functools
import json
import random
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from detector.config import BackboneConfig, LossConfig, RetinaNetConfig, ScoringConfig
from detector.errors import ConfigError
from runyard.commandline.command import Table, build, parse
from runyard.commandline.options import Options
from runyard.grid import Trial, expand, line_names, merge
from runyard.reports.rows import TableRow, baseline_of, rows_of, why_no_baseline
from runyard.runs.folder import RunFolder
from runyard.scoring.results import TrialResult
from runyard.spec import ExperimentSpec, to_dict

SEQUENCES = 2000
HEAD_LOSS = ("iou_loss", "iou_weight", "iou_target_gradient")


def recipe(row: str) -> ExperimentSpec:
    """Rows as in the paper's tables: a baseline, three losses, three confidences."""
    model = RetinaNetConfig(backbone=BackboneConfig(weights="none"), iou_head=row != "baseline")
    loss = LossConfig(iou_loss=row) if row in ("l2", "l1") else LossConfig()
    scoring = ScoringConfig(confidence="none") if row in ("baseline", "none", "l2", "l1") else ScoringConfig()
    if row in ("0.5", "0.1"):
        scoring = replace(scoring, alpha=float(row))
    return ExperimentSpec(recipe=f"r-{row}", model=model, loss=loss, scoring=scoring)


ROWS = ("baseline", "none", "0.5", "0.1", "l2", "l1")
TABLE = Table("table", recipe, ROWS, lambda spec: spec)
AXES = (
    "scoring.nms_iou=0.5,0.2",
    "scoring.nms_iou=0.2",
    "optim.learning_rate=0.001",
    "optim.learning_rate=0.01,0.001",
    "scoring.alpha=0.5,0.3",
    "loss.iou_loss=bce,l2",
    "loss.normaliser=per_device,global",
    "data.val_limit=null,5",
    "seed=0,7",
)
OPTIONS = (
    ("--optim.epochs", "6"),
    ("--loss.iou-weight", "2"),
    ("--scoring.score-threshold", "0.01"),
    ("--workers", "4"),
    ("--accumulation", "2"),
    ("--optim.weight-decay", "0"),
)


def random_command(draw: random.Random) -> list[str]:
    """One command line; the name is always the same, so that all of a sequence meet in one sweep."""
    rows = draw.sample(ROWS, draw.randint(1, 3))
    arguments = ["--name", "one", "--rows", *rows]
    if draw.random() < 0.5:
        arguments += ["--seeds", str(draw.randint(1, 3))]
    for axis in draw.sample(AXES, draw.choice((0, 0, 1, 1, 2))):
        arguments += ["--vary", axis]
    for option in draw.sample(OPTIONS, draw.choice((0, 0, 0, 1, 2))):
        arguments += option
    return arguments


@functools.cache
def setting(spec: ExperimentSpec) -> str:
    """Everything but the seed that can change a number."""
    tree = to_dict(spec)
    content = {name: tree[name] for name in ("model", "loss", "optim", "data", "scoring", "protocol")}
    for name in ("unusable_images", "max_skipped_fraction"):
        del content["data"][name]
    if not spec.model.iou_head:
        for name in HEAD_LOSS:
            del content["loss"][name]
        content["scoring"]["confidence"] = "class"
    if content["scoring"]["confidence"] != "alpha":
        del content["scoring"]["alpha"]
    if spec.loss.normaliser == "per_device":
        content["devices"] = [spec.runtime.workers, spec.runtime.accumulation]
    return json.dumps(content, sort_keys=True)


@functools.cache
def setting_without_head(spec: ExperimentSpec) -> str:
    """The same for what a baseline has to share."""
    content: dict[str, Any] = json.loads(setting(spec))
    del content["model"]["iou_head"]
    for name in HEAD_LOSS:
        content["loss"].pop(name, None)
    for name in ("confidence", "alpha"):
        content["scoring"].pop(name, None)
    return json.dumps(content, sort_keys=True)


def merged_or_refused(known: Sequence[Trial], trials: Sequence[Trial]) -> tuple[Trial, ...] | None:
    """The merged trials; None where one setting would stand in two rows."""
    rows: dict[str, str] = {}
    clash = any(rows.setdefault(setting(t.spec), t.row) != t.row for t in (*known, *trials))
    if clash:
        with pytest.raises(ConfigError, match="are the same trial"):
            merge(known, trials)
        return None
    return merge(known, trials)


def results_of(trials: Sequence[Trial], folder: Path) -> list[TrialResult]:
    """Every trial finished, in a run folder that tells nothing of its data."""
    return [TrialResult(trial, RunFolder(folder / trial.id), {"val/AP": 0.1}) for trial in trials]


def assert_right(rows: Sequence[TableRow], trials: Sequence[Trial]) -> None:
    """No two settings in one row, no setting in two rows, no two rows of one name, no wrong baseline."""
    assert sum(len(row.results) for row in rows) == len(trials)
    for row in rows:
        assert len({setting(result.spec) for result in row.results}) == 1
        assert len(set(row.seeds)) == len(row.seeds)
        baseline = baseline_of(row, rows)
        possible = [
            other
            for other in rows
            if not other.spec.model.iou_head
            and setting_without_head(other.spec) == setting_without_head(row.spec)
            and set(other.seeds) & set(row.seeds)
        ]
        assert baseline is (next(iter(possible), None) if row.spec.model.iou_head else None)
        if row.spec.model.iou_head and not possible:
            assert why_no_baseline(row, rows)
    assert len({setting(row.spec) for row in rows}) == len(rows)
    assert len({row.name for row in rows}) == len(rows)


def test_B1_no_sequence_of_commands_mixes_or_splits_settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # Parsing takes 0.1 s a command, so each command line is parsed once.
    draw = random.Random(0)
    parsed: dict[tuple[str, ...], tuple[Trial, ...] | None] = {}
    for _ in range(60):
        arguments = tuple(random_command(draw))
        options, given = parse(TABLE, "", Options, arguments)
        try:
            parsed[arguments] = build(TABLE, options, given).trials
        except ConfigError:
            parsed[arguments] = None  # two rows that the options make equal
    commands = list(parsed.values())
    assert sum(trials is not None for trials in commands) > 40
    refused = 0
    for _ in range(SEQUENCES):
        known: tuple[Trial, ...] = ()
        for _ in range(draw.choice((2, 2, 3))):
            trials = draw.choice(commands)
            if trials is None:
                continue
            merged = merged_or_refused(known, trials)
            refused += merged is None
            known = merged or known
        if known:
            assert_right(rows_of(results_of(known, tmp_path)), known)
    assert refused < SEQUENCES / 2


def test_B1_an_axis_added_later_does_not_enter_a_mean(tmp_path: Path) -> None:
    base = recipe("0.5")
    first = expand({"0.5": base})
    then = expand({"0.5": base}, axes={"scoring.nms_iou": [0.2]})
    rows = rows_of(results_of(merge(first, then), tmp_path))
    assert [(row.name, len(row.results)) for row in rows] == [
        ("0.5, scoring.nms_iou=0.2", 1),
        ("0.5, scoring.nms_iou=0.5", 1),
    ]


def test_B1_seeds_and_another_learning_rate_are_two_lines(tmp_path: Path) -> None:
    base = recipe("none")
    trials = merge(expand({"none": base}, seeds=2), expand({"none": base}, axes={"optim.learning_rate": [0.001]}))
    rows = rows_of(results_of(trials, tmp_path))
    assert sorted((row.name, row.seeds) for row in rows) == [
        ("none, optim.learning_rate=0.001", (0,)),
        ("none, optim.learning_rate=0.01", (0, 1)),
    ]


def test_B1_seeds_that_come_one_by_one_stand_on_one_line(tmp_path: Path) -> None:
    base = recipe("none")
    trials = expand({"none": base})
    for seed in (3, 1):
        trials = merge(trials, expand({"none": replace(base, seed=seed)}))
    (row,) = rows_of(results_of(trials, tmp_path))
    assert (row.name, row.seeds) == ("none", (0, 1, 3))


def test_B1_the_same_setting_under_two_rows_is_refused() -> None:
    bce = recipe("none")
    with pytest.raises(ConfigError, match="rows 'other' and 'none' are the same trial"):
        merge(expand({"none": bce}), expand({"other": replace(bce, seed=1)}))


def test_B1_a_row_with_one_setting_names_the_fields_that_others_vary() -> None:
    trials = merge(
        expand({"baseline": recipe("baseline"), "0.5": recipe("0.5")}, axes={"scoring.nms_iou": [0.5, 0.2]}),
        expand({"0.1": recipe("0.1")}),
    )
    assert sorted(line_names(trials).values()) == [
        "0.1, scoring.nms_iou=0.5",
        "0.5, scoring.nms_iou=0.2",
        "0.5, scoring.nms_iou=0.5",
        "baseline, scoring.nms_iou=0.2",
        "baseline, scoring.nms_iou=0.5",
    ]
