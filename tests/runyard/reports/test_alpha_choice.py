"""The best alpha: chosen on some images, reported on others."""

from pathlib import Path

from detector.config import DataConfig, ScoringConfig
from runyard.grid import Trial
from runyard.reports.alpha_choice import choice_sentences
from runyard.reports.rows import TableRow, rows_of
from runyard.runs.folder import RunFolder
from runyard.scoring.results import TrialResult
from runyard.spec import ExperimentSpec

APS = {
    "val": {1.0: 0.2, 0.5: 0.4, 0.1: 0.3},
    "test": {1.0: 0.25, 0.5: 0.3, 0.1: 0.35},
}


def rows_on(folder: Path) -> dict[str, list[TableRow]]:
    """By split, a row of each alpha with its AP."""
    results = [
        TrialResult(Trial(spec, str(alpha)), RunFolder(folder), {"val/AP": ap})
        for split, aps in APS.items()
        for alpha, ap in aps.items()
        for spec in [ExperimentSpec(data=DataConfig(val_split=split), scoring=ScoringConfig(alpha=alpha))]
    ]
    rows = rows_of(results)
    return {split: [row for row in rows if row.spec.data.val_split == split] for split in APS}


def test_alpha_is_chosen_on_the_validation_split_and_reported_on_the_test_split(tmp_path: Path) -> None:
    rows = rows_on(tmp_path)
    assert choice_sentences([*rows["val"], *rows["test"]], {}) == [
        "Best alpha on val: 0.5, with COCO AP 40.0 there and 30.0 on test, where the best of any alpha is 35.0."
    ]
