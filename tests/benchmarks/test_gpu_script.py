"""The GPU script runs on a CPU at reduced size, with nothing installed but what a GPU machine has."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks import gpu, post_processing
from benchmarks.correctness import Check
from benchmarks.rows import Row
from benchmarks.settings import Settings

ROOT = Path(__file__).resolve().parents[2]
ABSENT = ("ray", "mlflow", "tyro", "pycocotools", "hotcoco", "matplotlib", "defusedxml", "scipy", "pandas", "yaml")


def run_without(absent: tuple[str, ...], *arguments: str) -> "subprocess.CompletedProcess[str]":
    """The script in a fresh Python in which importing any of `absent` fails as if it were not installed."""
    script = str(ROOT / "benchmarks" / "gpu.py")
    program = (
        "import runpy, sys\n"
        f"sys.modules.update(dict.fromkeys({absent!r}))\n"
        f"sys.argv = {[script, *arguments]!r}\n"
        f"runpy.run_path({script!r}, run_name='__main__')\n"
    )
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    environment.pop("PYTHONPATH", None)
    return subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True)


def test_files_are_there_after_every_comparison(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu, "run_checks", lambda settings: [Check("all is well", True, "indeed")])
    assert gpu.main(["--quick", "--out", str(tmp_path), "--only", "P11"]) == 0
    content = json.loads((tmp_path / "gpu.json").read_text())
    assert content["correctness"] == [{"name": "all is well", "passed": True, "found": "indeed"}]
    assert [row["key"] for row in content["rows"]] == ["P11", "P11"]
    text = (tmp_path / "gpu.txt").read_text()
    assert "holds: all is well: indeed" in text
    assert "matching and losses" in text


def test_time_that_is_over_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu, "run_checks", lambda settings: [Check("all is well", False, "not at all")])
    assert gpu.main(["--quick", "--out", str(tmp_path), "--only", "P1,P2", "--budget-s", "0"]) == 1
    rows = json.loads((tmp_path / "gpu.json").read_text())["rows"]
    assert [row["note"] for row in rows] == ["0 s were over"] * 2
    assert "FAILS: all is well: not at all" in (tmp_path / "gpu.txt").read_text()


def test_a_comparison_that_fails_leaves_the_others(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(settings: Settings) -> list[Row]:
        raise RuntimeError("out of memory")

    monkeypatch.setattr(gpu, "run_checks", lambda settings: [Check("all is well", True, "indeed")])
    monkeypatch.setattr(post_processing, "measure", fail)
    assert gpu.main(["--quick", "--out", str(tmp_path), "--only", "P8,P11"]) == 1
    rows = json.loads((tmp_path / "gpu.json").read_text())["rows"]
    assert [row["key"] for row in rows] == ["P8", "P11", "P11"]
    assert rows[0]["note"] == "failed: RuntimeError: out of memory"


def test_the_script_starts_with_torch_and_little_else() -> None:
    ran = run_without(ABSENT, "--help")
    assert ran.returncode == 0, ran.stderr
    assert "--budget-s" in ran.stdout


@pytest.mark.slow
def test_all_of_it_runs_with_torch_and_little_else(tmp_path: Path) -> None:
    ran = run_without(ABSENT, "--quick", "--out", str(tmp_path))
    assert ran.returncode == 0, ran.stdout + ran.stderr
    content = json.loads((tmp_path / "gpu.json").read_text())
    assert all(check["passed"] for check in content["correctness"])
    assert {row["key"] for row in content["rows"]} == set(gpu.KEYS)
    assert {row["verdict"] for row in content["rows"]} == {"no goal", "not measured"}
    assert {row["note"] for row in content["rows"] if row["verdict"] == "not measured"} == {"needs a GPU"}
