"""B15: a smoke run does not pass for a row of the paper, and skipping nothing changes nothing."""

import importlib
from pathlib import Path

import pytest

from runyard.commandline.command import build, parse
from runyard.commandline.options import Options
from runyard.grid import Trial
from runyard.spec.identity import setting_of

EXPERIMENTS = Path(__file__).resolve().parents[2] / "experiments"


@pytest.fixture
def trial_of(monkeypatch: pytest.MonkeyPatch):
    """Function that gives the only trial of coco_main's command line."""
    monkeypatch.syspath_prepend(str(EXPERIMENTS))
    table = importlib.import_module("coco_main").TABLE

    def parsed(*arguments: str) -> Trial:
        options, given = parse(table, "", Options, arguments, rows=("r50-iou",))
        (trial,) = build(table, options, given).trials
        return trial

    return parsed


def test_B15_a_smoke_run_is_not_an_unchanged_reproduction(trial_of) -> None:
    assert trial_of().spec.paper.changed == ()
    assert not trial_of().spec.smoke
    assert trial_of("--smoke").spec.smoke
    changed = trial_of("--smoke").spec.paper.changed
    assert {"model.backbone.name", "optim.epochs", "data.short_side_px"} <= set(changed)


def test_B15_skipping_unusable_images_changes_nothing_where_none_is_skipped(trial_of) -> None:
    plain, skipping = trial_of(), trial_of("--data.unusable-images", "skip")
    assert skipping.spec.data.unusable_images == "skip"
    assert skipping.spec.paper.changed == ()
    assert (skipping.id, setting_of(skipping.spec)) == (plain.id, setting_of(plain.spec))
