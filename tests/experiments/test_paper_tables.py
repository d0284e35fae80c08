"""The paper as data: spot checks, and what the paper says of its own numbers."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

EXPERIMENTS = Path(__file__).resolve().parents[2] / "experiments"


@pytest.fixture(autouse=True)
def experiments_on_path(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(EXPERIMENTS))


def test_spot_checks_against_the_printed_tables() -> None:
    from paper_tables import TABLE1, TABLE2, TABLE3, TABLE4, TABLE5, TABLES

    assert [table.number for table in TABLES] == [1, 2, 3, 4, 5]
    assert [len(table.rows) for table in TABLES] == [16, 3, 13, 13, 4]
    assert list(TABLE1.rows["deformable-rfcn"].percent.values()) == [37.5, 58.0, 40.8, 19.4, 40.1, 52.5]
    assert TABLE1.rows["x101-iou"].percent["APL"] == 51.8
    assert TABLE2.rows["l2"].percent == {"AP": 35.1, "AP50": 53.8, "AP75": 37.9, "APS": 18.6, "APM": 39.2, "APL": 47.6}
    assert TABLE3.rows["0.7"].percent["AP75"] == 37.7
    assert TABLE4.rows["0.1"].percent["AP90"] == 13.3
    assert TABLE5.rows["r101-iou"].percent["AP70"] == 68.5


def test_the_tables_agree_with_each_other() -> None:
    from paper_tables import TABLE2, TABLE3, TABLE4

    for key, row in TABLE3.rows.items():
        assert {name: TABLE4.rows[key].percent[name] for name in ("AP", "AP50")} == {
            name: row.percent[name] for name in ("AP", "AP50")
        }
    assert TABLE2.rows["bce"].percent == TABLE3.rows["none"].percent
    assert TABLE2.rows["baseline"].percent == TABLE3.rows["baseline"].percent


def test_gains_are_those_of_the_abstract() -> None:
    from paper_tables import TABLE1, TABLE5

    def gain(table: object, backbone: str) -> float:
        rows = table.rows  # type: ignore[attr-defined]
        return round(rows[f"{backbone}-iou"].percent["AP"] - rows[f"{backbone}-baseline"].percent["AP"], 1)

    assert [gain(TABLE1, backbone) for backbone in ("r50", "r101", "x101")] == [1.0, 1.1, 1.6]
    assert [gain(TABLE5, backbone) for backbone in ("r50", "r101")] == [2.2, 1.1]


def test_every_row_that_is_trained_has_its_line_and_settings() -> None:
    import paper_tables
    import recipes

    for rows, recipe, table in (
        (recipes.TABLE1_ROWS, recipes.table1, paper_tables.TABLE1),
        (recipes.TABLE2_ROWS, recipes.table2, paper_tables.TABLE2),
        (recipes.TABLE3_ROWS, recipes.table3, paper_tables.TABLE3),
        (recipes.TABLE5_ROWS, recipes.table5, paper_tables.TABLE5),
    ):
        ours = {row: recipe(row) for row in rows}
        missing = set(ours) - set(table.rows)
        assert missing <= {"l1", "bce-target-gradient", "x101-32x8d-baseline", "x101-32x8d-iou"}
        assert all(spec.paper.table == table.name and spec.paper.row == row for row, spec in ours.items())
        assert len({(s.training_hash, s.scoring_hash) for s in ours.values()}) == len(ours)
    assert set(paper_tables.TABLE2.rows) <= set(recipes.TABLE2_ROWS)
    assert set(paper_tables.TABLE3.rows) == set(recipes.TABLE3_ROWS)


def test_the_ablations_share_their_trainings() -> None:
    from recipes import TABLE2_ROWS, TABLE3_ROWS, table2, table3

    two = {row: table2(row) for row in TABLE2_ROWS}
    three = {row: table3(row) for row in TABLE3_ROWS}
    assert len({spec.training_hash for spec in two.values()}) == 5
    assert len({spec.training_hash for spec in three.values()}) == 2
    for a, b in (("baseline", "baseline"), ("bce", "none")):
        assert (two[a].training_hash, two[a].scoring_hash) == (three[b].training_hash, three[b].scoring_hash)
        assert two[a].recipe == three[b].recipe  # the run's folder is named after it
    for spec in two.values():
        assert spec.optim.scaled_learning_rate == pytest.approx(0.0075)
        assert (spec.data.short_side_px, spec.data.long_side_px) == (600, 1000)


def test_it_needs_no_torch() -> None:
    program = "import sys; sys.modules['torch'] = None; import paper_tables"
    roots = (EXPERIMENTS, EXPERIMENTS.parent, EXPERIMENTS.parent / "platform")
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(map(str, roots))}
    ran = subprocess.run([sys.executable, "-c", program], env=env, capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr
