"""docs/extending.md is true: every change there, applied to a copy of the project, runs end to end.

Each `.patch` of this folder is one change. The copy is linted, its imports are checked, and a tiny training with the
plain launcher shows that the new part works, has an identity of its own and keeps the promises of a training.
"""

import csv
import json
import os
import re
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.architecture.test_imports import violations

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
PAGE = ROOT / "docs" / "extending.md"
PRODUCT = ("detector", "platform", "experiments")


@dataclass(frozen=True)
class Change:
    """One change that a newcomer makes, as docs/extending.md describes it."""

    name: str
    files: int
    """Most files of the product that it may touch, recipes left out."""
    recipes: int = 0
    """Most files of experiments/ that it may touch besides."""
    help: tuple[str, ...] = ()
    """Texts that the command line's help gains."""
    new_weights: bool = True
    """Whether it trains other weights, and so has another training hash."""
    metrics: tuple[str, ...] = ()
    """Metrics that it adds."""


CHANGES = {
    change.name: change
    for change in (
        Change("iou_loss", 2, recipes=1, help=("qfl", "--loss.qfl-gamma")),
        Change("box_loss", 2, help=("--loss.box-loss", "giou")),
        Change("backbone_like_resnet", 2, help=("resnext50_32x4d",)),
        Change("another_backbone", 2, help=("convnext_tiny",)),
        Change("data_format", 2, help=("csv",), new_weights=False),
        Change("detector", 2, recipes=1, help=("--model.channels", "--model.box-weight")),
        Change("metric", 2, new_weights=False, metrics=("val/mean_true_iou", "val/localised_share")),
        Change("paper_table", 2),
    )
}
TRAINED = [name for name in CHANGES if name != "paper_table"]


def files_of(patch: str) -> list[str]:
    """Files that a patch touches."""
    return re.findall(r"^diff --git a/(\S+) b/", patch, flags=re.MULTILINE)


def patch_of(name: str) -> str:
    return (HERE / f"{name}.patch").read_text(encoding="utf-8")


def environment(tree: Path) -> dict[str, str]:
    path = os.pathsep.join(str(folder) for folder in (tree / "platform", tree, tree / "experiments"))
    return {**os.environ, "PYTHONPATH": path, "PYTHONDONTWRITEBYTECODE": "1"}


def run(command: list[str | Path], tree: Path, timeout_s: float = 120) -> subprocess.CompletedProcess[str]:
    ran = subprocess.run(
        command, cwd=tree, env=environment(tree), capture_output=True, text=True, timeout=timeout_s, check=False
    )
    assert ran.returncode == 0, f"{ran.stdout}\n{ran.stderr}"
    return ran


def changed_tree(name: str, folder: Path) -> Path:
    """Copy of the product with a change, in `folder`; linted, its imports checked."""
    tree = folder / "tree"
    for part in PRODUCT:
        shutil.copytree(ROOT / part, tree / part, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "pyproject.toml", tree)
    # A repository around the copy would be taken for the one that the paths of the patch are in.
    git = {**os.environ, "GIT_CEILING_DIRECTORIES": str(folder)}
    subprocess.run(["git", "apply", HERE / f"{name}.patch"], cwd=tree, env=git, check=True, timeout=30)
    files = files_of(patch_of(name))
    run([sys.executable, "-m", "ruff", "check", "--no-cache", *files], tree)
    run([sys.executable, "-m", "ruff", "format", "--no-cache", "--check", *files], tree)
    assert violations(tree) == []
    return tree


@pytest.mark.parametrize("name", CHANGES)
def test_a_change_touches_no_more_files_than_it_may(name: str) -> None:
    change, touched = CHANGES[name], files_of(patch_of(name))
    assert all(file.startswith(PRODUCT) for file in touched)
    recipes = [file for file in touched if file.startswith("experiments/")]
    if change.recipes == 0:
        assert 1 <= len(touched) <= change.files
    else:
        assert 1 <= len(touched) - len(recipes) <= change.files
        assert len(recipes) == change.recipes


@pytest.mark.processes
@pytest.mark.parametrize("name", TRAINED)
def test_a_change_runs_end_to_end(name: str, tiny_data: Path, tmp_path: Path) -> None:
    tree = changed_tree(name, tmp_path)
    change, out = CHANGES[name], tmp_path / "out"
    out.mkdir()
    data = copy_as_csv(tiny_data, tmp_path / "csv") if name == "data_format" else tiny_data
    run([sys.executable, HERE / "run_change.py", name, tree, data, out], tree)
    found = json.loads((out / "found.json").read_text())
    assert [text for text in change.help if text not in found["help"]] == []
    (training, scoring), (new_training, new_scoring) = found["hashes"]
    assert (training != new_training) == change.new_weights
    assert scoring == new_scoring
    identities = json.loads((ROOT / "tests" / "golden" / "identities.json").read_text())
    assert found["default_hash"] == identities["hashes"]["default"]["training"]
    assert found["from_the_copy"]
    assert found["broken_promises"] == []
    assert found["losses"][-1] < found["losses"][0]

    (file,) = (out / "runs" / "run").glob("evaluation/*/metrics.json")
    metrics = json.loads(file.read_text())
    assert 0 <= metrics["val/AP"] <= 1
    assert metrics["val/images"] == 5
    assert metrics["val/detections"] > 0
    assert [metric for metric in change.metrics if metric not in metrics] == []
    spec = json.loads((out / "runs" / "run" / "spec.json").read_text())
    assert spec["source"]["format"] == ("csv" if name == "data_format" else "auto")


@pytest.mark.processes
def test_a_paper_table_is_printed_with_its_own_numbers(storage: Path, tiny_data: Path, tmp_path: Path) -> None:
    tree = changed_tree("paper_table", tmp_path)
    script = tree / "experiments" / "ablate_focal_loss.py"
    options = ["--smoke", "--launcher", "local", "--rows", "2.0", "--seed", "3", "--optim.epochs", "1"]
    places = ["--data", tiny_data, "--storage", storage, "--data.min-image-side-px", "8"]
    ran = run([sys.executable, script, *options, *places], tree)
    assert "Table 6: Focal loss with varying gamma" in " ".join(ran.stdout.split())
    report = "\n".join(file.read_text() for file in storage.rglob("results/report.md"))
    assert "Not comparable with the paper's Table 6" in report
    assert "Table 6" in report


def copy_as_csv(coco: Path, folder: Path) -> Path:
    """Write train.csv, val.csv and images/ for a folder in COCO's layout."""
    (folder / "images").mkdir(parents=True)
    for split in ("train", "val"):
        content = json.loads((coco / "annotations" / f"instances_{split}.json").read_text())
        names = {category["id"]: category["name"] for category in content["categories"]}
        files = {image["id"]: image["file_name"] for image in content["images"]}
        with (folder / f"{split}.csv").open("w", newline="") as stream:
            table = csv.writer(stream)
            table.writerow(["image", "class", "x1", "y1", "x2", "y2"])
            for annotation in content["annotations"]:
                x, y, width, height = annotation["bbox"]
                image = f"{split}-{files[annotation['image_id']]}"
                table.writerow([image, names[annotation["category_id"]], x, y, x + width, y + height])
            for image_id in files.keys() - {annotation["image_id"] for annotation in content["annotations"]}:
                table.writerow([f"{split}-{files[image_id]}"])
        for file in files.values():
            shutil.copy(coco / split / file, folder / "images" / f"{split}-{file}")
    return folder


def sections(page: str) -> dict[str, str]:
    """Sections of the page that describe a change, by the patch that they name."""
    found = {}
    for section in re.split(r"^## ", page, flags=re.MULTILINE)[1:]:
        if named := re.search(r"tests/extending/(\w+)\.patch", section):
            found[named.group(1)] = section
    return found


def strays(section: str, patch: str) -> list[str]:
    """Lines of the section's diffs that the patch lacks; each diff follows its order, with `...` for left-out lines."""
    found = []
    for block in re.findall(r"^```diff\n(.*?)^```", section, flags=re.MULTILINE | re.DOTALL):
        lines = iter(patch.splitlines())
        found += [line for line in block.splitlines() if line != "..." and line not in lines]
    return found


def test_the_page_describes_every_change() -> None:
    assert (
        set(sections(PAGE.read_text(encoding="utf-8"))) == set(CHANGES) == {file.stem for file in HERE.glob("*.patch")}
    )


@pytest.mark.parametrize("name", CHANGES)
def test_the_code_of_the_page_is_the_tested_one(name: str) -> None:
    section = sections(PAGE.read_text(encoding="utf-8"))[name]
    assert "```diff" in section
    assert strays(section, patch_of(name)) == []
    assert [file for file in files_of(patch_of(name)) if file not in section] == []


def test_a_line_that_the_patch_lacks_is_found() -> None:
    section = "```diff\n+a\n...\n+c\n+b\n```\n"
    assert strays(section, "+a\n+b\n+c\n") == ["+b"]
    assert strays(section, "+a\n+c\n+b\n") == []


def test_broken_promises_are_named() -> None:
    import torch

    from detector.data.batching import Batch
    from detector.models.detector import Detector, LossSums
    from tests.extending import promises

    class Careless(Detector):
        """Losses that wait for the device, average over the images and differ from call to call."""

        def __init__(self) -> None:
            super().__init__()
            self.weight = torch.nn.Parameter(torch.ones(()))

        def losses(self, batch: Batch) -> LossSums:
            values = batch.boxes[batch.valid].mean() * self.weight * torch.rand(())
            return LossSums({"box": values.bfloat16()}, torch.ones((), dtype=torch.float64))

        def detect(self, batch: Batch, rows: Any) -> Any:
            raise NotImplementedError

        def load_initial_weights(self, file: Path | None) -> None: ...

    batch = Batch(
        images=torch.zeros(2, 3, 8, 8, dtype=torch.uint8),
        sizes=torch.full((2, 2), 8),
        boxes=torch.tensor([[[0.0, 0.0, 4.0, 4.0]], [[1.0, 1.0, 8.0, 9.0]]]),
        labels=torch.zeros(2, 1, dtype=torch.int64),
        valid=torch.ones(2, 1, dtype=torch.bool),
        image_index=torch.arange(2),
        image_weight=torch.ones(2),
    )
    found = promises.broken(Careless(), batch)
    assert len(found) == 7, found
    assert found[-1].startswith("no operation waits for the device, found aten.")
