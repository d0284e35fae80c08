"""Files changed at random: nothing but the project's own errors comes out, in little time and memory.

`fuzz/run.py` does it, `fuzz/kinds.py` and `fuzz/mutations.py` say to what and how. The slow run tries 133,000 inputs:
36,000 each of COCO files, VOC files and candidate stores, and 5,000 of each other kind. On two cores that others used
as well (2026-11-22) the former took 4 to 11 minutes, the latter 1 to 3.
"""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]
ANNOTATIONS_AND_CANDIDATES = ("coco", "voc", "candidates")
RUN = ROOT / "tests/faults/fuzz/run.py"
OTHERS = ("checkpoint", "columns", "results", "spec", "pixels")


def fuzz(kinds: tuple[str, ...], count: int, seed: int = 0) -> dict[str, Any]:
    command = [sys.executable, str(RUN), "--count", str(count), "--seed", str(seed)]
    environment = os.environ | {"PYTHONPATH": f"{ROOT / 'platform'}{os.pathsep}{ROOT}"}
    done = subprocess.run([*command, "--only", *kinds], env=environment, capture_output=True, text=True)
    assert done.stdout, f"ended with status {done.returncode}: {done.stderr[-2000:]}"
    result = json.loads(done.stdout)
    print(f"{result['inputs']} inputs in {result['seconds']} s: {result['kinds']}")
    return result


def assert_harmless(result: dict[str, Any], inputs: int) -> None:
    assert result["inputs"] == inputs
    for name, kind in result["kinds"].items():
        assert kind["bugs"] == {}, name
        assert kind["read"] + kind["refused"] == kind["inputs"]
        assert kind["read"] > 0, f"{name}: nothing gets past the first check"
        assert kind["slowest_s"] < 20, name
    assert result["grown_mib"] < 200


def test_a_few_changed_files_of_every_kind() -> None:
    assert_harmless(fuzz((*ANNOTATIONS_AND_CANDIDATES, *OTHERS), 60, seed=1), inputs=60 * 8)


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_a_hundred_thousand_changed_annotations_and_candidates() -> None:
    assert_harmless(fuzz(ANNOTATIONS_AND_CANDIDATES, 36_000), inputs=108_000)


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_changed_checkpoints_columns_results_specs_and_images() -> None:
    assert_harmless(fuzz(OTHERS, 5_000), inputs=25_000)


def test_a_bug_would_be_found(tmp_path: Path) -> None:
    """With a reader that lets one kind of error through."""
    program = (
        "import runpy, sys\n"
        "from pathlib import Path\n"
        "from detector.data import json_reading\n"
        "from detector.errors import DatasetError\n"
        "json_reading.DatasetError = type('OtherError', (ValueError,), {'__init__': lambda self, *a, **k: None})\n"
        "sys.argv = sys.argv[1:]\n"
        "sys.path.insert(0, str(Path(sys.argv[0]).parent))\n"
        "runpy.run_path(sys.argv[0], run_name='__main__')\n"
    )
    environment = os.environ | {"PYTHONPATH": f"{ROOT / 'platform'}{os.pathsep}{ROOT}"}
    arguments = [str(RUN), "--count", "40", "--only", "coco", "--keep", str(tmp_path)]
    done = subprocess.run([sys.executable, "-c", program, *arguments], env=environment, capture_output=True, text=True)
    assert done.returncode == 1
    (bug, *_) = json.loads(done.stdout)["kinds"]["coco"]["bugs"]
    assert bug.startswith("OtherError at json_reading.py")
    assert list(tmp_path.iterdir())
