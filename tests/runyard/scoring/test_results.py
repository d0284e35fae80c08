"""Results as they lie in the run folders: the oracle beside a trial."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from detector.data.formats import open_dataset
from runyard.scoring.results import oracle_of
from runyard.spec import ExperimentSpec
from tests.runyard.finished_runs import detections, finished_sweep, store_detections


def test_the_oracle_has_the_alpha_that_the_store_declares_for_it(
    make_tiny_spec: Callable[[Path], ExperimentSpec], tiny_data: Path, tmp_path: Path
) -> None:
    val = open_dataset(tiny_data, "val")
    tiny = make_tiny_spec(tmp_path)
    spec = replace(tiny, scoring=replace(tiny.scoring, alpha=0.3))
    (result,) = finished_sweep(tmp_path, val, {"0.3": (spec, 4.0)}).results
    assert oracle_of(result) is None

    declared = replace(result.spec, scoring=replace(spec.scoring, alpha=0.7))
    store_detections(declared, result.run, val, detections(val, 0.0), oracle=True)
    oracle = oracle_of(result)
    assert oracle is not None
    assert (oracle.row, oracle.oracle, oracle.spec.scoring.alpha) == ("oracle IoU, alpha 0.7", True, 0.7)
    assert oracle.metrics == json.loads(oracle.evaluation.metrics.read_text())
    assert oracle.metrics["val/AP"] > (result.metrics or {})["val/AP"]
    assert result.run.evaluations() == [result.evaluation]
