"""Safe names and the run folder."""

import re
from pathlib import Path

from hypothesis import example, given
from hypothesis import strategies as st

from runyard.runs.folder import RunFolder
from runyard.runs.names import run_name, safe_name


def test_ordinary_names_stay_readable() -> None:
    assert safe_name("coco_r50-iou_aware.v2") == "coco_r50-iou_aware.v2"
    assert safe_name("../../x") == "~2E.~2F..~2Fx"


@given(st.text(st.characters(exclude_categories=[])))
@example("x" * 120)
@example("x" * 121)
@example("é" * 20)
@example("é" * 21)
def test_every_text_has_one_harmless_name(text: str) -> None:
    name = safe_name(text)
    assert 0 < len(name) <= 120
    assert re.fullmatch(r"[A-Za-z0-9~_][A-Za-z0-9._~-]*", name)
    assert name not in (".", "..")
    assert ("~h" in name) >= (len(text) > 120)


@given(st.text(max_size=200), st.text(max_size=200))
def test_two_texts_never_share_a_name(one: str, other: str) -> None:
    assert (safe_name(one) == safe_name(other)) == (one == other)


def test_long_names_with_a_common_head_differ() -> None:
    assert safe_name("a" * 300) != safe_name("a" * 301)


def test_run_name_depends_on_recipe_and_hash_alone() -> None:
    assert run_name("coco/r50", "0123456789abcdef0123") == "coco~2Fr50-0123456789ab"


def test_everything_of_a_run_lies_under_its_root(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path / "run")
    other = folder.evaluation("../../" * 5)
    evaluation = folder.evaluation("abcdef0123456789")
    assert evaluation.metrics.relative_to(folder.root).as_posix() == "evaluation/abcdef012345/metrics.json"
    paths = [
        folder.spec, folder.manifest, folder.journal, folder.tracking, folder.initial_weights,
        folder.checkpoint(7), folder.plots, folder.train_data, folder.val_data("../01"), folder.candidates("/01"),
        evaluation.detections,
        evaluation.correlation_plot, evaluation.gallery_image("../../x"), other.detections,
    ]  # fmt: skip
    assert len(set(paths)) == len(paths)
    assert all(path.resolve().is_relative_to(folder.root.resolve()) for path in paths)
