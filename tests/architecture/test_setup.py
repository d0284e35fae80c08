"""`make setup` chooses a Python that is new enough, and names the remedy where it finds no such Python."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]

pytestmark = pytest.mark.skipif(shutil.which("make") is None, reason="make is not installed")


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """The repository's Makefile with empty input files, and a folder `bin` that comes first on the PATH."""
    shutil.copy(ROOT / "Makefile", tmp_path)
    (tmp_path / "pyproject.toml").touch()
    (tmp_path / "constraints.txt").touch()
    (tmp_path / "bin").mkdir()
    return tmp_path


def add_python(checkout: Path, name: str, version: str) -> None:
    """A stand-in that answers the version check as that Python would, and makes a .venv whose pip only says so."""
    major, minor = version.split(".")
    script = checkout / "bin" / name
    script.write_text(f"""#!/bin/sh
case "$1" in
    --version) echo "Python {version}";;
    -c) expression=$(echo "$2" | sed 's/sys.version_info/({major}, {minor})/'); exec /usr/bin/env real-python -c "$expression";;
    -m) mkdir -p .venv/bin; printf '#!/bin/sh\\necho "pip of {version}: $@"\\n' > .venv/bin/python; chmod +x .venv/bin/python;;
esac
""")  # noqa: E501
    script.chmod(0o755)


def make(checkout: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    real_python = checkout / "bin" / "real-python"
    if not real_python.exists():
        real_python.symlink_to(os.path.realpath(sys.executable))
    # Only the stand-ins, and the few commands that the recipe uses.
    for command in ("sh", "env", "mkdir", "chmod", "touch", "sed", "git"):
        found = shutil.which(command)
        if found and not (checkout / "bin" / command).exists():
            (checkout / "bin" / command).symlink_to(found)
    return subprocess.run(
        [shutil.which("make") or "make", *arguments],
        cwd=checkout,
        env={"PATH": str(checkout / "bin")},
        capture_output=True,
        text=True,
    )


def test_an_old_python3_gives_way_to_a_newer_one_beside_it(checkout):
    add_python(checkout, "python3", "3.10")
    add_python(checkout, "python3.12", "3.12")
    ran = make(checkout, "setup")
    assert ran.returncode == 0, ran.stderr
    assert "pip of 3.12: -m pip install" in ran.stdout
    assert "--constraint constraints.txt" in ran.stdout
    assert make(checkout, "setup").stdout.count("pip") == 0, "a second set-up has nothing to do"


def test_a_tried_version_is_preferred_to_a_newer_one(checkout):
    add_python(checkout, "python3", "3.14")
    add_python(checkout, "python3.11", "3.11")
    assert "pip of 3.11" in make(checkout, "setup").stdout


def test_a_newer_python_is_taken_where_there_is_no_other(checkout):
    add_python(checkout, "python3", "3.14")
    assert "pip of 3.14" in make(checkout, "setup").stdout


def test_without_a_python_that_will_do_it_says_what_to_do(checkout):
    add_python(checkout, "python3", "3.10")
    ran = make(checkout, "test")
    assert ran.returncode != 0
    assert "Python 3.11 or 3.12 is needed" in ran.stderr
    assert "PYTHON=" in ran.stderr
    assert not (checkout / ".venv").exists()


def test_a_python_that_is_named_is_the_only_one_tried(checkout):
    add_python(checkout, "python3", "3.12")
    add_python(checkout, "old", "3.9")
    ran = make(checkout, "setup", "PYTHON=old")
    assert ran.returncode != 0
    assert "none of these is: old" in ran.stderr


def test_a_changed_pyproject_sets_up_again(checkout):
    add_python(checkout, "python3", "3.12")
    make(checkout, "setup")
    os.utime(checkout / "pyproject.toml", (2**31, 2**31))
    assert "pip of 3.12" in make(checkout, "setup").stdout
