"""Import path of `runyard` and `detector` for an entry point, in its driver and in the Ray workers that it starts.

An entry point opens with `import _bootstrap` and `RUNTIME_ENV = _bootstrap.bootstrap()`, imports the project after
that, and gives the result to `ray.init(runtime_env=RUNTIME_ENV)`. Nothing has to be installed: it works for a plain
script, for `ray job submit --working-dir .` with and without `--runtime-env cluster/runtime_env.yaml`, and for
`ray job submit experiments/coco_main.py` on a head that was started in the repository root.
"""

import json
import os
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Optional

ROOT = Path(__file__).resolve().parents[1]
SOURCE_ROOTS = (str(ROOT / "platform"), str(ROOT))

# Ray's job supervisor hands the submission's runtime_env and metadata to the driver in this variable.
JOB_CONFIG_VARIABLE = "RAY_JOB_CONFIG_JSON_ENV_VAR"
GIT_SHA_VARIABLE = "RUNYARD_GIT_SHA"
GIT_SHA_METADATA_KEY = "git_sha"


def bootstrap() -> dict[str, object]:
    """Put this tree's sources first on the driver's path; return the runtime_env that does the same in workers.

    The submission's own `env_vars` are not repeated, since Ray refuses to merge a key given twice, even with equal
    values: the result is `{}` where the submission sets them all. The git sha that came with the submission is left in
    this process's environment too, where the manifest looks for it. Where this Python has no Ray, the script starts
    again under one that has, and this function does not return.
    """
    if find_spec("ray") is None:
        _start_again_where_ray_is()
    sys.path[:0] = [root for root in SOURCE_ROOTS if root not in sys.path]
    git_sha = git_sha_env()
    os.environ.update(git_sha)

    submitted = _job_config().get("runtime_env") or {}
    env_vars = {"PYTHONPATH": _worker_python_path(in_working_dir="working_dir" in submitted), **git_sha}
    new = {name: value for name, value in env_vars.items() if name not in (submitted.get("env_vars") or {})}
    return {"env_vars": new} if new else {}


def git_sha_env() -> dict[str, str]:
    """`{"RUNYARD_GIT_SHA": sha}` from the submission's metadata, else from the environment; `{}` if neither has it.

    `.git` is not uploaded, so a job learns the sha from `--metadata-json '{"git_sha": "..."}'`, which `make submit`
    passes along. (`--runtime-env-json` could carry it as a variable, but not together with `--runtime-env FILE`.)
    """
    sha = (_job_config().get("metadata") or {}).get(GIT_SHA_METADATA_KEY) or os.environ.get(GIT_SHA_VARIABLE)
    return {GIT_SHA_VARIABLE: sha} if sha else {}


def _job_config() -> dict[str, Any]:
    """Submission's `runtime_env` and `metadata`; `{}` outside a Ray job."""
    return json.loads(os.environ.get(JOB_CONFIG_VARIABLE, "{}"))


def _worker_python_path(in_working_dir: bool) -> str:
    """PYTHONPATH of the workers."""
    if in_working_dir:
        # Each node unpacks to a folder of its own and starts workers in it, with that folder on the path. Python makes
        # a relative entry absolute when it starts, so Ray Train's later change of directory does no harm.
        return "platform"
    inherited = os.environ.get("PYTHONPATH")
    return os.pathsep.join([*SOURCE_ROOTS, inherited] if inherited else SOURCE_ROOTS)


def _start_again_where_ray_is() -> None:
    """Replace this process by the same script under the cluster's Python or the repository's; return if neither is.

    An entry point's first line takes the first python3 on the PATH. On a head started as `.venv/bin/ray start`, with
    nothing activated, and in a plain shell after `make setup`, that is the system's.
    """
    repository_python = ROOT / ".venv" / "bin" / "python"
    python = _cluster_python() or (str(repository_python) if repository_python.exists() else None)
    if python is not None and python != sys.executable:
        print(f"{sys.argv[0]}: no Ray in {sys.executable}, going on with {python}", file=sys.stderr, flush=True)
        os.execv(python, [python, *sys.argv])


def _cluster_python() -> Optional[str]:  # noqa: UP045 (the system's Python may be older than 3.10)
    """The Python with which the raylet among this process's ancestors starts its workers; None outside a job."""
    process = os.getppid() if JOB_CONFIG_VARIABLE in os.environ and sys.platform == "linux" else 0
    while process > 1:
        folder = Path("/proc", str(process))
        for argument in (folder / "cmdline").read_text(errors="replace").split("\0"):
            name, _, command = argument.partition("=")
            if name == "--python_worker_command":
                return command.split()[0]
        status = dict(line.split(":", 1) for line in (folder / "status").read_text().splitlines())
        process = int(status["PPid"])
    return None
