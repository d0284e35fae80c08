"""`runyard detect` ranks as the run was evaluated, whatever scoring was asked for later."""

import json
from dataclasses import replace
from pathlib import Path

from detector.config import ScoringConfig
from runyard import cli
from runyard.runs.prepare import prepare
from runyard.spec import ExperimentSpec
from runyard.training.local import launch


def test_B6_detect_ranks_as_the_run_was_evaluated(tiny_spec: ExperimentSpec, tiny_data: Path, tmp_path: Path) -> None:
    optim = replace(tiny_spec.optim, epochs=1, milestones=())
    spec = replace(tiny_spec, optim=optim, scoring=ScoringConfig(alpha=0.9, score_threshold=0.001))
    prepared = prepare(spec)
    run = prepared.folder
    launch(prepared.spec, run)
    expected = json.loads(run.evaluation(spec.scoring_hash).detections.read_text())
    # The same weights, asked for under another scoring.
    later = prepare(replace(spec, scoring=replace(spec.scoring, alpha=0.2)))
    assert later.folder.root == run.root
    launch(later.spec, run)
    assert run.evaluation(later.spec.scoring_hash).metrics.exists()

    out = tmp_path / "found.json"
    paths = ["--annotations", str(tiny_data / "annotations" / "instances_val.json"), "--images", str(tiny_data / "val")]
    assert cli.main(["detect", str(run.root), *paths, "--out", str(out)]) == 0
    found = json.loads(out.read_text())
    assert [row["score"] for row in found] == [row["score"] for row in expected]
    assert len(found) > 0
