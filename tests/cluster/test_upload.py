"""Upload of `ray job submit --working-dir .`: the sources, and nothing else that lies in the repository's folder."""

import shutil
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
MAX_BYTES = 10 * 2**20  # Ray's job server refuses 100 MiB.


def uploaded(root: Path, folder: Path) -> dict[str, int]:
    """Packs `root` as the submission does; file name -> size. Private functions, so they go with the pinned Ray."""
    from ray._private.ray_constants import get_runtime_env_default_excludes
    from ray._private.runtime_env.packaging import create_package

    archive = folder / "package.zip"
    create_package(str(root), archive, include_gitignore=True, excludes=get_runtime_env_default_excludes())
    with zipfile.ZipFile(archive) as package:
        return {info.filename: info.file_size for info in package.infolist() if not info.is_dir()}


def test_repository_uploads_its_sources(tmp_path):
    files = uploaded(ROOT, tmp_path)
    needed = ["detector/data/samples.py", "platform/runyard/training/__init__.py", "experiments/_bootstrap.py"]
    assert [name for name in [*needed, "pyproject.toml", "constraints.txt"] if name not in files] == []
    tops = {name.partition("/")[0] for name in files}
    assert tops <= {
        "cluster",
        "constraints.txt",
        "detector",
        "experiments",
        "platform",
        "pyproject.toml",
        "tests",
    }
    assert sum(files.values()) < MAX_BYTES


@pytest.fixture
def littered(tmp_path: Path) -> Path:
    """A small repository with this one's ignore files, and beside its sources all that must stay."""
    root = tmp_path / "repository"
    for name in (".rayignore", ".gitignore", "cluster/mlflow/.gitignore"):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, root / name)
    stays = (
        "data/a.jpg",
        "my coco/b.jpg",
        "runs/r/checkpoint.pt",
        "mlflow.db",
        "mlruns/0/x",
        "a.parquet",
        "d/a.jpg",
        ".git/config",
        ".venv/bin/python",
        "venv/bin/python",
        ".cache/x",
        "detector/__pycache__/boxes.pyc",
        "cluster/mlflow/.env",
    )
    goes = (
        "detector/data/formats/coco.py",
        "platform/runyard/spec/__init__.py",
        "experiments/coco_main.py",
        "tests/golden/loss.json",
    )
    for name in stays + goes:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text("x")
    return root


def test_litter_is_left_behind(littered, tmp_path):
    files = uploaded(littered, tmp_path)
    sources = {name for name in files if not Path(name).name.startswith(".")}
    assert sources == {
        "detector/data/formats/coco.py",
        "platform/runyard/spec/__init__.py",
        "experiments/coco_main.py",
        "tests/golden/loss.json",
    }
    assert "cluster/mlflow/.env" not in files


def test_without_the_list_litter_would_be_uploaded(littered, tmp_path):
    (littered / ".rayignore").unlink()
    assert "my coco/b.jpg" in uploaded(littered, tmp_path)
