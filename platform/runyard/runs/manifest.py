"""Manifest of a result: sources, versions, machine, data and seeds, so that it can be made again.

No secret enters: the environment is not recorded, and credentials inside URIs and arguments are taken out of whatever
is (command line, differences to the last commit).
"""

import hashlib
import importlib.metadata
import os
import platform
import re
import shlex
import subprocess
import sys
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

GIT_SHA_VARIABLE = "RUNYARD_GIT_SHA"
"""A job's submission passes the commit on in this variable: the unpacked working directory has no `.git`."""

_PACKAGES = (
    "torch", "torchvision", "ray", "mlflow", "numpy", "pyarrow", "pycocotools", "hotcoco", "safetensors", "pillow",
)  # fmt: skip
_SOURCE_FOLDERS = ("detector", "platform", "experiments", "cluster")
_SOURCE_SUFFIXES = (".py", ".yaml", ".yml", ".toml")
_MAX_DIFF_CHARACTERS = 200_000
_GIT_TIMEOUT_S = 20

# user:password@ of a URI. A password with a '/' in it is caught too; 'host:5000/a@b' is a port and a path. Every
# repetition before the decisive character is limited: a long word would else be scanned again from each of its letters.
_URI_CREDENTIALS = re.compile(
    r"(?i)([a-z][a-z0-9+.-]{0,30}://)"
    r"(?:[^\s/@'\"]{0,4096}@|[^\s/@:'\"]{0,4096}:(?!\d{1,5}[/?#])[^\s@'\"]{0,4096}@)+"
)
_SECRET_WORD = r"(?:password|passwd|passphrase|pwd|token|secret|api[_-]?key|access[_-]?key|credentials?)"
_SECRET_VALUE = re.compile(rf"(?i)({_SECRET_WORD}[\w-]{{0,64}}\s{{0,8}}[=:]\s*)([\"']?)[^\s&\"',;]+")
_SECRET_OPTION = re.compile(rf"(?i)--?[\w.-]*{_SECRET_WORD}[\w.-]*")


def build_manifest(
    *,
    dataset_fingerprints: Mapping[str, str],
    seed: int,
    command: Sequence[str] | None = None,
    root: Path | None = None,
) -> dict[str, Any]:
    """The manifest as plain values, ready for `detector.files.write_json`; no package is imported for it.

    Args:
        dataset_fingerprints: by split, as `detector.data.fingerprint` gives them.
        seed: the run's; every other one is derived from it.
        command: the command line; `sys.argv` where left out.
        root: the repository's root; `source_root` if left out.
    """
    return {
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "command": shlex.join(redacted_command(sys.argv if command is None else command)),
        "source": describe_source(root or source_root()),
        "versions": {"python": platform.python_version(), **_package_versions()},
        "machine": describe_machine(),
        "dataset_fingerprints": dict(dataset_fingerprints),
        "seed": seed,
    }


def source_root() -> Path:
    """Root of the repository that this file belongs to."""
    return Path(__file__).resolve().parents[3]


def describe_source(root: Path) -> dict[str, Any]:
    """Sources that ran: a hash of the files always, and the commit where it is known.

    Keys: `files_sha256`; `git_sha`, and where it comes from in `git_sha_from` ('git', 'RUNYARD_GIT_SHA' or None);
    `dirty` (None where unknown); `diff`, the tracked files' difference to the commit, at most 200,000 characters, with
    `diff_cut` saying whether it was longer; `untracked`, names only.
    """
    source: dict[str, Any] = {"git_sha": None, "git_sha_from": None, "dirty": None, "files_sha256": _hash_files(root)}
    top = _git(root, "rev-parse", "--show-toplevel")
    sha = _git(root, "rev-parse", "HEAD")
    passed_on = os.environ.get(GIT_SHA_VARIABLE, "")
    # A repository further up (a home folder under git) says nothing about these files.
    if sha and top and Path(top.strip()).resolve() == root.resolve():
        diff = _git(root, "diff", "HEAD", "--no-ext-diff", "--no-textconv", "--no-color") or ""
        untracked = (_git(root, "ls-files", "--others", "--exclude-standard") or "").splitlines()
        source |= {"git_sha": sha.strip(), "git_sha_from": "git", "dirty": bool(diff or untracked)}
        source |= {"diff": without_secrets(diff[:_MAX_DIFF_CHARACTERS]), "diff_cut": len(diff) > _MAX_DIFF_CHARACTERS}
        source["untracked"] = untracked[:100]
    elif match := re.fullmatch(r"([0-9a-f]{7,64})(-dirty)?", passed_on):
        source |= {"git_sha": match[1], "git_sha_from": GIT_SHA_VARIABLE, "dirty": match[2] is not None}
    return source


def describe_machine() -> dict[str, Any]:
    """This machine: platform, CPU, memory and, where torch is loaded and sees any, its GPUs with their driver."""
    machine: dict[str, Any] = {
        "host": platform.node(),
        "platform": platform.platform(),
        "cpu": _cpu_model(),
        "cpu_count": os.cpu_count(),
        "cpus_usable": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "gpus": [],
    }
    if hasattr(os, "sysconf"):
        machine["memory_gib"] = round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1)
    # A driver process without torch must not start CUDA; a process that trains has imported torch already.
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_available():
        for index in range(torch.cuda.device_count()):
            properties = torch.cuda.get_device_properties(index)
            memory_gib = round(properties.total_memory / 2**30, 1)
            capability = f"{properties.major}.{properties.minor}"
            machine["gpus"].append({"name": properties.name, "memory_gib": memory_gib, "capability": capability})
        machine["gpu_driver"] = _gpu_driver()
        machine["cuda"] = torch.version.cuda
        machine["cudnn"] = torch.backends.cudnn.version()
        if torch.distributed.is_available() and torch.distributed.is_nccl_available():
            machine["nccl"] = ".".join(map(str, torch.cuda.nccl.version()))
    return machine


def without_secrets(text: str) -> str:
    """The text with `user:password@` taken out of its URIs, and the values after password=, token= ... replaced."""
    return _SECRET_VALUE.sub(r"\1\2***", _URI_CREDENTIALS.sub(r"\1", text))


def redacted_command(arguments: Sequence[str]) -> list[str]:
    """A command line without secrets: neither in its URIs, nor as the value of --password, --token and the like."""
    shown: list[str] = []
    for position, argument in enumerate(arguments):
        follows_secret_option = position > 0 and _SECRET_OPTION.fullmatch(arguments[position - 1]) is not None
        shown.append("***" if follows_secret_option else without_secrets(argument))
    return shown


def _package_versions() -> dict[str, str | None]:
    versions: dict[str, str | None] = {}
    for name in _PACKAGES:
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            versions[name] = None
    return versions


def _hash_files(root: Path) -> str:
    """SHA-256 over names and contents of the source files, in the order of their names."""
    digest = hashlib.sha256()
    for folder in _SOURCE_FOLDERS:
        for path in sorted((root / folder).rglob("*")):
            if path.suffix in _SOURCE_SUFFIXES and path.is_file() and not path.is_symlink():
                content = path.read_bytes()
                digest.update(f"{path.relative_to(root).as_posix()}\0{len(content)}\0".encode())
                digest.update(content)
    return digest.hexdigest()


def _git(root: Path, *arguments: str) -> str | None:
    """Standard output of a git command, None without git, without a repository, or without an answer in time."""
    try:
        command = ["git", "-C", str(root), *arguments]
        result = subprocess.run(command, capture_output=True, timeout=_GIT_TIMEOUT_S, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return result.stdout.decode("utf-8", "replace")


def _cpu_model() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.is_file():
        for line in cpuinfo.read_text(errors="replace").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def _gpu_driver() -> str | None:
    version = Path("/proc/driver/nvidia/version")
    if not version.is_file():
        return None
    match = re.search(r"Kernel Module.*?\s(\d+\.\d[\d.]*)", version.read_text(errors="replace"))
    return match[1] if match else None
