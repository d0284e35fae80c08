"""The manifest: which sources, on what, with which data; and no secrets."""

import json
import subprocess
from pathlib import Path

import pytest

from runyard.runs import manifest
from runyard.runs.manifest import build_manifest, describe_source, redacted_command, without_secrets


def git(folder: Path, *arguments: str) -> str:
    identity = ["-c", "user.name=Test", "-c", "user.email=test@example.invalid"]
    command = ["git", "-C", str(folder), *identity, *arguments]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()


@pytest.fixture
def sources(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.delenv("RUNYARD_GIT_SHA", raising=False)
    root = tmp_path / "repository"
    (root / "detector").mkdir(parents=True)
    (root / "detector" / "boxes.py").write_text("area = 1\n")
    return root


def test_a_clean_checkout_gives_its_commit(sources: Path) -> None:
    git(sources, "init", "-q")
    git(sources, "add", ".")
    git(sources, "commit", "-qm", "first")
    source = describe_source(sources)
    assert source["git_sha"] == git(sources, "rev-parse", "HEAD")
    assert (source["git_sha_from"], source["dirty"], source["diff"]) == ("git", False, "")


def test_changes_are_kept_as_a_difference_without_secrets(sources: Path) -> None:
    git(sources, "init", "-q")
    git(sources, "add", ".")
    git(sources, "commit", "-qm", "first")
    (sources / "detector" / "boxes.py").write_text("area = 2\nuri = 'http://me:hunter2@host:5000'\n")
    (sources / "new.py").write_text("")
    source = describe_source(sources)
    assert source["dirty"] is True
    assert "+area = 2" in source["diff"]
    assert "hunter2" not in source["diff"]
    assert source["untracked"] == ["new.py"]


def test_without_git_the_submission_passes_the_commit_on(sources: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RUNYARD_GIT_SHA", "0123456789abcdef-dirty")
    source = describe_source(sources)
    assert (source["git_sha"], source["git_sha_from"]) == ("0123456789abcdef", "RUNYARD_GIT_SHA")
    assert source["dirty"] is True
    monkeypatch.setenv("RUNYARD_GIT_SHA", "; rm -rf /")
    assert describe_source(sources)["git_sha"] is None


def test_a_repository_further_up_does_not_count(sources: Path) -> None:
    git(sources.parent, "init", "-q")
    git(sources.parent, "commit", "-qm", "home", "--allow-empty")
    assert describe_source(sources)["git_sha"] is None


def test_the_hash_of_the_files_follows_names_and_contents(sources: Path) -> None:
    first = describe_source(sources)["files_sha256"]
    assert describe_source(sources)["files_sha256"] == first
    (sources / "detector" / "boxes.py").write_text("area = 2\n")
    second = describe_source(sources)["files_sha256"]
    (sources / "detector" / "boxes.py").rename(sources / "detector" / "other.py")
    third = describe_source(sources)["files_sha256"]
    assert len({first, second, third}) == 3


def test_a_machine_without_git_still_gives_a_manifest(sources: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    assert describe_source(sources)["git_sha"] is None


def test_the_manifest_is_plain_and_says_what_was_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", "hunter2-from-the-environment")
    command = ["experiments/coco_main.py", "--tracking-uri", "https://me:hunter2@host/x", "--smoke"]
    collected = build_manifest(dataset_fingerprints={"train": "aa"}, seed=7, command=command)
    text = json.dumps(collected)
    assert "hunter2" not in text
    assert collected["command"] == "experiments/coco_main.py --tracking-uri https://host/x --smoke"
    assert collected["dataset_fingerprints"] == {"train": "aa"}
    assert collected["seed"] == 7
    assert collected["versions"]["torch"]
    assert collected["machine"]["cpu_count"] >= 1
    assert len(collected["source"]["files_sha256"]) == 64


def test_a_package_that_is_not_installed_has_no_version(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(manifest, "_PACKAGES", ("no-such-package",))
    collected = build_manifest(dataset_fingerprints={}, seed=0, command=[])
    assert collected["versions"]["no-such-package"] is None


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("http://user:pass@host:5000/path", "http://host:5000/path"),
        ("http://user@host", "http://host"),
        ("postgresql+psycopg2://u:p@ss@db:5432/mlflow", "postgresql+psycopg2://db:5432/mlflow"),
        ("https://u:p/w@host/x", "https://host/x"),
        ("http://host:5000/#/experiments/1", "http://host:5000/#/experiments/1"),
        ("http://host:5000/a@b", "http://host:5000/a@b"),
        ("s3://bucket/ray?endpoint=http://k:s@minio&secret_key=abc&region=x",
         "s3://bucket/ray?endpoint=http://minio&secret_key=***&region=x"),
        ("failed for 'http://a:b@h' and \"http://c:d@i\"", "failed for 'http://h' and \"http://i\""),
        ("sqlite:////tmp/mlflow.db", "sqlite:////tmp/mlflow.db"),
        ("someone@example.org wrote this", "someone@example.org wrote this"),
    ],
)  # fmt: skip
def test_credentials_are_taken_out_of_text(text: str, shown: str) -> None:
    assert without_secrets(text) == shown


@pytest.mark.timeout(30)
@pytest.mark.parametrize("text", ["x" * 200_000, "a://" * 50_000, "token" * 40_000, "a://b:" * 30_000])
def test_long_texts_are_searched_once(text: str) -> None:
    assert without_secrets(text) == text


def test_secret_options_lose_their_values() -> None:
    command = ["x.py", "--password", "a", "--api-token=b", "--epochs", "3", "--tracking.token", "c"]
    assert redacted_command(command) == ["x.py", "--password", "***", "--api-token=***", "--epochs", "3",
                                         "--tracking.token", "***"]  # fmt: skip
