"""Imports point one way: experiments -> runyard -> detector; each heavy library is imported in one place only.

The tree is parsed, not imported, so that an import inside a function counts too. `violations` takes any root, and the
tests show on a made-up tree that it can fail.
"""

import ast
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
SOURCE_FOLDERS = {"detector": "detector", "platform/runyard": "runyard", "experiments": "experiments"}

# What a machine without Ray and the trackers need not have. Pillow comes with torchvision.
ABSENT_WHERE_ONLY_TORCH_IS = (
    "ray",
    "mlflow",
    "tyro",
    "pycocotools",
    "hotcoco",
    "matplotlib",
    "defusedxml",
    "scipy",
    "pandas",
    "yaml",
)
MODEL_MODULES = {
    f"detector.models.{name}" for name in ("build", "retinanet", "backbones", "resnet", "heads", "fpn", "losses")
}
PORT = {"detector.models.detector", "detector.models.build", "detector.models.backbones"}
"""The modules of `detector.models` that other code may import: the port, the builder, initial weights."""
KNOW_THE_PORT_ALONE = ("detector.engine", "detector.predictor", "detector.rescoring")
WITH_TORCH_ALONE = ("detector", "runyard.training", "runyard.runs", "runyard.scoring")


def sources(root: Path) -> dict[str, Path]:
    """Dotted module name -> file, for every module under the three source folders."""
    found = {}
    for folder, package in SOURCE_FOLDERS.items():
        for file in sorted((root / folder).rglob("*.py")):
            parts = file.relative_to(root / folder).with_suffix("").parts
            found[".".join((package, *parts)).removesuffix(".__init__")] = file
    return found


def imports_of(module: str, file: Path) -> set[str]:
    """Every name that the module imports, at any depth; for `from a import b` both `a` and `a.b`."""
    names = set()
    package = module if file.name == "__init__.py" else module.rpartition(".")[0]
    for node in ast.walk(ast.parse(file.read_text(), filename=str(file))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = ".".join(package.split(".")[: len(package.split(".")) - node.level + 1]) if node.level else ""
            origin = ".".join(part for part in (base, node.module) if part)
            names |= {origin} | {f"{origin}.{alias.name}" for alias in node.names}
    return names


def reachable(module: str, graph: dict[str, set[str]]) -> set[str]:
    """The project's modules that importing `module` can bring in, itself included."""
    seen: set[str] = set()
    waiting = [module]
    while waiting:
        name = waiting.pop()
        if name in graph and name not in seen:
            seen.add(name)
            waiting += graph[name]
    return seen


def violations(root: Path) -> list[str]:
    """One line for each import that the architecture forbids; empty for a sound tree."""
    files = sources(root)
    graph = {module: imports_of(module, file) for module, file in files.items()}
    # Scripts import each other by bare name: the folder of the one that runs is on the path.
    scripts = {module.partition(".")[2] for module in files if module.startswith("experiments.")} | {"experiments"}
    found = []
    for module, names in graph.items():
        tops = {name.partition(".")[0] for name in names}
        forbidden = {"tests", "cluster"}
        if module.partition(".")[0] == "detector":
            forbidden |= {"ray", "mlflow", "tyro", "runyard"} | scripts
        if module.partition(".")[0] == "runyard":
            forbidden |= scripts
        if not (module.startswith("runyard.") and files[module].name.startswith("ray_")):
            forbidden |= {"ray"}
        if not module.startswith("runyard.tracking"):
            forbidden |= {"mlflow"}
        if module == "detector.boxes":
            forbidden |= {"detector"}
        if module == "experiments._bootstrap":
            forbidden |= tops - sys.stdlib_module_names
        found += [f"{module} imports {name}" for name in sorted(tops & forbidden)]
        if not module.startswith(("detector.models", "detector.data", "detector.evaluation")):
            inside = {name for name in names & files.keys() if name.startswith("detector.models.")}
            found += [f"{module} imports {name}, past the port" for name in sorted(inside - PORT)]
        if module.startswith(("detector.data", "detector.evaluation", *KNOW_THE_PORT_ALONE)):
            model = reachable(module, graph) & MODEL_MODULES
            found += [f"{module} reaches {name}" for name in sorted(model)]
    return found


def test_imports_point_one_way():
    assert violations(ROOT) == []


def test_the_three_source_folders_are_found():
    modules = sources(ROOT)
    assert {"detector.config", "detector.data", "runyard.training", "experiments._bootstrap"} <= set(modules)


@pytest.mark.parametrize(
    ("file", "text", "violation"),
    [
        ("detector/engine.py", "def f():\n    import ray.train\n", "detector.engine imports ray"),
        ("detector/engine.py", "from mlflow import log_metric\n", "detector.engine imports mlflow"),
        ("detector/config/__init__.py", "import tyro\n", "detector.config imports tyro"),
        ("detector/engine.py", "from runyard.spec import Spec\n", "detector.engine imports runyard"),
        ("detector/engine.py", "import recipes\n", "detector.engine imports recipes"),
        ("platform/runyard/spec/__init__.py", "from recipes import main\n", "runyard.spec imports recipes"),
        ("platform/runyard/spec/__init__.py", "import experiments.recipes\n", "runyard.spec imports experiments"),
        ("platform/runyard/training/local.py", "import ray\n", "runyard.training.local imports ray"),
        ("platform/runyard/cli.py", "import mlflow\n", "runyard.cli imports mlflow"),
        ("experiments/recipes.py", "import ray\n", "experiments.recipes imports ray"),
        ("experiments/_bootstrap.py", "import os, numpy\n", "experiments._bootstrap imports numpy"),
        ("detector/boxes.py", "from . import errors\n", "detector.boxes imports detector"),
        (
            "detector/data/formats/coco.py",
            "from ...models import losses\n",
            "detector.data.formats.coco reaches detector.models.losses",
        ),
        ("detector/evaluation/ap.py", "import detector.middle\n", "detector.evaluation.ap reaches detector.models.fpn"),
        ("detector/engine.py", "import tests.helpers\n", "detector.engine imports tests"),
        (
            "platform/runyard/scoring/detect.py",
            "from detector.models.losses import detection_losses\n",
            "runyard.scoring.detect imports detector.models.losses, past the port",
        ),
        (
            "detector/engine.py",
            "from detector.models.build import build_detector\n",
            "detector.engine reaches detector.models.build",
        ),
    ],
)
def test_each_forbidden_arrow_is_found(tmp_path, file, text, violation):
    sound = {
        "detector/__init__.py": "",
        "detector/models/losses.py": "",
        "detector/models/fpn.py": "import torch\n",
        "detector/models/build.py": "",
        "detector/models/detector.py": "from detector.models.fpn import FPN\n",
        "detector/middle.py": "from detector.models.detector import Detector\n",
        "experiments/recipes.py": "import runyard.spec\n",
        "platform/runyard/training/ray_train.py": "import ray\n",
        "platform/runyard/tracking/a.py": "import mlflow\n",
        "platform/runyard/spec/__init__.py": "from detector import config\n",
        "experiments/_bootstrap.py": "import os\n",
    }
    for path, content in sound.items():
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).write_text(content)
    assert violations(tmp_path) == []

    (tmp_path / file).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / file).write_text(text)
    assert violations(tmp_path) == [violation]


def import_without(absent: tuple[str, ...], modules: list[str]) -> subprocess.CompletedProcess[str]:
    """Import the modules in a fresh Python in which importing any of `absent` fails as if it were not installed."""
    program = (
        "import importlib, sys\n"
        f"sys.modules.update(dict.fromkeys({absent!r}))\n"
        f"for name in {modules!r}: importlib.import_module(name)\n"
    )
    path = os.pathsep.join([str(ROOT / "platform"), str(ROOT)])
    return subprocess.run(
        [sys.executable, "-c", program], env={**os.environ, "PYTHONPATH": path}, capture_output=True, text=True
    )


@pytest.mark.processes
def test_detector_and_training_import_with_torch_alone():
    modules = [
        module
        for module, file in sources(ROOT).items()
        if module.startswith(("detector", "runyard.training", "runyard.runs", "runyard.scoring"))
        and not file.name.startswith("ray_")
    ]
    assert "runyard.training" in modules
    imported = import_without(ABSENT_WHERE_ONLY_TORCH_IS, modules)
    assert imported.returncode == 0, imported.stderr


@pytest.mark.processes
def test_configuration_and_errors_import_without_torch():
    imported = import_without(("torch", "torchvision"), ["detector", "detector.config", "detector.errors"])
    assert imported.returncode == 0, imported.stderr


@pytest.mark.processes
def test_an_absent_library_fails_the_import():
    imported = import_without(("dataclasses",), ["detector.config"])
    assert imported.returncode != 0
    assert "dataclasses" in imported.stderr
