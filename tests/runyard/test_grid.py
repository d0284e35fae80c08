"""Rows, seeds and axes become trials with stable ids."""

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from detector.config import LossConfig, RetinaNetConfig, ScoringConfig
from detector.errors import ConfigError
from runyard.grid import by_training, expand, labels, merge, parse_axis, with_fields
from runyard.spec import ExperimentSpec, RuntimeConfig
from runyard.spec.identity import changed_fields

BASELINE = ExperimentSpec(recipe="baseline", model=RetinaNetConfig(iou_head=False))
IOU = ExperimentSpec(recipe="iou")


def alphas(*values: float) -> dict[str, ExperimentSpec]:
    return {str(value): replace(IOU, scoring=ScoringConfig(alpha=value)) for value in values}


def test_rows_seeds_and_axes_multiply_rows_outermost() -> None:
    trials = expand({"baseline": BASELINE, "iou": IOU}, seeds=2, axes={"optim.epochs": [1, 2]})
    assert [trial.row for trial in trials] == ["baseline"] * 4 + ["iou"] * 4
    assert [(t.spec.optim.epochs, t.spec.seed) for t in trials[:4]] == [(1, 0), (1, 1), (2, 0), (2, 1)]
    assert labels(trials)[trials[1].id] == "baseline, optim.epochs=1, seed=1"
    assert len({trial.id for trial in trials}) == len(set(labels(trials).values())) == 8


def test_one_seed_leaves_the_label_alone() -> None:
    (trial,) = expand({"iou": IOU})
    assert (labels([trial])[trial.id], trial.row, trial.spec.seed) == ("iou", "iou", 0)


def test_an_id_is_training_and_scoring_hash_and_knows_nothing_of_places() -> None:
    (trial,) = expand({"iou": IOU})
    elsewhere = replace(IOU, recipe="other", runtime=RuntimeConfig(workers=8, experiment="elsewhere"))
    assert expand({"x": elsewhere})[0].id == trial.id
    assert trial.id == f"{IOU.training_hash[:12]}-{IOU.scoring_hash[:12]}"
    for changed in (replace(IOU, seed=1), replace(IOU, scoring=ScoringConfig(alpha=0.4)), replace(IOU, protocol="voc")):
        assert expand({"x": changed})[0].id != trial.id


def test_a_grown_grid_keeps_the_ids_that_were_there() -> None:
    small = expand({"iou": IOU}, seeds=2)
    grown = expand({"baseline": BASELINE, "iou": IOU}, seeds=3)
    assert {trial.id for trial in small} < {trial.id for trial in grown}


def test_a_trial_that_stands_in_one_row_is_refused_in_another() -> None:
    with pytest.raises(ConfigError, match="rows 'iou' and 'other' are the same trial"):
        merge(expand({"iou": IOU}), expand({"other": IOU}))


def test_new_trials_stand_behind_the_one_that_they_follow() -> None:
    merged = merge(expand({"baseline": BASELINE, **alphas(1.0, 0.5)}), expand(alphas(1.0, 0.7, 0.6)))
    assert [trial.row for trial in merged] == ["baseline", "1.0", "0.7", "0.6", "0.5"]


def test_alphas_share_one_training() -> None:
    groups = by_training(expand({"baseline": BASELINE, **alphas(1.0, 0.5, 0.0)}))
    assert [[trial.row for trial in group] for group in groups] == [["baseline"], ["1.0", "0.5", "0.0"]]


def test_an_axis_that_concerns_the_absent_head_leaves_one_baseline() -> None:
    trials = expand({"baseline": BASELINE, "iou": IOU}, axes={"loss.iou_loss": ["bce", "l2"]})
    assert list(labels(trials).values()) == ["baseline", "iou, loss.iou_loss=bce", "iou, loss.iou_loss=l2"]


@pytest.mark.parametrize(
    ("rows", "options", "message"),
    [
        ({"iou": IOU}, {"axes": {"loss.iou_los": ["bce"]}}, "loss.iou_los: expected a field that changes results"),
        ({"iou": IOU}, {"axes": {"loss": ["bce"]}}, "loss: expected a field that changes results"),
        ({"iou": IOU}, {"axes": {"seed.x": [1]}}, "seed.x: expected a field that changes results"),
        ({"iou": IOU}, {"axes": {"runtime.loader_workers": [1]}}, "expected a field that changes results"),
        ({"iou": IOU}, {"axes": {"runtime.workers": [1, 8]}}, "not a path or resource"),
        ({"iou": IOU}, {"axes": {"source.weights_digest": ["a", "b"]}}, "not a path or resource"),
        ({"iou": IOU}, {"axes": {"scoring.alpha": [0.5, 1.5]}}, r"scoring.alpha: expected a number from 0 to 1"),
        ({"iou": IOU}, {"axes": {"scoring.alpha": [float("nan")]}}, "scoring.alpha"),
        ({"iou": IOU}, {"axes": {"scoring.alpha": ["high"]}}, "expected a value of type float"),
        ({"iou": IOU}, {"axes": {"loss.iou_loss": ["huber"]}}, "expected one of"),
        ({"iou": IOU}, {"axes": {"scoring.alpha": []}}, "expected at least one value"),
        ({"iou": IOU}, {"seeds": 0}, "seeds: expected at least 1"),
        ({"iou": IOU}, {"seeds": 2, "axes": {"seed": [7]}}, "seed: is given by two options"),
        ({}, {}, "at least one row"),
        ({"a": IOU, "b": replace(IOU, recipe="b")}, {}, "'a' and 'b' are the same trial"),
    ],
)
def test_bad_grids_are_refused(rows: dict[str, ExperimentSpec], options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        expand(rows, **options)


@pytest.mark.parametrize(
    ("text", "axis"),
    [
        ("scoring.alpha=0.1,1", ("scoring.alpha", (0.1, 1))),
        ("loss.iou_loss=bce,l2", ("loss.iou_loss", ("bce", "l2"))),
        ("optim.milestones=[8,11],[6]", ("optim.milestones", ([8, 11], [6]))),
        ("data.train_limit=null,100", ("data.train_limit", (None, 100))),
        ("loss.iou_target_gradient=true,false", ("loss.iou_target_gradient", (True, False))),
        ("data.train_split=2007:trainval+2012:trainval", ("data.train_split", ("2007:trainval+2012:trainval",))),
    ],
)
def test_axes_are_read_from_words(text: str, axis: tuple[str, tuple[Any, ...]]) -> None:
    assert parse_axis(text) == axis


@pytest.mark.parametrize("text", ["", "alpha", "=1", "alpha="])
def test_texts_that_are_not_an_axis_are_refused(text: str) -> None:
    with pytest.raises(ConfigError, match="expected FIELD=VALUE"):
        parse_axis(text)


@given(alpha=st.floats(0, 1), epochs=st.integers(1, 99), head=st.booleans())
def test_changed_fields_are_those_that_with_fields_needs(alpha: float, epochs: int, head: bool) -> None:
    changed = with_fields(IOU, {"scoring.alpha": alpha, "optim.epochs": epochs, "model.iou_head": head})
    again = with_fields(IOU, changed_fields(IOU, changed))
    assert again.trial_id == changed.trial_id
    assert again == changed or not head  # alpha means nothing without the head
    assert changed_fields(again, changed) == {}
    assert changed_fields(changed, changed) == {}


def test_places_are_no_changed_fields() -> None:
    moved = replace(IOU, runtime=RuntimeConfig(workers=8), loss=LossConfig(iou_loss="l2"))
    assert changed_fields(IOU, moved) == {"loss.iou_loss": "l2"}
