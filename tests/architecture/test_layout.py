"""The tree is laid out as it must be for Ray, for readers and for a fresh machine."""

import ast
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
MAX_LINES = 400

# Put together here so that this file does not hold what it looks for.
HOME_FOLDERS = "|".join(("work", "root", "farm", "home/[a-z]+", "Users/[A-Za-z]+"))
MACHINE_PATH = re.compile(rf"(?:^|[^A-Za-z0-9_.~])/(?:{HOME_FOLDERS})/")
PACKAGE_INDEX = re.compile("|".join(("index" + "-url", "find" + "-links", "/simp" + "le/")))


def tracked_files() -> list[Path]:
    """The repository's files, those still to be added included."""
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    if listed.returncode != 0:
        pytest.skip("not a git checkout")
    return [ROOT / name for name in sorted(set(listed.stdout.split("\0"))) if name and (ROOT / name).is_file()]


def python_with_root_on_path(root: Path) -> subprocess.CompletedProcess[str]:
    program = "import sys; sys.path.insert(0, ''); import platform, uuid; print(platform.system())"
    return subprocess.run([sys.executable, "-c", program], cwd=root, capture_output=True, text=True)


def test_F10_platform_folder_leaves_pythons_own_platform_alone():
    assert not (ROOT / "platform" / "__init__.py").exists(), (
        "platform/ is a source root, not a package: with an __init__.py it replaces Python's own `platform` module, and"
        " a Ray job hangs in PENDING with no error. Remove it."
    )
    ran = python_with_root_on_path(ROOT)
    assert ran.returncode == 0, ran.stderr
    assert ran.stdout.strip()


def test_F10_an_init_file_there_would_be_noticed(tmp_path):
    (tmp_path / "platform").mkdir()
    assert python_with_root_on_path(tmp_path).returncode == 0
    (tmp_path / "platform" / "__init__.py").touch()
    assert python_with_root_on_path(tmp_path).returncode != 0


def test_modules_are_small():
    lines = {file: len(file.read_text().splitlines()) for file in tracked_files() if file.suffix == ".py"}
    assert lines
    assert {str(file.relative_to(ROOT)): n for file, n in lines.items() if n > MAX_LINES} == {}


def entry_point_faults(folder: Path) -> list[str]:
    """Reasons why scripts of the folder cannot be run by name, here or as a Ray job; empty if all can."""
    faults = []
    for file in sorted(folder.glob("*.py")):
        text = file.read_text()
        if "__main__" not in text:
            continue
        # `python3` is there on every system and in every environment; `python` is not.
        if text.splitlines()[0] != "#!/usr/bin/env python3":
            faults.append(f"{file.name}: its first line is not #!/usr/bin/env python3")
        if not os.access(file, os.X_OK):
            faults.append(f"{file.name}: not executable")
        if not bootstraps_first(ast.parse(text)):
            faults.append(f"{file.name}: does not call _bootstrap.bootstrap() before it imports the project")
    return faults


def bootstraps_first(tree: ast.Module) -> bool:
    """Tell whether `bootstrap()` is called at the top level, before any top-level import of the project's packages."""
    for statement in tree.body:
        for node in ast.walk(statement):
            if isinstance(node, ast.Call) and ast.unparse(node.func) in ("bootstrap", "_bootstrap.bootstrap"):
                return True
        if isinstance(statement, ast.Import | ast.ImportFrom):
            names = [getattr(statement, "module", None) or "", *(alias.name for alias in statement.names)]
            if any(name.partition(".")[0] in ("runyard", "detector", "recipes") for name in names):
                return False
    return False


def test_entry_points_run_by_name():
    assert entry_point_faults(ROOT / "experiments") == []


def test_a_faulty_entry_point_is_noticed(tmp_path):
    script = tmp_path / "main.py"
    script.write_text("import runyard\nimport _bootstrap\n_bootstrap.bootstrap()\nif __name__ == '__main__': ...\n")
    assert len(entry_point_faults(tmp_path)) == 3
    script.write_text(
        "#!/usr/bin/env python3\nimport _bootstrap\nE = _bootstrap.bootstrap()\nimport runyard\n# __main__\n"
    )
    script.chmod(0o755)
    assert entry_point_faults(tmp_path) == []


@pytest.mark.parametrize("pattern", [MACHINE_PATH, PACKAGE_INDEX], ids=["machine path", "package index"])
def test_no_machine_of_ours_is_named(pattern):
    found = []
    for file in tracked_files():
        try:
            lines = file.read_text().splitlines()
        except UnicodeDecodeError:
            continue
        found += [
            f"{file.relative_to(ROOT)}:{n}: {line.strip()}" for n, line in enumerate(lines, 1) if pattern.search(line)
        ]
    assert found == []


def test_machine_paths_are_recognised():
    home = "/ho" + "me/"
    assert MACHINE_PATH.search(f"open('{home}someone/data')")
    assert MACHINE_PATH.search("/wo" + "rk/data")
    assert not MACHINE_PATH.search("network/work/data ~/.ray/auth_token /mnt/runyard/data")


def test_constraints_hold_names_and_versions_only():
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    assert [line for line in lines if not re.fullmatch(r"[A-Za-z0-9._-]+==[A-Za-z0-9.+!]+", line)] == []
    names = [re.sub(r"[-_.]+", "-", line.partition("==")[0]).lower() for line in lines]
    assert len(set(names)) == len(names)
    assert {"torch", "torchvision", "ray", "mlflow", "pytest", "ruff", "mypy"} <= set(names)


def test_ci_runs_the_linters_and_the_readmes_test_command():
    ci = ROOT / ".ci" / "run"
    assert os.access(ci, os.X_OK)
    assert {"make lint", "make test"} <= set(ci.read_text().splitlines())


@pytest.mark.processes
def test_every_slow_test_finds_its_fixtures() -> None:
    """The slow tests can at least be set up; they are not run every day."""
    # Only their modules are imported: that is most of the work.
    files = [file for file in sorted((ROOT / "tests").rglob("test_*.py")) if "mark.slow" in file.read_text()]
    assert files
    command = [sys.executable, "-m", "pytest", "-m", "slow", "--setup-plan", "-q", "-p", "no:cacheprovider"]
    planned = subprocess.run([*command, *map(str, files)], cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert planned.returncode == 0, planned.stdout[-2000:]
