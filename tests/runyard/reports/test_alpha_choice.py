"""The best alpha: chosen on some images, reported on others."""

from collections.abc import Mapping
from pathlib import Path

from detector.config import DataConfig, ScoringConfig
from detector.files import write_json
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


def rows_in(folders: Mapping[str, Path]) -> list[TableRow]:
    """For each split, a row of each alpha with its AP, of a run in the split's folder."""
    results = [
        TrialResult(Trial(spec, str(alpha)), RunFolder(folders[split]), {"val/AP": ap})
        for split, aps in APS.items()
        for alpha, ap in aps.items()
        for spec in [ExperimentSpec(data=DataConfig(val_split=split), scoring=ScoringConfig(alpha=alpha))]
    ]
    return rows_of(results)


def test_alpha_is_chosen_on_the_validation_split_and_reported_on_the_test_split(tmp_path: Path) -> None:
    assert choice_sentences(rows_in(dict.fromkeys(APS, tmp_path)), {}) == [
        "Best alpha on val: 0.5, with COCO AP 40.0 there and 30.0 on test, where the best of any alpha is 35.0."
    ]


def test_alpha_is_not_reported_for_weights_of_other_training_images(tmp_path: Path) -> None:
    folders = {split: tmp_path / split for split in APS}
    assert len(choice_sentences(rows_in(folders), {})) == 1
    for split, folder in folders.items():
        write_json(RunFolder(folder).train_data.with_suffix(".json"), {"fingerprint": split})
    assert choice_sentences(rows_in(folders), {}) == []
