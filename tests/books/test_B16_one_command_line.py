"""B16: every table has the same command line, whose --help shows all of it."""

import importlib
import sys
from pathlib import Path

import pytest

EXPERIMENTS = Path(__file__).resolve().parents[2] / "experiments"
TABLES = ("coco_main", "ablate_iou_loss", "ablate_alpha", "voc_main")
OPTIONS = (
    "--rows",
    "--seeds",
    "--vary",
    "--test-split",
    "--max-concurrent",
    "--name",
    "--storage",
    "--smoke",
    "--dry-run",
)


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.syspath_prepend(str(EXPERIMENTS))
    monkeypatch.setenv("COLUMNS", "120")

    def started(name: str, *arguments: str) -> None:
        module = importlib.import_module(name)
        monkeypatch.setattr(sys, "argv", [f"{name}.py", *arguments])
        module.run()

    return started


@pytest.mark.parametrize("name", TABLES)
def test_B16_help_shows_every_option(run, capsys: pytest.CaptureFixture[str], name: str) -> None:
    with pytest.raises(SystemExit) as ended:
        run(name, "--help")
    assert ended.value.code == 0
    shown = capsys.readouterr().out
    assert [option for option in OPTIONS if option not in shown] == []


@pytest.mark.parametrize("name", TABLES)
@pytest.mark.parametrize("option", ["--max-concurrent", "--max_concurrent"])
def test_B16_options_are_spelled_alike_everywhere(
    run, capsys: pytest.CaptureFixture[str], name: str, option: str
) -> None:
    run(name, "--dry-run", "--seeds", "2", option, "2")
    assert '"trainings"' in capsys.readouterr().out
