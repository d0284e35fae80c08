"""A storage folder of format 1, that 0.1.0 wrote: every command refuses it in one sentence, and touches none of it."""

import hashlib
import json
import os
import tarfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from runyard import cli
from runyard.training.local import main as local_main
from tests.processes import Forked

ROOT = Path(__file__).resolve().parents[2]
ARCHIVE = ROOT / "tests" / "golden" / "store_format_1.tar.xz"
SWEEP = "sweeps/smoke-table3-87bde055-shapes"
ALPHA_RUN = "smoke-ablation-bce-shapes-42b82e03cc33"


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The unpacked archive; no byte of it may have changed when the tests of this module have ended."""
    folder = tmp_path_factory.mktemp("format_1")
    with tarfile.open(ARCHIVE) as tar:
        tar.extractall(folder, filter="data")
    before = contents(folder)
    yield folder / "data"
    assert contents(folder) == before


@pytest.fixture
def store(data: Path) -> Iterator[Path]:
    """The storage folder; no file in it may appear, vanish or be written."""
    before = times(data)
    yield data / "runs"
    assert times(data) == before


def contents(folder: Path) -> dict[str, str]:
    """SHA-256 of every file by path."""
    digests = {}
    for path in sorted(folder.rglob("*")):
        if path.is_file():
            with path.open("rb") as stream:
                digests[str(path)] = hashlib.file_digest(stream, "sha256").hexdigest()
    return digests


def times(folder: Path) -> dict[str, tuple[int, int, int]]:
    """Size, time of change and inode of every file and folder by path."""
    return {
        str(path): (status.st_size, status.st_mtime_ns, status.st_ino)
        for path in (folder, *folder.rglob("*"))
        for status in (path.lstat(),)
    }


def assert_refused(status: int | None, errors: str) -> None:
    """One sentence that names both formats, and exit status 2."""
    assert status == 2, errors
    (line,) = [line for line in errors.splitlines() if line]
    assert line.startswith("error: ")
    assert "holds runs of storage format 1, expected 2" in line


SCRIPTS = {
    "coco_main": ["coco_main.py", "--data", "{shapes}", "--storage", "{runs}"],
    "coco_main by the old run's name": ["coco_main.py", "--smoke", "--storage", "{runs}", "--name", "finished"],
    "voc_main": ["voc_main.py", "--smoke", "--rows", "r50-baseline", "r50-iou", "--storage", "{runs}"],
    "ablate_iou_loss": ["ablate_iou_loss.py", "--smoke", "--storage", "{runs}"],
    "ablate_alpha": ["ablate_alpha.py", "--smoke", "--data", "{shapes}", "--storage", "{runs}"],
    "ablate_alpha on a finished run": ["ablate_alpha.py", "--checkpoint-run", "{runs}/" + ALPHA_RUN],
    "ablate_alpha on a finished run, with another storage": [
        "ablate_alpha.py", "--checkpoint-run", "{runs}/finished", "--storage", "{elsewhere}",
    ],
    "demo": ["demo.py", "--storage", "{runs}"],
}  # fmt: skip


@pytest.mark.processes
@pytest.mark.parametrize("arguments", SCRIPTS.values(), ids=SCRIPTS)
def test_experiments_refuse_a_storage_folder_of_format_1(store: Path, tmp_path: Path, arguments: list[str]) -> None:
    places = {"runs": store, "shapes": store.parent / "shapes", "elsewhere": tmp_path / "elsewhere"}
    script, *options = [argument.format(**places) for argument in arguments]
    environment = os.environ | {"PYTHONPATH": f"{ROOT / 'platform'}:{ROOT}"}
    process = Forked([str(ROOT / "experiments" / script), *options], environment)
    output, _ = process.communicate(timeout=120)
    told = "\n".join(line for line in output.splitlines() if not line.startswith("Generating"))
    assert_refused(process.returncode, told)
    assert not places["elsewhere"].exists()


COMMANDS = {
    "table": ["table", "{runs}/" + SWEEP],
    "detect": [
        "detect", "{runs}/finished", "--annotations", "{shapes}/annotations/instances_val.json",
        "--images", "{shapes}/val", "--out", "{out}",
    ],
    "sync of a run": ["sync", "{runs}/interrupted"],
    "sync of a sweep": ["sync", "{runs}/" + SWEEP],
    "doctor": ["doctor", "--data", "{shapes}", "--storage", "{runs}"],
}  # fmt: skip


@pytest.mark.parametrize("arguments", COMMANDS.values(), ids=COMMANDS)
def test_runyard_refuses_folders_of_format_1(
    store: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], arguments: list[str]
) -> None:
    places = {"runs": store, "shapes": store.parent / "shapes", "out": tmp_path / "out.json"}
    status = cli.main([argument.format(**places) for argument in arguments])
    assert_refused(status, capsys.readouterr().err)
    assert not places["out"].exists()


@pytest.mark.parametrize("run", ["finished", "interrupted", "plain"])
def test_the_plain_launcher_refuses_a_spec_with_its_run_of_format_1(
    store: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], run: str
) -> None:
    spec = json.loads((store / run / "spec.json").read_text())
    spec["runtime"]["storage"], spec["source"]["data"] = str(store), str(store.parent / "shapes")
    (tmp_path / "spec.json").write_text(json.dumps(spec))
    status = local_main([str(tmp_path / "spec.json")])
    assert_refused(status, capsys.readouterr().err)


def test_a_single_run_that_was_moved_out_of_its_storage_is_refused_too(
    store: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    moved = tmp_path / "runs" / "moved"
    moved.mkdir(parents=True)
    for name in ("spec.json", "manifest.json", "journal.jsonl", "tracking.json"):
        (moved / name).write_bytes((store / "finished" / name).read_bytes())
    before = contents(tmp_path)
    assert_refused(cli.main(["sync", str(moved)]), capsys.readouterr().err)
    assert contents(tmp_path) == before
