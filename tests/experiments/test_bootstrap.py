"""An entry point finds the project, and tells its workers how to, in every way it can be started."""

import importlib.util
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
BOOTSTRAP = ROOT / "experiments" / "_bootstrap.py"
SHA = "0123456789abcdef0123456789abcdef01234567"


def start(tree: Path, job: dict | None = None, **environment: str) -> dict:
    """Run a script of `tree`/experiments from another folder, as Ray's job supervisor would where `job` is given."""
    script = tree / "experiments" / "probe.py"
    script.write_text(
        "import _bootstrap, json, os, sys\n"
        "result = _bootstrap.bootstrap()\n"
        "loaded = sorted({'ray', 'torch', 'mlflow'} & set(sys.modules))\n"
        "import detector, runyard\n"
        "print(json.dumps({'runtime_env': result, 'runyard': runyard.__file__, 'detector': detector.__file__,\n"
        "    'sha': os.environ.get('RUNYARD_GIT_SHA'), 'loaded': loaded}))\n"
    )
    clean = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "RUNYARD_GIT_SHA")}
    if job is not None:
        clean["RAY_JOB_CONFIG_JSON_ENV_VAR"] = json.dumps(job)
    ran = subprocess.run(
        [sys.executable, str(script)], cwd=tree.parent, env=clean | environment, capture_output=True, text=True
    )
    assert ran.returncode == 0, ran.stderr
    return json.loads(ran.stdout)


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """A repository of the same layout with empty packages, in a folder of its own."""
    root = tmp_path / "repository"
    for package in ("platform/runyard", "detector"):
        (root / package).mkdir(parents=True)
        (root / package / "__init__.py").touch()
    (root / "experiments").mkdir()
    shutil.copy(BOOTSTRAP, root / "experiments")
    return root


def test_plain_script_passes_absolute_roots_to_workers(tree):
    found = start(tree)
    assert found["runyard"] == str(tree / "platform/runyard/__init__.py")
    assert found["detector"] == str(tree / "detector/__init__.py")
    assert found["runtime_env"] == {"env_vars": {"PYTHONPATH": f"{tree / 'platform'}:{tree}"}}
    assert found["sha"] is None
    assert found["loaded"] == []


def test_the_scripts_own_tree_wins_over_another_on_the_path(tree, tmp_path):
    (tmp_path / "other" / "runyard").mkdir(parents=True)
    (tmp_path / "other" / "runyard" / "__init__.py").touch()
    found = start(tree, PYTHONPATH=str(tmp_path / "other"))
    assert found["runyard"] == str(tree / "platform/runyard/__init__.py")
    assert found["runtime_env"]["env_vars"]["PYTHONPATH"] == f"{tree / 'platform'}:{tree}:{tmp_path / 'other'}"


def test_job_with_a_working_directory_only(tree):
    found = start(tree, job={"runtime_env": {"working_dir": "gcs://_ray_pkg_1.zip"}, "metadata": {}})
    assert found["runyard"] == str(tree / "platform/runyard/__init__.py")
    assert found["runtime_env"] == {"env_vars": {"PYTHONPATH": "platform"}}


def test_job_with_the_runtime_env_file_repeats_none_of_its_variables(tree):
    runtime_env = {"working_dir": "gcs://_ray_pkg_1.zip", "env_vars": {"PYTHONPATH": "platform"}}
    assert start(tree, job={"runtime_env": runtime_env, "metadata": {}})["runtime_env"] == {}


def test_job_without_a_working_directory_uses_the_heads_folder(tree):
    found = start(tree, job={"runtime_env": {}, "metadata": {"job_name": "x"}})
    assert found["runtime_env"] == {"env_vars": {"PYTHONPATH": f"{tree / 'platform'}:{tree}"}}


def test_git_sha_of_the_submission_reaches_driver_and_workers(tree):
    runtime_env = {"working_dir": "gcs://_ray_pkg_1.zip", "env_vars": {"PYTHONPATH": "platform"}}
    found = start(tree, job={"runtime_env": runtime_env, "metadata": {"git_sha": SHA}}, RUNYARD_GIT_SHA="older")
    assert found["sha"] == SHA
    assert found["runtime_env"] == {"env_vars": {"RUNYARD_GIT_SHA": SHA}}


def test_git_sha_given_as_a_variable_of_the_job_is_not_repeated(tree):
    job = {"runtime_env": {"env_vars": {"RUNYARD_GIT_SHA": SHA, "PYTHONPATH": "p"}}, "metadata": {}}
    found = start(tree, job=job, RUNYARD_GIT_SHA=SHA)
    assert found["sha"] == SHA
    assert found["runtime_env"] == {}


def test_names_agree_with_ray_and_with_the_manifest():
    from ray._private.runtime_env.constants import RAY_JOB_CONFIG_JSON_ENV_VAR

    from runyard.runs.manifest import GIT_SHA_VARIABLE

    specification = importlib.util.spec_from_file_location("_bootstrap", BOOTSTRAP)
    bootstrap = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(bootstrap)
    assert bootstrap.JOB_CONFIG_VARIABLE == RAY_JOB_CONFIG_JSON_ENV_VAR
    assert bootstrap.GIT_SHA_VARIABLE == GIT_SHA_VARIABLE


def python_that_tells(path: Path) -> Path:
    """A stand-in for a Python with Ray: prints with what it was started."""
    path.parent.mkdir(parents=True)
    path.write_text('#!/bin/sh\necho "started: $*"\n')
    path.chmod(0o755)
    return path


def probe_without_ray(tree: Path) -> list[str]:
    script = tree / "experiments" / "probe.py"
    script.write_text("import _bootstrap\n_bootstrap.bootstrap()\nprint('went on')\n")
    # -S leaves out site-packages, and Ray with them.
    return [sys.executable, "-S", str(script), "--smoke", "two words"]


def test_without_ray_it_starts_again_under_the_repositorys_python(tree):
    python_that_tells(tree / ".venv/bin/python")
    ran = subprocess.run(probe_without_ray(tree), capture_output=True, text=True)
    assert ran.stdout == f"started: {tree}/experiments/probe.py --smoke two words\n"
    assert "no Ray in" in ran.stderr


def test_without_ray_anywhere_it_goes_on(tree):
    ran = subprocess.run(probe_without_ray(tree), capture_output=True, text=True)
    assert ran.stdout == "went on\n"


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_without_ray_a_job_starts_again_under_the_raylets_python(tree, tmp_path):
    python = python_that_tells(tmp_path / "cluster/python")
    python_that_tells(tree / ".venv/bin/python")
    raylet = "import subprocess, sys; subprocess.run(['sh', '-c', sys.argv[1] + '; true'])"
    command = " ".join(f"'{word}'" for word in probe_without_ray(tree))
    ran = subprocess.run(
        [sys.executable, "-c", raylet, command, f"--python_worker_command={python} setup_worker.py --session=1"],
        env={**os.environ, "RAY_JOB_CONFIG_JSON_ENV_VAR": "{}"}, capture_output=True, text=True,
    )  # fmt: skip
    assert ran.stdout == f"started: {tree}/experiments/probe.py --smoke two words\n"
    assert str(python) in ran.stderr
